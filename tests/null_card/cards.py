"""The cards that the null runtime can be, as torch asks for them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """Compute capability, streaming multiprocessors, memory in MiB, and shared memory per block in bytes."""

    name: str
    capability: tuple[int, int]
    processors: int
    mebibytes: int
    shared: int

    def environment(self, devices: int = 1, held_by_others: int = 0) -> dict[str, str]:
        """The variables that make the null runtime this card, `devices` times; `held_by_others` in MiB of each."""
        major, minor = self.capability
        return {
            "NULLCUDA_NAME": self.name,
            "NULLCUDA_MAJOR": str(major),
            "NULLCUDA_MINOR": str(minor),
            "NULLCUDA_SMS": str(self.processors),
            "NULLCUDA_MIB": str(self.mebibytes),
            "NULLCUDA_SMEM": str(self.shared),
            "NULLCUDA_DEVICES": str(devices),
            "NULLCUDA_OTHERS_MIB": str(held_by_others),
        }


T4 = Card("Tesla T4", (7, 5), 40, 15360, 65536)
RTX_4060_TI = Card("NVIDIA GeForce RTX 4060 Ti", (8, 9), 34, 16380, 101376)
RTX_5090 = Card("NVIDIA GeForce RTX 5090", (12, 0), 170, 32607, 101376)
A100 = Card("NVIDIA A100-SXM4-40GB", (8, 0), 108, 40960, 166912)
H100 = Card("NVIDIA H100 80GB HBM3", (9, 0), 132, 81559, 232448)
