"""Will it fit: the memory of a run in named terms, from its config and the base's shape alone, in milliseconds."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from qlora_gui.config import RunConfig
from qlora_gui.formatting import gigabytes
from qlora_gui.memory import step_sizes as steps
from qlora_gui.memory import terms as parts
from qlora_gui.memory.budget import Budget
from qlora_gui.memory.calibration import UNCORRECTED, Calibration
from qlora_gui.memory.model_shape import Shape
from qlora_gui.memory.step_sizes import Way
from qlora_gui.step_rules import GPU_MULTIPLE

Verdict = Literal["fits", "tight", "does not fit"]
TIGHT = 0.9  # of the free memory: above it, fragments and other programs decide
LEVELS = ("none", "every-4", "every-3", "every-2", "all")  # of checkpointing, the cheapest in time first


@dataclass(frozen=True)
class Term:
    """One cause of memory at the peak. `key` is stable, `label` is for people."""

    key: str
    label: str
    bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """The peak of a step, in bytes. `terms` sum up to `total` and always come in the same order.

    `moment` says in words when the peak comes: a term that is not held at that moment has 0 bytes. `uncorrected` is
    what torch's allocator is expected to report (no context, no correction): what calibration compares. `correction` is
    what runs of similar size on this GPU measured.
    """

    terms: tuple[Term, ...]
    total: int
    uncorrected: int
    moment: str
    budget: Budget
    verdict: Verdict
    way: Way
    checkpointing: str
    rows: int
    length: int
    correction: Calibration = UNCORRECTED

    @property
    def fits(self) -> bool:
        """Whether it runs, be it tightly."""
        return self.verdict != "does not fit"

    @property
    def missing(self) -> int:
        """Bytes that are missing, 0 where it fits."""
        return max(self.total - self.budget.free, 0)

    @property
    def words(self) -> str:
        """The verdict, to begin a sentence with."""
        return {"fits": "Fits", "tight": "Fits, but tightly", "does not fit": "Does not fit"}[self.verdict]

    @property
    def figures(self) -> str:
        """What the verdict rests on: "13.4 GB of 16.0 GB"."""
        return f"{gigabytes(self.total)} of {gigabytes(self.budget.free)}"

    @property
    def remark(self) -> str:
        """What to know besides, "" where it fits."""
        return {
            "fits": "",
            "tight": "memory fragmentation or another program may end the run",
            "does not fit": f"{gigabytes(self.missing)} too much",
        }[self.verdict]

    def __str__(self) -> str:
        return f"{self.figures} free on {self.budget.name}: {self.verdict}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "verdict": self.verdict,
            "total": self.total,
            "free": self.budget.free,
            "budget": {"name": self.budget.name, "total": self.budget.total, "kind": self.budget.kind},
            "correction": self.correction.factor,
            "terms": {term.key: term.bytes for term in self.terms},
            "peak": self.moment,
            "way": self.way,
            "gradient_checkpointing": self.checkpointing,
            "rows": self.rows,
            "length": self.length,
        }


def verdict_of(total: int, free: int) -> Verdict:
    """fits up to 90% of the free bytes, tight up to all of them."""
    if total > free:
        return "does not fit"
    return "tight" if total > TIGHT * free else "fits"


def plan(
    config: RunConfig,
    shape: Shape,
    budget: Budget,
    *,
    rows: int | None = None,
    length: int | None = None,
    way: Way = "ours",
    checkpointing: str | None = None,
) -> MemoryPlan:
    """The peak of a run's longest batch: `rows` x `length` tokens, by default batch_size x max_length.

    `way` is ours, or stock: PEFT's k-bit preparation, the loss over all logits, transformers' own attention.
    `checkpointing` overrides the config's; auto takes the cheapest that fits. Raises UserError when
    target_modules names no linear of the base.
    """
    rows, length = rows or config.batch_size, length or config.max_length
    if way == "ours" and budget.kind == "cuda":
        length += -length % GPU_MULTIPLE
    wanted = checkpointing or config.gradient_checkpointing
    if way == "stock":
        wanted = "none" if wanted == "none" else "all"  # the usual way knows no other
    if wanted == "auto":
        return _cheapest(config, shape, budget, rows, length)
    return _plan(config, shape, budget, rows, length, way, wanted)


def simulated(planned: MemoryPlan, peak: int) -> MemoryPlan:
    """The plan with a simulated peak (torch's allocator, in bytes) in place of the closed form's."""
    more = Term("simulation", "Beyond the closed form", round((peak - planned.uncorrected) * planned.correction.factor))
    total = planned.total + more.bytes
    verdict = verdict_of(total, planned.budget.free)
    return replace(planned, terms=(*planned.terms, more), total=total, uncorrected=peak, verdict=verdict)


def _cheapest(config: RunConfig, shape: Shape, budget: Budget, rows: int, length: int) -> MemoryPlan:
    """With the first of none, every-4, every-3, every-2, all that fits with room to spare; all if none does. On a CPU: none."""
    if budget.kind == "cpu":
        return _plan(config, shape, budget, rows, length, "ours", "none")
    for level in LEVELS:
        candidate = _plan(config, shape, budget, rows, length, "ours", level)
        if candidate.verdict == "fits":
            return candidate
    return candidate


def _plan(
    config: RunConfig, shape: Shape, budget: Budget, rows: int, length: int, way: Way, checkpointing: str
) -> MemoryPlan:
    step = steps.make_step(config, shape, budget, rows, length, way, checkpointing)
    moment, sizes = max(parts.moments(step), key=lambda pair: sum(pair[1].values()))
    terms = [Term(key, label, sizes.get(key, 0)) for key, label in parts.LABELS.items()]
    uncorrected = sum(sizes.values()) - sizes["framework"]
    correction = budget.correction.at(uncorrected)
    if correction.factor != 1.0:
        terms.append(Term("correction", "Correction from earlier runs", round(uncorrected * (correction.factor - 1))))
    total = sum(term.bytes for term in terms)
    return MemoryPlan(
        terms=tuple(terms),
        total=total,
        uncorrected=uncorrected,
        moment=parts.MOMENTS[moment],
        budget=budget,
        verdict=verdict_of(total, budget.free),
        way=way,
        checkpointing=checkpointing,
        rows=rows,
        length=length,
        correction=correction,
    )
