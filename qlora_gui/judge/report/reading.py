"""What a run's folder holds, read with care: events and evaluations that lack what the report states are left out."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

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


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Sides(_Part):
    """A value of the base and one of the adapter."""

    base: float
    adapter: float


class Loss(Sides):
    """Mean held-out losses, nats a token; `difference` is adapter - base, with its 95% interval and corrected p."""

    difference: float
    low: float
    high: float
    p_holm: float
    rows: int


class Texts(_Part):
    """What was counted in one side's greedy answers (`judge.texts`): shares, means, scores against references."""

    answers: int
    ended_by_eos: float
    empty: float
    rep4: float
    copied: float
    tokens: float
    ended_by_length: float | None = None
    distinct2: float | None = None
    compression: float | None = None
    chrf: float | None = None
    rouge_l: float | None = None
    exact: float | None = None
    json_valid: float | None = None


class BothTexts(_Part):
    base: Texts
    adapter: Texts


class Drift(_Part):
    kl: float
    first_divergence: float | None = None
    same: float


class Adapter(_Part):
    name: str
    sha256: str | None = None


class Base(_Part):
    fingerprint: str | None = None
    quantization: str | None = None


class Data(_Part):
    source: str
    rows: int
    tokens: int


class Verdict(_Part):
    kind: Literal["better", "worse", "unclear"]
    text: str


class Example(_Part):
    """A prompt with the data's own answer, the base's and the adapter's."""

    prompt: str
    reference: str
    base: str
    adapter: str


class Evaluation(_Part):
    """An evaluation.json as far as the report states it."""

    made: float
    adapter: Adapter
    base: Base
    data: Data
    loss: Loss
    texts: BothTexts | None = None
    eos: Sides | None = None
    drift: Drift
    general: Sides | None = None
    dependence: Sides | None = None
    verdict: Verdict
    examples: list[Example] = []


def evaluation_of(found: dict[str, Any]) -> Evaluation | None:
    """The content of an evaluation.json; None where it is damaged or of another version."""
    try:
        return Evaluation(**found)
    except (ValidationError, TypeError):
        return None
