"""The second tier of "will it fit": the real step on fake tensors in a child process, cached on disk by its inputs.

For bases that the closed form's assumptions do not hold for. Seconds where the closed form takes milliseconds.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlora_gui.config import RunConfig, marked
from qlora_gui.errors import UserError
from qlora_gui.memory import model_shape as shapes
from qlora_gui.memory.estimate import MemoryPlan, plan, simulated
from qlora_gui.memory.model_shape import Shape
from qlora_gui.memory.step_sizes import Way
from qlora_gui.simulation import client


@dataclass(frozen=True)
class Simulated:
    """The memory of one step on a CUDA GPU, in bytes, by torch's allocator: no context and no libraries' workspaces.

    `peak_in` is the phase of the peak: forward, loss, backward or optimizer; `phases` has the peak of each.
    `resident` is what stays between steps.
    """

    peak: int
    peak_in: str
    resident: int
    phases: dict[str, int]


def simulate(
    base: dict[str, Any],
    config: RunConfig,
    rows: int,
    length: int,
    way: Way = "ours",
    checkpointing: str | None = None,
    flash: bool = True,
) -> Simulated:
    """The step of `rows` x `length` tokens on the base with this config.json; a known answer comes from the disk.

    `checkpointing` replaces the config's; auto counts as all. `flash` is as in Budget. Raises UserError when the child
    cannot do it, or takes longer than client.PATIENCE_SECONDS.
    """
    config = config.model_copy(update=shapes.stored(base))
    which = checkpointing or config.gradient_checkpointing
    question = {
        "base": base,
        "config": {name: value for name, value in config.model_dump(mode="json").items() if name in marked("step")},
        "rows": rows,
        "length": length,
        "way": way,
        "checkpointing": "all" if which == "auto" else which,
        "flash": flash,
    }
    file = client.folder() / f"{client.key(question)}.json"
    answer = _read(file)
    if answer is None:
        answer = _ask(question)
        client.keep(file, asdict(answer))
    return answer


def wanted(closed_form: MemoryPlan, shape: Shape) -> bool:
    """Whether a plan is to be refined: for a GPU and an architecture that the closed form does not know."""
    return not shape.exact and closed_form.budget.kind == "cuda"


def refined(closed_form: MemoryPlan, config: RunConfig, shape: Shape, base: Mapping[str, Any]) -> MemoryPlan:
    """The plan with its peak from a simulated step; where that is too much and auto may, with all layers recomputed.

    `base` is the base's config.json. Raises UserError as `simulate` does, and for a plan that is not for a GPU.
    """
    if closed_form.budget.kind != "cuda":
        raise UserError("Only steps on a GPU can be simulated: name one by its memory, --memory 16GB.")

    def measured(candidate: MemoryPlan) -> MemoryPlan:
        how = candidate.rows, candidate.length, candidate.way, candidate.checkpointing, candidate.budget.flash
        return simulated(candidate, simulate(dict(base), config, *how).peak)

    better = measured(closed_form)
    auto = config.gradient_checkpointing == "auto" and closed_form.way == "ours"
    if better.verdict == "fits" or not auto or closed_form.checkpointing == "all":
        return better
    return measured(
        plan(config, shape, closed_form.budget, rows=closed_form.rows, length=closed_form.length, checkpointing="all")
    )


def _read(file: Path) -> Simulated | None:
    try:
        return Simulated(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # absent or damaged: ask again
        return None


def _ask(question: dict[str, Any]) -> Simulated:
    answer = client.asked(client.STEP, question)
    return Simulated(**{name: answer[name] for name in ("peak", "peak_in", "resident", "phases")})
