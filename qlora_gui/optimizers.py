"""The optimizers of a run, one row each: their names, what memory they take, what they need, and how they are made."""

from collections.abc import Mapping
from dataclasses import dataclass, field

_BLOCK = 256  # 8-bit states that share one fp32
_SMALL = 4096  # bitsandbytes keeps the states of smaller parameters in fp32 (min_8bit_size)


@dataclass(frozen=True)
class Optimizer:
    """`name` is transformers' for it; `implementation` the class, made with `options`, that takes the simulated step.

    `states` are the numbers kept for each trained one: in fp32, or in 8 bits with one fp32 per block. `scratch` are the bytes
    for each trained number that a step takes on a GPU for a while. Of one `algorithm` all learn the same. `unpaged` names
    the same optimizer with its states always on the GPU; that of a paged one is counted as if they were.
    """

    name: str
    implementation: str
    options: Mapping[str, bool] = field(default_factory=dict)
    algorithm: str = "AdamW"
    states: int = 2
    eight_bit: bool = False
    scratch: int = 0
    needs_cuda: bool = False
    unpaged: str = ""

    @property
    def paged(self) -> bool:
        return bool(self.unpaged)

    def state_bytes(self, count: int) -> int:
        """Bytes of the states of a parameter of `count` numbers."""
        if self.eight_bit and count >= _SMALL:
            return self.states * (count + 4 * -(-count // _BLOCK))
        return self.states * 4 * count


# The first is the default. An unfused AdamW makes the denominators of all parameters at once, in fp32.
OPTIMIZERS = {
    row.name: row
    for row in (
        Optimizer("adamw_torch_fused", "torch.optim.AdamW", {"fused": True}),
        Optimizer("adamw_torch", "torch.optim.AdamW", {"foreach": True}, scratch=4),
        Optimizer("adamw_8bit", "bitsandbytes.optim.AdamW8bit", eight_bit=True),
        Optimizer(
            "paged_adamw_8bit", "bitsandbytes.optim.AdamW8bit", eight_bit=True, needs_cuda=True, unpaged="adamw_8bit"
        ),
    )
}
DEFAULT = next(iter(OPTIMIZERS))


def leaner(name: str) -> Optimizer | None:
    """The unpaged optimizer of the same algorithm with the smallest states, if they are smaller than those of `name`."""
    own = OPTIMIZERS[name]
    alike = [row for row in OPTIMIZERS.values() if row.algorithm == own.algorithm and not row.paged]
    best = min(alike, key=lambda row: row.state_bytes(_SMALL), default=own)
    return best if best.state_bytes(_SMALL) < own.state_bytes(_SMALL) else None
