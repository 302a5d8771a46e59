"""Events in words: the same line in the log, on a terminal and on the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_gui.data import row_stats
from qlora_gui.data.bad_rows import place
from qlora_gui.data.formats import changes_meaning
from qlora_gui.runs.events import Event, last

VERY_FEW_STEPS = 30  # of the optimizer: a run of fewer hardly learns


def describe(event: Event) -> str:
    """One line for one event; empty for those that need none."""
    kind = event["kind"]
    if kind in ("stage", "note"):
        return str(event["text"])
    if kind == "data":
        return (
            f"Data: {event['used']} rows to learn from, {event['held_out']} held out, {event['truncated']} truncated, "
            f"{event['dropped']} dropped"
            + "".join(f"\n  row {row['row']} dropped: {row['reason']}" for row in event["dropped_rows"])
            + "".join(f"\n  {place(row)} left out: {row['reason']}" for row in event.get("skipped_rows", ()))
            + "".join(f"\n  {sentence}" for sentence in (*data_warnings(event), *data_remarks(event)))
            + "".join(f"\n  {sentence}" for sentence in row_stats.sentences(event.get("facts") or {}))
        )
    if kind == "base":
        return (
            f"Base {event['name']} on {event['device']} in {event.get('dtype')}: {event.get('trained') or 0:,} parameters "
            "to train"
        )
    if kind == "step":
        return (
            f"step {event['step']}/{event['max_steps']}  loss {loss_of(event)}  lr {event.get('learning_rate') or 0:.2e}  "
            f"grad {event.get('grad_norm') or 0:.2f}  {event.get('tokens_per_second') or 0:.0f} tok/s  "
            f"{(event.get('memory') or 0) / 2**30:.1f} GB  {clock(event.get('eta') or 0)} left"
        )
    if kind == "eval":
        base = " (the base)" if event["step"] == 0 else ""
        return f"step {event['step']}: held-out loss {loss_of(event)}{base}"
    if kind == "memory":
        return f"Longest batch: {predicted_and_measured(event)}"
    return "\n".join(not_all([event]))


def not_all(events: Sequence[Event]) -> list[str]:
    """What is to be said of events that are not what the file holds: lines that are no events, and a long run thinned."""
    said = []
    if skipped := last(list(events), "skipped"):
        count = skipped["count"]
        which = (
            "1 line of its events is skipped, in whole or in part"
            if count == 1
            else (f"{count:,} lines of its events are skipped, in whole or in part")
        )
        why = "; ".join(dict.fromkeys(skipped["why"]))
        them = "it cannot be read as one" if count == 1 else "they cannot be read as such"
        said.append(f"{which}, for {them} ({why}); what was said there is missing here.")
    if thinned := last(list(events), "thinned"):
        counts = ", ".join(f"{count:,} of '{kind}'" for kind, count in sorted(thinned["counts"].items()))
        said.append(
            f"A long run ({counts}): shown are the newest and an even sample of the others, with the lowest and highest loss."
        )
    return said


def few_steps(steps: int) -> str:
    """What a run of fewer than VERY_FEW_STEPS steps means."""
    count = "1 optimizer step" if steps == 1 else f"{steps} optimizer steps"
    return (
        f"This run has {count}, each moving the adapter by about the learning rate: enough to try whether it runs, too "
        "few to learn much. Take more epochs, fewer rows per step, or more data."
    )


def data_warnings(told: Mapping[str, Any]) -> list[str]:
    """What a `data` event tells of rows that are not what they seem: what is not used of them, and copies."""
    found = []
    if loud := _fields(told, True):
        found.append(f"Not used, though it may change what the rows mean: {loud}.")
    if known := told.get("known"):
        which = "1 held-out row equals one" if known == 1 else f"{known:,} held-out rows equal rows"
        found.append(f"{which} to train on, and {'is' if known == 1 else 'are'} not measured on.")
    return found


def data_remarks(told: Mapping[str, Any]) -> list[str]:
    """What else a `data` event tells of the rows: how many are left out, copies, and columns that are not used."""
    found = []
    if skipped := told.get("skipped"):
        which = "1 row that cannot be used is" if skipped == 1 else f"{skipped:,} rows that cannot be used are"
        found.append(f"{which} left out.")
    if copies := told.get("duplicates"):
        share = copies / max(told.get("usable", 0), 1)
        which = f"1 row ({share:.1%}) equals" if copies == 1 else f"{copies:,} rows ({share:.1%}) equal"
        found.append(f"{which} an earlier one; copies are all trained on or all held out.")
    if files := told.get("unused_files"):
        found.append(f"Files of the data's folder that are not read: {', '.join(files)}.")
    if quiet := _fields(told, False):
        found.append(f"Not used: {quiet}.")
    return found


def _fields(told: Mapping[str, Any], loud: bool) -> str:
    """`images (12 rows), label (3 rows)`: what is not used and changes the meaning, or does not."""
    counts = sorted((told.get("ignored") or {}).items())
    return ", ".join(
        f"{name} ({rows:,} {'row' if rows == 1 else 'rows'})" for name, rows in counts if changes_meaning(name) == loud
    )


def loss_of(event: Event, digits: int = 4) -> str:
    """The loss of a step or of a held-out measurement; JSON has no word for NaN, so an event says null."""
    return "not a number" if event["loss"] is None else f"{event['loss']:.{digits}f}"


def predicted_and_measured(event: Event) -> str:
    """`predicted 9.8 GB, measured 10.1 GB (3% more)`, of a `memory` event."""
    predicted, measured = event["predicted"], event["measured"]
    off = measured / predicted - 1
    sides = f"predicted {predicted / 2**30:.1f} GB, measured {measured / 2**30:.1f} GB"
    return f"{sides} ({abs(off):.0%} {'more' if off >= 0 else 'less'})"


def autopsy_lines(found: Mapping[str, Any]) -> list[str]:
    """What a run that died of memory has to say beyond its message: who else held the GPU, and what would help."""
    lines = [
        f"  {held['name']} (process {held['pid']}) held {held['bytes'] / 2**30:.1f} GB" for held in found["held_by"]
    ]
    if found["changes"]:
        lines.append("Changes that make it smaller:")
    for change in found["changes"]:
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in change["knobs"].items())
        lines.append(f"  {change['text']}{' · fits then' if change['fits'] else ''}   ({flags})")
    return lines


def clock(seconds: float) -> str:
    """90 -> '1:30'."""
    whole = round(seconds)
    return (
        f"{whole // 60}:{whole % 60:02d}"
        if whole < 3600
        else f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
    )
