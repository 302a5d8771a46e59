"""The events of a run, read with care: those that lack what the report states are left out."""

import math
from collections.abc import Sequence
from typing import Any

from qlora_gui.runs.events import Event

# The numbers and texts without which an event of this kind says nothing.
_NUMBERS = {
    "step": ("step", "max_steps"),
    "eval": ("step",),
    "probe": ("step",),
    "data": ("used", "held_out", "truncated", "dropped"),
    "memory": ("predicted", "measured"),
    "finished": ("step",),
}
_TEXTS = {"base": ("name", "device"), "failed": ("message",), "stage": ("text",)}
_MAPPINGS = {"fit": ("knobs",)}
_LOSSES = {"step": "loss", "eval": "loss"}  # null where it was no number


def readable(events: Sequence[Event]) -> list[Event]:
    """The events that have what their kind is about; losses that are no finite number become None."""
    kept = []
    for event in events:
        kind = event["kind"]
        whole = all(_is_number(event.get(name)) for name in _NUMBERS.get(kind, ()))
        whole &= all(isinstance(event.get(name), str) for name in _TEXTS.get(kind, ()))
        whole &= all(isinstance(event.get(name), dict) for name in _MAPPINGS.get(kind, ()))
        if whole:
            loss = _LOSSES.get(kind)
            kept.append(event | {loss: number(event.get(loss))} if loss else event)
    return kept


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    return value if _is_number(value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
