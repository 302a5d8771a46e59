"""QLORA_GUI_MEMORY_LIMIT=8GB: train as on a smaller card, or leave room for another program.

On a GPU torch's allocator refuses what goes beyond. Without one the bytes of all tensors are counted instead, which
is slow: it is for testing what happens when a run is out of memory.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace

import torch

from qlora_gui.memory import budget as budgets
from qlora_gui.memory.budget import Budget
from qlora_gui.models import device as devices
from qlora_gui.simulation.live_bytes import LiveBytes

_VARIABLE = "QLORA_GUI_MEMORY_LIMIT"


def wanted() -> int | None:
    """The limit in bytes, or None. Raises UserError where it cannot be read."""
    text = os.environ.get(_VARIABLE)
    return budgets.parse(text).total if text else None


def budget(device: torch.device) -> Budget:
    """What this process may fill of a device."""
    here, limit = budgets.of_cpu(), wanted()
    if device.type == "cuda":
        free, total = devices.free_and_total(device)
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        free += torch.cuda.memory_reserved(device)
        here = budgets.of_gpu(torch.cuda.get_device_name(device), total, free, capability)
    elif device.type == "xpu":  # planned by a CPU's rules, as MPS is, whose memory is the CPU's
        free, total = devices.free_and_total(device)
        here = replace(here, name=torch.xpu.get_device_name(device), free=free, total=total, number=2)
    return replace(here, free=min(limit, here.free), total=min(limit, here.total)) if limit else here


def peak(device: torch.device) -> int | None:
    """Bytes torch's allocator has held at most, None without a GPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


@contextlib.contextmanager
def enforce(device: torch.device) -> Iterator[None]:
    """Within, allocations beyond the limit, or beyond the card, raise torch.OutOfMemoryError."""
    limit = wanted()
    devices.keep_on_card(device, limit)
    with _Limited(limit) if limit and device.type == "cpu" else contextlib.nullcontext():
        yield


class _Limited(LiveBytes):
    def __init__(self, limit: int):
        super().__init__()
        self.limit = limit

    def _note(self) -> None:
        super()._note()
        if self.live > self.limit:
            raise torch.OutOfMemoryError(f"{self.live} bytes of tensors, and {_VARIABLE} allows {self.limit}.")
