"""The devices of this machine, determined without importing torch in this process.

torch decides which devices there are (`torch_view`); nvidia-smi, where available, reports how much of their memory is free at the moment.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from qlora_gui import nvidia, torch_view
from qlora_gui.formatting import gigabytes
from qlora_gui.nvidia import Gpu, Holder, holders
from qlora_gui.torch_view import Card, View

__all__ = ["Device", "Holder", "cores", "cpu", "devices", "holders", "remark", "settle", "settled", "trouble", "view"]

USE_CPU = "ACCELERATE_USE_CPU"  # accelerate's own word for a CPU on purpose
_CACHE_SECONDS = 3.0
_FREE_SECONDS = 60.0  # without nvidia-smi only a child that imports torch can measure free memory
_PCI = Path("/sys/bus/pci/devices")
_DEVICE_FILES = Path("/dev")
_NVIDIA, _DISPLAY = "0x10de", "0x03"
# The oldest driver of each CUDA, from NVIDIA's table of CUDA's minor version compatibility.
_DRIVERS = {13: 580, 12: 525, 11: 450}


@dataclass(frozen=True)
class Device:
    """A device for training. Sizes in bytes. `kind` is torch's word; `number` is torch's, by which the knob `gpu` may
    name it; `address` distinguishes it from others of its name: its uuid, or else its place on the bus; "cpu" of the CPU."""

    name: str
    kind: str  # "cuda" (NVIDIA and AMD), "xpu", "mps" or "cpu"
    total: int
    free: int
    number: int = 0
    address: str = ""
    capability: str = ""  # CUDA's, like "7.5", where torch has reported it
    asked: float = 0.0  # when `free` was measured, in seconds since the epoch; 0 for now

    def __str__(self) -> str:
        age = (time.time() - self.asked) / 60 if self.asked else 0
        then = f" {age:.0f} min ago" if age >= 2 else ""
        return f"{self.name} · {gigabytes(self.free)} of {gigabytes(self.total)} free{then}"


_asking = torch_view.Asking()
_last: tuple[float, list[Gpu]] | None = None


def devices() -> list[Device]:
    """The devices that torch computes on, in its order: GPUs, or else the CPU. Never waits for torch.

    Until torch has answered (`settled`) these are the GPUs that nvidia-smi lists.
    """
    if cpu_on_purpose():
        return [cpu()]
    listed, seen = _gpus(), view()
    if seen is None:
        return _presumed(listed) or [cpu()]
    if seen.error:
        return [cpu()]
    return [_device(card, seen, listed) for card in seen.usable] or [cpu()]


def view() -> View | None:
    """Torch's view of the devices, None while it has not been asked; then a child process asks it in the background."""
    cards = _named(_gpus())
    if not _worth_asking():
        return torch_view.installed()
    _asking.in_background(cards)
    return _asking.known(cards)


def settled() -> bool:
    """Whether torch has answered, or need not be asked."""
    return cpu_on_purpose() or view() is not None


def is_stale() -> bool:
    """Whether only asking torch again (`settle`) can show how much memory is free now.

    That takes some memory of every GPU for a moment: do not ask while a run trains.
    """
    answer = None if cpu_on_purpose() else view()
    return answer is not None and _is_stale(answer)


def settle(seconds: float = 180.0, fresh: bool = False, anew: bool = False) -> bool:
    """Wait until torch has answered, with `fresh` also for the current free memory; returns whether it has. `anew` asks
    again even if the known answer is not stale."""
    cards = _named(_gpus())
    if cpu_on_purpose() or not _worth_asking():
        return True
    answer = _asking.known(cards)
    thread = _asking.in_background(cards, fresh=anew or (fresh and answer is not None and _is_stale(answer)))
    if thread is not None:
        thread.join(seconds)
    return _asking.known(cards) is not None


def cpu_on_purpose() -> bool:
    """Whether the environment explicitly asks for the CPU."""
    return os.environ.get(USE_CPU, "").lower() in ("true", "1", "yes", "on")


