"""What the checks look at: settings, data, events and evaluation of one run, as far as they are known."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from qlora_gui.config import RunConfig
from qlora_gui.memory.estimate import MemoryPlan
from qlora_gui.memory.model_shape import Shape
from qlora_gui.runs import curves
from qlora_gui.runs.events import Event, last
from qlora_gui.runs.thinning import PEAK

Values = Mapping[str, Any]
_ENDS = 3  # logged points at either end of a loss curve that are averaged, for one point is noise


@dataclass(frozen=True)
class Seen:
    """One run. What is not known yet is None or empty; checks that need it say nothing then.

    `facts` are those of `data.row_stats`; the preview's also say whether they are of all rows (`whole`) and whether
    held-out rows will still be split off (`splits`). `evaluation` is what evaluation.json holds.
    """

    config: RunConfig
    shape: Shape | None = None
    facts: Values = field(default_factory=dict)
    memory: MemoryPlan | None = None
    events: Sequence[Event] = ()
    evaluation: Values = field(default_factory=dict)

    def event(self, kind: str) -> Values:
        """The latest event of a kind, or {}."""
        return last(list(self.events), kind) or {}

    def by_step(self, kind: str) -> list[Event]:
        """Events of a kind by rising step, with a loss; what a resumed run did again replaces what it had done."""
        whole = [event for event in self.events if "loss" in event and isinstance(event.get("step"), int)]
        return curves.by_step(whole, kind)

    def part(self, name: str) -> Values:
        """A part of the evaluation, {} where it was not measured."""
        return self.evaluation.get(name) or {}

    def held_out(self) -> list[tuple[int, float]]:
        """(step, held-out loss) of every measurement that gave a number."""
        return [(event["step"], event["loss"]) for event in self.by_step("eval") if event["loss"] is not None]

    def measured_steps(self) -> list[Event]:
        """The logged steps with a loss, up to the last held-out measurement, which they are held against."""
        held = self.held_out()
        steps = [event for event in self.by_step("step") if event["loss"] is not None]
        return [event for event in steps if event["step"] <= held[-1][0]] if held else steps

    def training_ends(self) -> tuple[float, float] | None:
        """Mean training loss of the first and of the latest `measured_steps`; None while there are too few."""
        losses = [event["loss"] for event in self.measured_steps() if PEAK not in event]
        if len(losses) < 2 * _ENDS:
            return None
        return sum(losses[:_ENDS]) / _ENDS, sum(losses[-_ENDS:]) / _ENDS

    def epochs_done(self) -> float:
        """How often the data had been seen at the latest of `measured_steps`."""
        steps = self.measured_steps()
        return float(steps[-1].get("epoch") or 0.0) if steps else 0.0

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
        steps = self.by_step("step")
        if steps:
            return int(steps[-1]["max_steps"])
        if self.config.max_steps:
            return self.config.max_steps
        each = self.steps_per_epoch()
        return ceil(self.config.epochs * each) if each else None
