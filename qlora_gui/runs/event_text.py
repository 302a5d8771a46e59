"""Events in words: the same line in the log, on a terminal and on the page."""

from collections.abc import Mapping
from typing import Any

from qlora_gui.data import row_stats
from qlora_gui.data.bad_rows import place
from qlora_gui.data.formats import changes_meaning
from qlora_gui.formatting import clock, gigabytes
from qlora_gui.runs.events import (
    Base,
    Data,
    Eval,
    Event,
    Memory,
    Note,
    OomReport,
    Skipped,
    Stage,
    Step,
    Thinned,
    as_record,
)
from qlora_gui.runs.history import RunHistory

VERY_FEW_STEPS = 30  # of the optimizer: a run of fewer hardly learns


def describe(event: Event) -> str:
    """One line for one event; empty for those that need none."""
    match as_record(event):
        case Stage(text=text) | Note(text=text):
            return text
        case Data() as data:
            return _describe_data(data)
        case Base() as base:
            return f"Base {base.name} on {base.device} in {base.dtype}: {base.trained or 0:,} parameters to train"
        case Step() as step:
            return (
                f"step {step.step}/{step.max_steps}  loss {loss_of(step)}  lr {step.learning_rate or 0:.2e}  "
                f"grad {step.grad_norm or 0:.2f}  {step.tokens_per_second or 0:.0f} tok/s  "
                f"{gigabytes(step.memory or 0)}  {clock(step.eta or 0)} left"
            )
        case Eval() as held_out:
            base_alone = " (the base)" if held_out.step == 0 else ""
            return f"step {held_out.step}: held-out loss {loss_of(held_out)}{base_alone}"
        case Memory() as memory:
            return f"Longest batch: {predicted_and_measured(memory)}"
    return "\n".join(not_all(RunHistory([event])))


def _describe_data(data: Data) -> str:
    return (
        f"Data: {data.used} rows to train on, {data.held_out} held out, {data.truncated} truncated, {data.dropped} dropped"
        + "".join(f"\n  row {row['row']} dropped: {row['reason']}" for row in data.dropped_rows)
        + "".join(f"\n  {place(row)} left out: {row['reason']}" for row in data.skipped_rows)
        + "".join(f"\n  {sentence}" for sentence in (*data_warnings(vars(data)), *data_remarks(vars(data))))
        + "".join(f"\n  {sentence}" for sentence in row_stats.sentences(data.facts or {}))
    )


def not_all(history: RunHistory) -> list[str]:
    """Notes where the events are not all that the file holds: skipped lines, and a long run thinned."""
    return [*skipped_lines(history), *thinned_kinds(history)]


def skipped_lines(history: RunHistory) -> list[str]:
    """A note where lines of the file were skipped."""
    skipped = history.latest(Skipped)
    if skipped is None:
        return []
    count = skipped.count
    which = (
        "1 line of its events is skipped, in whole or in part"
        if count == 1
        else f"{count:,} lines of its events are skipped, in whole or in part"
    )
    why = "; ".join(dict.fromkeys(skipped.why))
    them = "it cannot be read as one" if count == 1 else "they cannot be read as such"
    return [f"{which}, because {them} ({why}); what they recorded is missing here."]


def thinned_kinds(history: RunHistory) -> list[str]:
    """A note where of a long run not all events are kept."""
    thinned = history.latest(Thinned)
    if thinned is None:
        return []
    counts = ", ".join(f"{count:,} of '{kind}'" for kind, count in sorted(thinned.counts.items()))
    return [
        f"A long run ({counts}): shown are the newest and an even sample of the others, including the lowest and highest loss."
    ]


def few_steps(steps: int) -> str:
    """What a run of fewer than VERY_FEW_STEPS steps means."""
    count = "1 optimizer step" if steps == 1 else f"{steps} optimizer steps"
    return (
        f"This run has {count}, each moving the adapter by about the learning rate: enough to see whether it runs, too "
        "few to learn much. Use more epochs, fewer rows per step, or more data."
    )


def data_warnings(data: Mapping[str, Any]) -> list[str]:
    """Warnings of a `data` event: fields that are not used though they change what rows mean, and held-out copies."""
    warnings = []
    if loud := _fields(data, True):
        warnings.append(f"Not used, though it may change what the rows mean: {loud}.")
    if known := data.get("known"):
        which = "1 held-out row equals one" if known == 1 else f"{known:,} held-out rows equal rows"
        warnings.append(f"{which} to train on, and {'is' if known == 1 else 'are'} not measured on.")
    return warnings


def data_remarks(data: Mapping[str, Any]) -> list[str]:
    """Remarks of a `data` event: how many rows are left out, copies, and other columns that are not used."""
    remarks = []
    if skipped := data.get("skipped"):
        which = "1 row that cannot be used is" if skipped == 1 else f"{skipped:,} rows that cannot be used are"
        remarks.append(f"{which} left out.")
    if copies := data.get("duplicates"):
        share = copies / max(data.get("usable", 0), 1)
        which = f"1 row ({share:.1%}) equals" if copies == 1 else f"{copies:,} rows ({share:.1%}) equal"
        remarks.append(f"{which} an earlier one; copies are all trained on or all held out.")
    if files := data.get("unused_files"):
        remarks.append(f"Files of the data's folder that are not read: {', '.join(files)}.")
    if quiet := _fields(data, False):
        remarks.append(f"Not used: {quiet}.")
    return remarks


def _fields(data: Mapping[str, Any], loud: bool) -> str:
    """`images (12 rows), label (3 rows)`: unused fields that change the meaning (`loud`), or do not."""
    counts = sorted((data.get("ignored") or {}).items())
    return ", ".join(
        f"{name} ({rows:,} {'row' if rows == 1 else 'rows'})" for name, rows in counts if changes_meaning(name) == loud
    )


def loss_of(event: Step | Eval, digits: int = 4) -> str:
    """The loss of a step or of a held-out measurement; JSON has no NaN, so an event has null."""
    return "not a number" if event.loss is None else f"{event.loss:.{digits}f}"


def predicted_and_measured(memory: Memory) -> str:
    """`predicted 9.8 GB, measured 10.1 GB (3% more)`, of a `memory` event."""
    predicted, measured = memory.predicted, memory.measured
    off = measured / predicted - 1
    sides = f"predicted {gigabytes(predicted)}, measured {gigabytes(measured)}"
    return f"{sides} ({abs(off):.0%} {'more' if off >= 0 else 'less'})"


def oom_report_lines(report: OomReport) -> list[str]:
    """The report of a run that ran out of memory, beyond its message: who else held the GPU, and what would help."""
    lines = [
        f"  {held['name']} (process {held['pid']}) held {gigabytes(held['bytes'])}"
        for held in report.get("held_by") or []
    ]
    changes = report.get("changes") or []
    if changes:
        lines.append("Ways to save memory:")
    for change in changes:
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in change["knobs"].items())
        lines.append(f"  {change['text']}{' · fits then' if change['fits'] else ''}   ({flags})")
    return lines