def trouble(seen: View | None = None) -> str:
    """Why a GPU of this machine is not used, and the way out, as a sentence; "" where all is well or not yet known.

    `seen` is torch's view where the caller has it already.
    """
    answer = seen or view()
    if cpu_on_purpose() or answer is None or answer.usable:
        return ""
    if answer.cards:
        card = answer.cards[0]
        which = f"only from {card.oldest} on" if card.oldest else f"only up to {card.newest}"
        return (
            f"This machine's GPU ({card.name}) is not used, because torch {answer.version} has no kernels for its compute capability "
            f"{card.capability}, {which}: install a torch that has them (pytorch.org, Get started)."
        )
    listed = _gpus()
    there = _there(listed)
    if not there:
        return f"{answer.error} Install it as the README says." if answer.error else ""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not listed and (why := _out_of_reach()):
        return f"{there} is not used, because {why}."
    if answer.error:
        return f"{there} is not used. {answer.error}"
    if answer.built_for in ("CPU", "XPU"):
        return (
            f"{there} is not used, because the installed torch {answer.version} is built for {answer.built_for}: install the build "
            "for this GPU (pip install --force-reinstall torch takes NVIDIA's on Linux)."
        )
    if answer.is_rocm:
        return f"{there} is not used, because the installed torch {answer.version} is built for ROCm: install the build for CUDA."
    if (old := _old_driver(answer, listed)) is not None:
        return old
    if hidden is not None:
        how = "is empty" if not hidden.strip() else f"is '{hidden}'"
        return f"{there} is not used, because CUDA_VISIBLE_DEVICES {how} and hides it: unset that, or name a GPU that is there."
    warning = f" (torch says: {answer.warning.rstrip('.')})" if answer.warning else ""
    return f"{there} is not used, because torch {answer.version} does not see it{warning}: look whether nvidia-smi lists it here too."


def remark() -> str:
    """What does not work, or has not been tried, on this kind of device; "" for NVIDIA's and for CPUs."""
    answer = view()
    return "" if answer is None or cpu_on_purpose() else remark_on(answer.kind if answer.cards else "", answer.is_rocm)


def remark_on(kind: str, is_rocm: bool) -> str:
    """`remark` for a kind of device, by torch's word."""
    if kind == "cuda" and is_rocm:
        return (
            "AMD GPUs run through the same code as NVIDIA's, which has not been tried here: --headless-check says what works. "
            "Who else holds memory is not shown."
        )
    if kind == "xpu":
        return (
            "Intel GPUs train and compare through torch's XPU, which has not been tried here: --headless-check says what works. "
            "Memory is planned as on a CPU; the longest batch is not tried first."
        )
    if kind == "mps":
        return (
            "Apple GPUs are used through torch's MPS in fp16, which has not been tried here: --headless-check says what works. "
            "Memory is planned as on a CPU; the longest batch is not tried first."
        )
    return ""


def _device(card: Card, seen: View, listed: Sequence[Gpu]) -> Device:
    """A card of torch with the free memory that nvidia-smi gives, where that lists it too."""
    gpu = _same(card, listed) if seen.kind == "cuda" and not seen.is_rocm else None
    free, asked = card.free, seen.asked
    if gpu is not None and gpu.free is not None:
        free, asked = min(gpu.free, card.total), 0.0
    if seen.kind == "mps":
        free, asked = psutil.virtual_memory().available, 0.0
    address = card.uuid or card.bus
    return Device(card.name, seen.kind, card.total, free, card.number, address, card.capability, asked)


def _same(card: Card, listed: Sequence[Gpu]) -> Gpu | None:
    """The GPU of nvidia-smi that is torch's card: by uuid, else by bus; where neither is known, by position.

    A MIG instance shares the bus of its card but not its memory: it matches none of them.
    """
    if "MIG" in card.name:
        return None
    by_uuid = [gpu for gpu in listed if card.uuid and gpu.uuid.removeprefix("gpu-") == card.uuid]
    by_bus = [gpu for gpu in listed if card.bus and gpu.bus == card.bus and not (card.uuid and gpu.uuid)]
    nameless = [gpu for gpu in listed if not gpu.uuid and not gpu.bus]
    by_place = [nameless[card.number]] if len(nameless) == len(listed) > card.number else []
    match = next(iter(by_uuid + by_bus + by_place), None)
    alike = match is not None and (match.total is None or abs(match.total - card.total) < 0.1 * card.total)
    return match if alike else None


