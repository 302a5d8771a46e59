"""What to change so that a run needs less memory: each change with the bytes it saves, by planning again with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qlora_gui import config as configs
from qlora_gui import optimizers
from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.formatting import amount
from qlora_gui.memory import known_models
from qlora_gui.memory.budget import Budget
from qlora_gui.memory.estimate import MemoryPlan, plan
from qlora_gui.memory.model_shape import Shape

RANK_AND_BIAS = (
    "Rank and biases barely move memory: sequence length, micro-batch and the kept activations do. "
    "Choose them by what you want it to learn."
)
_STEP = 64  # tokens: lengths that are offered are multiples of it


@dataclass(frozen=True)
class Change:
    """One change of a run. `knobs` are RunConfig's names with their new values; `saves` is plan before - plan after.

    `text` is a sentence like "Micro-batch 1 with accumulation 16: -6.1 GB", `words` its first part. `learns_the_same`
    is False where the change touches what is learned (rank, biases, length, base), True where it costs only time.
    """

    knobs: dict[str, Any]
    words: str
    saves: int
    fits: bool
    learns_the_same: bool

    @property
    def text(self) -> str:
        return f"{self.words}: -{amount(self.saves)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "knobs": self.knobs,
            "text": self.text,
            "saves": self.saves,
            "fits": self.fits,
            "learns_the_same": self.learns_the_same,
        }

    def apply(self, config: RunConfig) -> RunConfig:
        """The run with this change."""
        return configs.make(config.model_dump() | self.knobs)


def changes(config: RunConfig, shape: Shape, budget: Budget) -> list[Change]:
    """Changes that lower the plan, the largest saving first.

    Where none that only costs time fits alone, a combination of such comes first, if one fits. With
    gradient_checkpointing auto the plan after a change may recompute fewer layers: the saving is computed with it.
    """
    before = plan(config, shape, budget)
    singles = [
        change
        for knobs, words, same in _candidates(config, shape, budget)
        if (change := _change(config, shape, budget, before, knobs, words, same)) is not None
    ]
    singles.sort(key=lambda change: -change.saves)
    combined = _combination(config, shape, budget, before, singles)
    return [combined, *singles] if combined else singles


def _candidates(config: RunConfig, shape: Shape, budget: Budget) -> Iterator[tuple[dict[str, Any], str, bool]]:
    """Knobs, their words, and whether the same is learned."""
    for batch in _smaller_batches(config.batch_size):
        accumulation = config.gradient_accumulation * config.batch_size // batch
        knobs = {"batch_size": batch, "gradient_accumulation": accumulation}
        yield knobs, f"Micro-batch {batch} with accumulation {accumulation}", True
    if config.gradient_checkpointing != "all":
        yield {"gradient_checkpointing": "all"}, "Recompute the activations of all layers", True
    if not config.double_quant and shape.stored_double is None:
        yield {"double_quant": True}, "Double quantization", True
    if config.attention == "eager":
        yield {"attention": "sdpa"}, "SDPA attention", True
    if leaner := optimizers.leaner(config.optimizer):
        yield {"optimizer": leaner.name}, "8-bit optimizer" if leaner.eight_bit else f"Optimizer {leaner.name}", True
    for length in _shorter(config, shape, budget):
        yield {"max_length": length}, f"Rows of at most {length} tokens", False
    if config.dropout:
        yield {"dropout": 0.0}, "No dropout, so no masks are kept", False
    if config.rank > 8:
        rank = max(config.rank // 2, 8)
        yield {"rank": rank}, f"Rank {rank}", False
    if config.bias != "none":
        yield {"bias": "none"}, "No trained biases", False
    for base in _smaller_bases(config, budget):
        yield {"base_model": base, "revision": ""}, f"The smaller base {base}", False


def _smaller_batches(batch: int) -> Iterator[int]:
    """Halves, and then 1: each divides `batch`, so that accumulation keeps rows x accumulation the same."""
    while batch > 1:
        batch = batch // 2 if batch % 2 == 0 else 1
        yield batch


def _smaller_bases(config: RunConfig, budget: Budget) -> Iterator[str]:
    """The next smaller known base of the series, and the largest that fits where that is another."""
    bases = known_models.smaller(config.base_model)
    yield from bases[:1]
    for base in bases:
        smaller = configs.make(config.model_dump() | {"base_model": base, "revision": ""})
        if plan(smaller, known_models.find(smaller), budget).fits:
            if base != bases[0]:
                yield base
            return


def _shorter(config: RunConfig, shape: Shape, budget: Budget) -> Iterator[int]:
    """Half the length, and the longest that fits where that is another."""
    half = config.max_length // 2 // _STEP * _STEP
    if half < 2 * _STEP:
        return
    yield half
    if plan(config, shape, budget).fits:
        return
    low, high = 2, config.max_length // _STEP  # in steps; memory grows with length, so the border can be halved for
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _fits_at(config, shape, budget, middle * _STEP) else (low, middle - 1)
    if low * _STEP not in (half, config.max_length) and _fits_at(config, shape, budget, low * _STEP):
        yield low * _STEP


def _fits_at(config: RunConfig, shape: Shape, budget: Budget, length: int) -> bool:
    return plan(config, shape, budget, length=length).fits


def _change(
    config: RunConfig,
    shape: Shape,
    budget: Budget,
    before: MemoryPlan,
    knobs: dict[str, Any],
    words: str,
    same: bool,
) -> Change | None:
    """A change with what it saves, or None where it saves nothing or the run is then not valid."""
    try:
        changed = configs.make(config.model_dump() | knobs)
        after = plan(changed, known_models.find(changed) if "base_model" in knobs else shape, budget)
    except UserError:
        return None
    saves = before.total - after.total
    if saves <= 0:
        return None
    checkpointing = knobs.get("gradient_checkpointing", config.gradient_checkpointing)
    if checkpointing == "auto" and after.checkpointing != before.checkpointing:
        words += f" (checkpointing can then be {after.checkpointing})"
    return Change(knobs, words, saves, after.fits, same)


def _combination(
    config: RunConfig, shape: Shape, budget: Budget, before: MemoryPlan, singles: list[Change]
) -> Change | None:
    """The mildest combination that fits and costs only time, where no single such change fits."""
    harmless = [change for change in singles if change.learns_the_same]
    if before.fits or any(change.fits for change in harmless):
        return None
    batches = [change for change in harmless if "batch_size" in change.knobs][::-1]  # the largest batch first
    leaner = [change for change in harmless if "optimizer" in change.knobs]
    always = [change for change in harmless if change not in batches and change not in leaner]
    for last in ([], leaner):
        for batch in ([], *([change] for change in batches)):
            parts = [*always, *batch, *last]
            knobs = {name: value for change in parts for name, value in change.knobs.items()}
            words = ", ".join(change.words for change in parts)
            combined = _change(config, shape, budget, before, knobs, words, True) if len(parts) > 1 else None
            if combined and combined.fits:
                return combined
    return None
