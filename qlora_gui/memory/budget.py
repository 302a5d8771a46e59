"""What memory there is: this machine's devices, and the usual cards to plan for."""

import re
from dataclasses import dataclass
from typing import Literal

from qlora_gui import hardware
from qlora_gui.errors import UserError
from qlora_gui.memory import calibration
from qlora_gui.memory.calibration import NO_RUNS, Correction
from qlora_gui.runs import gpus
from qlora_gui.system import processes

GIB = 2**30
CARDS = (8, 12, 16, 24, 40, 80)
_FLASH_FROM = 8.0  # CUDA compute capability: Ampere
_UNITS = {"": GIB, "g": GIB, "gb": GIB, "gib": GIB, "m": 2**20, "mb": 2**20, "mib": 2**20}


@dataclass(frozen=True)
class Budget:
    """The memory of a device, in bytes. `gpu` is its name where it is a real GPU of this machine.

    `number` is the size of a number it computes with: 2 for bf16 and fp16, 4 for fp32. `flash`: torch has flash attention
    for it, the one kernel that reads keys and values which several query heads share as they are. `correction` knows
    what measured peaks of earlier runs on it were of the predicted ones.
    """

    name: str
    total: int
    free: int
    kind: Literal["cuda", "cpu"] = "cuda"
    gpu: str = ""
    number: int = 2
    flash: bool = True
    correction: Correction = NO_RUNS

    @property
    def is_here(self) -> bool:
        """Whether it is a device of this machine, and not a card by its size."""
        return bool(self.gpu) or self.kind == "cpu"


def card(gib: float) -> Budget:
    """A GPU with that much memory, all of it free: a card of "16 GB" has 16 GiB."""
    size = int(gib * GIB)
    return Budget(f"{gib:g} GB", size, size)


def here(gpu: str = "") -> Budget:
    """What this machine trains on: the GPU that the knob `gpu` names, by default the one with the most free memory, or else its CPU."""
    device = gpus.chosen(gpu)
    if device.kind == "cuda":
        return of_gpu(device.name, device.total, device.free, device.capability)
    if device.kind == "cpu":
        return of_cpu()
    return Budget(device.name, device.total, device.free, "cpu")  # XPU and MPS: planned by a CPU's rules


def of_gpu(name: str, total: int, free: int, capability: str = "") -> Budget:
    """A real CUDA (or ROCm) GPU of this machine, by torch's name for it; bytes. `capability` like "7.5", "" if unknown."""
    flash = not capability or float(capability) >= _FLASH_FROM
    return Budget(name, total, free, "cuda", name, flash=flash, correction=calibration.correction(name))


def of_cpu() -> Budget:
    """This machine's CPU and memory."""
    device = hardware.cpu()
    return Budget(device.name, device.total, device.free, "cpu", number=2 if _cpu_has_bf16() else 4)


def targets(gpu: str = "") -> dict[str, Budget]:
    """What one can plan for, by its label: "this one" first (see `here`), then the usual cards."""
    return {"this one": here(gpu)} | {budget.name: budget for budget in map(card, CARDS)}


def parse(text: str) -> Budget:
    """`16GB`, `16`, `15.5GiB` or `16000MB` -> a card. GB means GiB, as cards are sold. Raises UserError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    unit = _UNITS.get(match.group(2)) if match else None
    size = int(float(match.group(1)) * unit) if match and unit else 0
    if size <= 0:
        raise UserError(f"--memory '{text}' is not an amount of memory: write it like 16GB, 15.5GiB or 16000MB.")
    return card(size / GIB)


def _cpu_has_bf16() -> bool:
    """Whether training computes in bf16 on this CPU: the flags that torch asks for (models/device.py)."""
    flags = processes.cpu_flags()
    return "avx512_bf16" in flags or "amx_tile" in flags