def _presumed(listed: Sequence[Gpu]) -> list[Device]:
    """The devices as far as nvidia-smi alone knows them."""
    measured = [gpu for gpu in listed if gpu.total is not None and gpu.free is not None]
    return [
        Device(gpu.name, "cuda", gpu.total or 0, gpu.free or 0, number, gpu.uuid.removeprefix("gpu-") or gpu.bus)
        for number, gpu in enumerate(measured)
    ]


def _is_stale(answer: View) -> bool:
    """Whether the free memory is only known from an answer of torch that is old."""
    if answer.kind not in ("cuda", "xpu") or time.time() - answer.asked < _FREE_SECONDS:
        return False
    listed = _gpus()
    matches = [_same(card, listed) if answer.kind == "cuda" and not answer.is_rocm else None for card in answer.cards]
    return any(gpu is None or gpu.free is None for gpu in matches)


def _worth_asking() -> bool:
    """Whether torch can see anything but a CPU: its build for CPUs cannot."""
    return torch_view.installed().built_for not in ("CPU", "")


def _named(listed: Sequence[Gpu]) -> list[str]:
    return [nvidia.driver(), *(f"{gpu.name} {gpu.uuid} {gpu.bus} {gpu.driver}" for gpu in listed)]


def _gpus() -> list[Gpu]:
    """nvidia-smi's list, asked again after a few seconds."""
    global _last  # a cache of what the machine says, never of what a run does
    now = time.monotonic()
    if _last is None or now - _last[0] > _CACHE_SECONDS:
        _last = (now, nvidia.gpus())
    return _last[1]


def _there(listed: Sequence[Gpu]) -> str:
    """The GPUs that this machine has, whether torch sees them or not; "" where there is none."""
    if listed:
        names = list(dict.fromkeys(gpu.name for gpu in listed))
        return f"This machine's GPU ({', '.join(names)})"
    return "This machine's NVIDIA GPU" if _has_nvidia_card() else ""


def _out_of_reach() -> str:
    """Why a GPU that is in this machine cannot be used by anybody here, whatever torch is installed; else ""."""
    if not nvidia.driver():
        return "no driver is loaded: install NVIDIA's, 580 or newer for CUDA 13"
    if not any(_DEVICE_FILES.glob("nvidia[0-9]*")):
        return "this container or session was not given it: start it with the GPU (docker: --gpus all)"
    return ""


def _has_nvidia_card() -> bool:
    try:
        return any(
            (card / "vendor").read_text(encoding="ascii").strip() == _NVIDIA
            and (card / "class").read_text(encoding="ascii").startswith(_DISPLAY)
            for card in _PCI.iterdir()
        )
    except OSError:
        return False


def _old_driver(answer: View, listed: Sequence[Gpu]) -> str | None:
    """The sentence on a driver that is too old for the CUDA of this torch."""
    have = next((gpu.driver for gpu in listed if gpu.driver), "") or nvidia.driver()
    cuda = answer.built_for.removeprefix("CUDA ").partition(".")[0]
    needed = _DRIVERS.get(int(cuda)) if cuda.isdigit() else None
    major = have.partition(".")[0]
    if needed is None or not major.isdigit() or int(major) >= needed:
        return None
    return (
        f"{_there(listed)} is not used: torch {answer.version} needs NVIDIA driver {needed} or newer, and this one is {have}. "
        "Update the driver, or install a torch that is built for an older CUDA and has kernels for this GPU (pytorch.org, "
        "Get started)."
    )


def cpu() -> Device:
    """The CPU with this machine's memory."""
    memory = psutil.virtual_memory()
    return Device(f"CPU, {cores()} cores", "cpu", memory.total, memory.available, address="cpu")


def cores() -> int:
    """The cores that this process may use."""
    allowed = psutil.Process().cpu_affinity() if hasattr(psutil.Process, "cpu_affinity") else None
    return len(allowed or []) or psutil.cpu_count() or 1
