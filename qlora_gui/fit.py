"""`--headless-fit`: will a run fit into memory, by cause, and what to change so that it does."""

import json
import sys

from qlora_gui.memory import advice, calibration, known, simulation
from qlora_gui.memory.budget import Budget
from qlora_gui.memory.plan import MemoryPlan, gigabytes, plan
from qlora_gui.memory.step import Way
from qlora_gui.runs.config import RunConfig

EXIT_FITS, EXIT_DOES_NOT_FIT = 0, 3
_BAR = 60
_MARKS = "█▓▒░▞▚▖▘▝▗╱╲"


def show(config: RunConfig, budget: Budget, way: Way, as_json: bool, simulate: bool = False) -> int:
    """Print the plan of a run, its verdict and the changes that would help. Returns 0 if it fits, 3 if not.

    `simulate` takes the peak from a simulated step, as is always done on a GPU for architectures that the closed form
    does not know. Raises UserError when the base's config.json cannot be had, or nothing can be simulated.
    """
    shape = known.find(config)
    found = plan(config, shape, budget, way=way)
    if simulate or simulation.wanted(found, shape):
        found = simulation.refined(found, config, shape, known.config_json(config))
    helpful = advice.changes(config, shape, budget) if way == "ours" else []
    if as_json:
        print(json.dumps(found.as_dict() | {"changes": [change.as_dict() for change in helpful]}, indent=1))
    else:
        print("\n".join(lines(config, found, helpful)))
    return EXIT_FITS if found.fits else EXIT_DOES_NOT_FIT


def lines(config: RunConfig, found: MemoryPlan, helpful: list[advice.Change]) -> list[str]:
    """The plan as text: a bar, a line a term, the verdict, and the changes."""
    utf8 = "utf" in (sys.stdout.encoding or "").lower()
    marks = _MARKS if utf8 else "#=%+o*x:^~-."
    named = dict(zip((term.key for term in found.terms), marks, strict=False))
    rows = f"{found.rows} x {found.length} tokens, checkpointing {found.checkpointing}"
    head = f"{config.base_model}: {rows}, {'the stock way' if found.way == 'stock' else 'as this program trains'}"
    body = [
        f"  {named[t.key]} {t.label:<30}{gigabytes(t.bytes):>9}{_share(t.bytes, found.total):>5}" for t in found.terms
    ]
    out = [
        head,
        "",
        f"  [{_bar(found, named)}]",
        "",
        *body,
        f"    {'Peak, ' + found.moment:<30}{gigabytes(found.total):>9}",
    ]
    if found.budget.correction != 1.0:
        seen = calibration.of(found.budget.gpu)
        out.append(f"    corrected by {seen.factor:.2f}, from {seen.runs} runs here that were {seen.error:.0%} off")
    out += ["", _verdict(found)]
    if helpful:
        out += ["", "Changes that make it smaller:"]
        out += [f"  {change.text}{' · fits then' if change.fits and not found.fits else ''}" for change in helpful]
        out.append(advice.RANK_AND_BIAS)
    return out


def _bar(found: MemoryPlan, named: dict[str, str]) -> str:
    """The terms side by side, to scale with the free memory; a `|` stands where that ends."""
    scale = _BAR / max(found.total, found.budget.free)
    bar, filled = "", 0.0
    for term in found.terms:
        filled += max(term.bytes, 0) * scale
        bar += named[term.key] * (round(filled) - len(bar))
    bar = bar.ljust(_BAR)[:_BAR]
    if found.total > found.budget.free:
        end = min(round(found.budget.free * scale), _BAR - 1)
        bar = f"{bar[:end]}|{bar[end:]}"
    return bar


def _share(size: int, total: int) -> str:
    return f"{size / total:.0%}"


def _verdict(found: MemoryPlan) -> str:
    remark = f"; {found.remark}" if found.remark else ""
    return f"{found.words}: {found.figures} free on {found.budget.name}{remark}."
