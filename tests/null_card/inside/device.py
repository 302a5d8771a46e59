"""What this process's machine is said to be, and the part of the check that computes."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from qlora_gui import hardware
from qlora_gui.check import worker
from qlora_gui.memory import budget
from qlora_gui.runs import gpus


def seen(gpu: str = "") -> dict[str, Any]:
    """The devices, the budget of a plan, what is wrong, and what a child would be given."""
    hardware.settle()
    return {
        "devices": [asdict(device) for device in hardware.devices()],
        "budget": asdict(budget.here(gpu)),
        "trouble": hardware.trouble(),
        "given": gpus.environment(gpu),
    }


def checked(folder: str) -> list[dict[str, Any]]:
    """The check's lines on the device, but for its speed, which is the CPU's here."""
    Path(folder).mkdir(exist_ok=True)
    return [line.as_dict() for line in worker.on_device(Path(folder), None)]
