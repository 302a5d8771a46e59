"""What the checks look at: settings, data, events and evaluation of one run, as far as they are known."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from qlora_gui.config import RunConfig
from qlora_gui.memory.estimate import MemoryPlan
from qlora_gui.memory.model_shape import Shape
from qlora_gui.runs.events import Whole
from qlora_gui.runs.history import RunHistory

Values = Mapping[str, Any]


class _Sides(TypedDict):
    base: float
    adapter: float


class _Text(TypedDict):
    rep4: float
    copied: float
    ended_by_length: NotRequired[float | None]


class _Texts(TypedDict):
    base: _Text
    adapter: _Text


class _Difference(_Sides):
    difference: float
    low: float
    high: float
    rows: Whole


class _General(_Sides):
    tokens: Whole


class _Drift(TypedDict):
    kl: float


class _AdapterFacts(TypedDict):
    """As `inference.evidence.facts` has them; those that only say yes or no may be of any kind."""

    b_zero_share: float | None  # None where LoRA is not all of the update: it has no size by it
    delta_ratio: float | None
    trained_biases: Whole
    linears: Whole
    linears_available: Whole


_PARTS: dict[str, TypeAdapter[Any]] = {
    "adapter_facts": TypeAdapter(_AdapterFacts),
    "base": TypeAdapter(dict[str, Any]),
    "dependence": TypeAdapter(_Difference),
    "drift": TypeAdapter(_Drift),
    "eos": TypeAdapter(_Sides),
    "general": TypeAdapter(_General),
    "loss": TypeAdapter(_Difference),
    "texts": TypeAdapter(_Texts),
}


def sound_parts(evaluation: Values) -> dict[str, Values]:
    """The parts of an evaluation.json that checks look at; those of another shape, by hand or by another version, are
    left out.
    """
    parts: dict[str, Values] = {}
    for name, check in _PARTS.items():
        with contextlib.suppress(ValidationError, RecursionError, OverflowError):
            check.validate_python(evaluation.get(name), strict=True)
            parts[name] = evaluation[name]
    return parts


@dataclass(frozen=True)
class Seen:
    """One run. What is not known yet is None or empty; checks that need it say nothing then.

    `facts` are those of `data.row_stats`; the preview's also say whether they are of all rows (`whole`) and whether
    held-out rows will still be split off (`splits`). `parts` are those of its evaluation (`sound_parts`).
    """

    config: RunConfig
    shape: Shape | None = None
    facts: Values = field(default_factory=dict)
    memory: MemoryPlan | None = None
    history: RunHistory = field(default_factory=RunHistory)
    parts: Mapping[str, Values] = field(default_factory=dict)

    def part(self, name: str) -> Values:
        """A part of the evaluation, {} where it was not measured."""
        return self.parts.get(name, {})

    def rows(self) -> int | None:
        """Rows that are trained on; None where that is not known, or only that there are at least so many."""
        if not self.facts or not self.facts.get("whole", True):
            return None
        rows = int(self.facts["rows"])
        return rows - round(rows * self.config.eval_fraction) if self.facts.get("splits") else rows

    def steps_per_epoch(self, accumulation: int | None = None) -> int | None:
        """Optimizer steps over the rows once, as transformers counts them; None where rows are not known or packed.

        `accumulation` takes the place of the config's.
        """
        rows = self.rows()
        if not rows or self.config.packing:
            return None
        return ceil(ceil(rows / self.config.batch_size) / (accumulation or self.config.gradient_accumulation))

    def optimizer_steps(self) -> int | None:
        """Steps of the whole run: as the trainer counted them, or else from the settings and the rows."""
        counted = self.history.optimizer_steps()
        if counted is not None:
            return counted
        if self.config.max_steps:
            return self.config.max_steps
        each = self.steps_per_epoch()
        return ceil(self.config.epochs * each) if each else None
