"""What memory there is: this machine's devices, and the usual cards to plan for."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qlora_gui import hardware
from qlora_gui.errors import UserError
from qlora_gui.memory import calibration

GIB = 2**30
CARDS = (8, 12, 16, 24, 40, 80)
_UNITS = {"": GIB, "g": GIB, "gb": GIB, "gib": GIB, "m": 2**20, "mb": 2**20, "mib": 2**20}


@dataclass(frozen=True)
class Budget:
    """The memory of a device, in bytes. `gpu` is its name where it is a real GPU of this machine.

    `number` is the size of a number it computes with: 2 for bf16 and fp16, 4 for fp32. `correction` is what measured
    peaks of earlier runs on it were of the predicted ones (1.0 without any).
    """

    name: str
    total: int
    free: int
    kind: Literal["cuda", "cpu"] = "cuda"
    gpu: str = ""
    number: int = 2
    correction: float = 1.0


def card(gib: float) -> Budget:
    """A GPU with that much memory, all of it free: a card of "16 GB" has 16 GiB."""
    size = int(gib * GIB)
    return Budget(f"{gib:g} GB", size, size)


def here() -> Budget:
    """This machine's GPU (the first, as training takes it), or else its CPU."""
    device = hardware.devices()[0]
    if device.kind == "cuda":
        factor = calibration.correction(device.name)
        return Budget(device.name, device.total, device.free, "cuda", device.name, correction=factor)
    return Budget(device.name, device.total, device.free, "cpu", number=2 if _cpu_has_bf16() else 4)


def targets() -> dict[str, Budget]:
    """What one can plan for, by its label: "this one" first, then the usual cards."""
    return {"this one": here()} | {budget.name: budget for budget in map(card, CARDS)}


def parse(text: str) -> Budget:
    """`16GB`, `16`, `15.5GiB` or `16000MB` -> a card. GB means GiB, as cards are sold. Raises UserError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    unit = _UNITS.get(match.group(2)) if match else None
    size = int(float(match.group(1)) * unit) if match and unit else 0
    if size <= 0:
        raise UserError(f"--memory '{text}' is no amount of memory: write it like 16GB, 15.5GiB or 16000MB.")
    return card(size / GIB)


def _cpu_has_bf16() -> bool:
    """Whether training computes in bf16 on this CPU: the flags that torch asks for (model/device.py)."""
    try:
        flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_tile" in flags
