"""One training step as the memory plan sees it: a base's shape, a run's knobs, and the rows of its longest batch."""

from dataclasses import dataclass
from typing import Literal

from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.families.family import Family, Linear, Norm
from qlora_gui.memory.budget import Budget
from qlora_gui.memory.model_shape import Shape
from qlora_gui.step_rules import checkpoint_interval

Way = Literal["ours", "stock"]


@dataclass(frozen=True)
class Step:
    """Sizes in numbers or bytes are for all `tokens` of the batch; `number` is the size of one in the compute dtype.

    `flash` is as in Budget; `free` is the device's free memory, for what is only kept where there is plenty.
    """

    shape: Shape
    config: RunConfig
    rows: int
    length: int
    way: Way
    checkpointing: str
    number: int
    cuda: bool
    flash: bool
    free: int

    @property
    def family(self) -> Family:
        return self.shape.family

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def stock(self) -> bool:
        return self.way == "stock"

    @property
    def stream(self) -> int:
        """Bytes of a number in the residual stream: an embedding upcast to fp32 makes all of it fp32."""
        return 4 if self.stock else self.number

    @property
    def own_logits(self) -> bool:
        """Whether all logits of the batch are made at once."""
        return self.stock or self.family.own_logits

    @property
    def capped(self) -> bool:
        """Whether scores and logits go through a tanh, which keeps its output."""
        return self.family.capped

    @property
    def masked(self) -> bool:
        """Whether attention gets a mask beyond the causal order: packed rows, and padding the stock way."""
        return self.stock or self.config.packing

    @property
    def repeats(self) -> bool:
        """Whether keys and values are repeated for every query head that shares them (models/attention.py)."""
        return self.masked or self.eager or (self.cuda and not self.flash)

    @property
    def eager(self) -> bool:
        """Whether attention keeps its scores."""
        if self.family.own_attention and self.stock:
            return True
        if self.capped and self.config.attention != "sdpa":
            return True
        short = not self.cuda and self.number < 4 and self.length <= self.family.cpu_eager_up_to
        return self.config.attention == "eager" or (self.config.attention == "auto" and short)

    @property
    def every(self) -> int:
        """Layers number every - 1, 2 * every - 1, ... are recomputed; 0: none is."""
        return checkpoint_interval(self.checkpointing)

    @property
    def recomputed(self) -> int:
        """How many layers are recomputed in the backward pass instead of kept."""
        return self.shape.layers // self.every if self.every else 0

    @property
    def first_is_recomputed(self) -> bool:
        return self.every == 1

    @property
    def last_is_recomputed(self) -> bool:
        return bool(self.every) and self.shape.layers % self.every == 0

    def has_lora(self, linear: Linear) -> bool:
        """As PEFT matches names: the whole path of a module, or its end after a dot."""
        wanted = self.config.target_modules
        return wanted == "all-linear" or any(f".{linear.name}".endswith(f".{name}") for name in wanted)

    @property
    def lora(self) -> tuple[Linear, ...]:
        """The linears of one layer that get LoRA."""
        return tuple(linear for linear in self.shape.linears if self.has_lora(linear))

    def trains_bias(self, part: Linear | Norm) -> bool:
        """Whether a part's own bias is trained."""
        if not part.bias or self.config.bias == "none":
            return False
        return self.config.bias == "all" or (isinstance(part, Linear) and self.has_lora(part))


def make_step(
    config: RunConfig, shape: Shape, budget: Budget, rows: int, length: int, way: Way, checkpointing: str
) -> Step:
    """The step of a run. Raises UserError when target_modules names no linear of the base."""
    cuda = budget.kind == "cuda"
    step = Step(shape, config, rows, length, way, checkpointing, budget.number, cuda, budget.flash, budget.free)
    if not step.lora:
        names = ", ".join(sorted({linear.name.rpartition(".")[2] for linear in shape.linears}))
        raise UserError(f"LoRA cannot be put on {config.target_modules}: this base has the linears {names}.")
    return step
