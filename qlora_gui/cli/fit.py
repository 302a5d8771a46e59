"""`--headless-fit`: will a run fit into memory, by cause, and what to change so that it does."""

import json
from collections.abc import Sequence

from qlora_gui import hardware
from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.formatting import gigabytes
from qlora_gui.memory import advice, known_models, run_time, simulated_step
from qlora_gui.memory.budget import Budget
from qlora_gui.memory.estimate import MemoryPlan, plan
from qlora_gui.memory.step_sizes import Way
from qlora_gui.runs import gpus
from qlora_gui.system import console

EXIT_FITS, EXIT_DOES_NOT_FIT = 0, 3
_BAR = 60
_ROUGH = (
    "This architecture is not known here and could not be counted: the plan is rough, for a plain decoder of its sizes."
)
_MARKS = "█▓▒░▞▚▖▘▝▗╱╲"


def show(config: RunConfig, budget: Budget, way: Way, as_json: bool, simulate: bool = False) -> int:
    """Print the plan of a run, its verdict and the changes that would help. Returns 0 if it fits, 3 if not.

    `simulate` takes the peak from a simulated step, as is always done on a GPU for architectures that the closed form
    does not know; where the step cannot be simulated the plan stands, and says it. Raises UserError when the base's
    config.json cannot be had, or a step is to be simulated on a CPU.
    """
    shape = known_models.find(config, count=True)
    memory_plan = plan(config, shape, budget, way=way)
    doubts = [_ROUGH] if shape.rough else []
    if budget.is_here:
        doubts += [remark for remark in (hardware.trouble(), hardware.remark()) if remark and config.gpu != gpus.CPU]
    if simulate or simulated_step.wanted(memory_plan, shape):
        try:
            memory_plan = simulated_step.refined(memory_plan, config, shape, known_models.config_json(config))
        except UserError as error:
            if memory_plan.budget.kind != "cuda":
                raise
            doubts.append(f"This is the plan alone, without a simulated step. {error}")
    takes = run_time.estimate(config, shape, memory_plan) if way == "ours" else None
    helpful = advice.changes(config, shape, budget) if way == "ours" else []
    if as_json:
        more = {"changes": [change.as_dict() for change in helpful], "doubts": doubts}
        more |= {"time": takes.as_dict() if takes else None}
        print(json.dumps(memory_plan.as_dict() | more, indent=1))
    else:
        time = [f"{takes}. An estimate from this device's speed as --headless-check measured it."] if takes else []
        print("\n".join(lines(config, memory_plan, helpful, time) + doubts))
    return EXIT_FITS if memory_plan.fits else EXIT_DOES_NOT_FIT


def lines(
    config: RunConfig, memory_plan: MemoryPlan, helpful: list[advice.Change], time: Sequence[str] = ()
) -> list[str]:
    """The plan as text: a bar, a line per term, the verdict, how long it takes where that is known, and the changes."""
    marks = _MARKS if console.shows_everything() else "#=%+o*x:^~-."
    named = dict(zip((term.key for term in memory_plan.terms), marks, strict=False))
    rows = f"{memory_plan.rows} x {memory_plan.length} tokens, checkpointing {memory_plan.checkpointing}"
    head = f"{config.base_model}: {rows}, {'the stock way' if memory_plan.way == 'stock' else 'as this program trains'}"
    body = [
        f"  {named[t.key]} {t.label:<30}{gigabytes(t.bytes):>9}{_share(t.bytes, memory_plan.total):>5}"
        for t in memory_plan.terms
    ]
    out = [
        head,
        "",
        f"  [{_bar(memory_plan, named)}]",
        "",
        *body,
        f"    {'Peak, ' + memory_plan.moment:<30}{gigabytes(memory_plan.total):>9}",
    ]
    if (seen := memory_plan.correction).factor != 1.0:
        out.append(f"    corrected by {seen.factor:.2f}, from {seen.runs} runs here that were {seen.error:.0%} off")
    out += ["", _verdict(memory_plan), *time]
    if helpful:
        out += ["", "Ways to save memory:"]
        out += [
            f"  {change.text}{' · fits then' if change.fits and not memory_plan.fits else ''}" for change in helpful
        ]
        out.append(advice.RANK_AND_BIAS)
    return out


def _bar(memory_plan: MemoryPlan, named: dict[str, str]) -> str:
    """The terms side by side, to scale with the free memory; a `|` stands where that ends."""
    scale = _BAR / max(memory_plan.total, memory_plan.budget.free)
    bar, filled = "", 0.0
    for term in memory_plan.terms:
        filled += max(term.bytes, 0) * scale
        bar += named[term.key] * (round(filled) - len(bar))
    bar = bar.ljust(_BAR)[:_BAR]
    if memory_plan.total > memory_plan.budget.free:
        end = min(round(memory_plan.budget.free * scale), _BAR - 1)
        bar = f"{bar[:end]}|{bar[end:]}"
    return bar


def _share(size: int, total: int) -> str:
    return f"{size / total:.0%}"


def _verdict(memory_plan: MemoryPlan) -> str:
    remark = f"; {memory_plan.remark}" if memory_plan.remark else ""
    return f"{memory_plan.words}: {memory_plan.figures} free on {memory_plan.budget.name}{remark}."
