"""Which runs of a sweep fit into memory, before any of them runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.memory import known_models
from qlora_gui.memory.budget import Budget
from qlora_gui.memory.estimate import MemoryPlan, plan
from qlora_gui.runs.sweep import Sweep, words


@dataclass(frozen=True)
class Cell:
    """A run of a sweep: what sets it apart, and its plan; None where the base's shape is not known."""

    config: RunConfig
    varied: Mapping[str, Any]
    plan: MemoryPlan | None

    @property
    def refused(self) -> bool:
        """Whether it cannot fit."""
        return self.plan is not None and not self.plan.fits

    @property
    def verdict_text(self) -> str:
        """The verdict in words, with its numbers."""
        return f"{self.plan.words}: {self.plan.figures}" if self.plan else "memory not known"


def planned(sweep: Sweep, budget: Budget) -> list[Cell]:
    """Every run of a sweep with its plan on a device; estimates, in closed form."""
    return [Cell(config, sweep.cell(config), _plan(config, budget)) for config in sweep.configs]


def fitting(cells: Sequence[Cell]) -> list[RunConfig]:
    """The runs that are not refused. Raises UserError when none is left."""
    left = [cell.config for cell in cells if not cell.refused]
    if not left:
        smallest = min((cell for cell in cells if cell.plan), key=lambda cell: cell.plan.total if cell.plan else 0)
        raise UserError(
            f"No run of this sweep fits into memory; the smallest is {words(smallest.varied)} ({smallest.verdict_text}): "
            "choose a smaller base, batch or length."
        )
    return left


def _plan(config: RunConfig, budget: Budget) -> MemoryPlan | None:
    try:
        return plan(config, known_models.find(config), budget)
    except UserError:
        return None
