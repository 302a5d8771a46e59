"""Events in words: the same line in the log, on a terminal and on the page."""

from collections.abc import Mapping
from typing import Any

from qlora_gui.runs.events import Event


def describe(event: Event) -> str:
    """One line for one event; empty for those that need none."""
    kind = event["kind"]
    if kind == "stage":
        return str(event["text"])
    if kind == "data":
        return (
            f"Data: {event['used']} rows to learn from, {event['held_out']} held out, {event['truncated']} truncated, "
            f"{event['dropped']} dropped"
            + "".join(f"\n  row {row['row']} dropped: {row['reason']}" for row in event["dropped_rows"])
        )
    if kind == "base":
        return (
            f"Base {event['name']} on {event['device']} in {event['dtype']}: {event['trained']:,} parameters to train"
        )
    if kind == "step":
        return (
            f"step {event['step']}/{event['max_steps']}  loss {loss_of(event)}  lr {event['learning_rate']:.2e}  "
            f"grad {event['grad_norm'] or 0:.2f}  {event['tokens_per_second']:.0f} tok/s  "
            f"{event['memory'] / 2**30:.1f} GB  {clock(event['eta'])} left"
        )
    if kind == "eval":
        base = " (the base)" if event["step"] == 0 else ""
        return f"step {event['step']}: held-out loss {loss_of(event)}{base}"
    if kind == "memory":
        return f"Longest batch: {predicted_and_measured(event)}"
    return ""


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
