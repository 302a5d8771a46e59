"""One process trains on one GPU: which one, and how its process is given that one alone."""

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from qlora_gui import hardware, torch_view
from qlora_gui.errors import UserError
from qlora_gui.hardware import Device

CARD_VARIABLE = "QLORA_GUI_CARD"  # says to a trainer which card it was given, and why
CPU = "cpu"


@dataclass(frozen=True)
class Given:
    """The card that a process was given. `address` identifies it, `text` explains the choice to people."""

    address: str
    text: str


def of_this_process() -> Given | None:
    """What the starter of this process gave it; None where it chose nothing."""
    try:
        card = json.loads(os.environ[CARD_VARIABLE])
        return Given(str(card["address"]), str(card["said"]))
    except (KeyError, ValueError, TypeError):
        return None


def gpus() -> list[Device]:
    """The GPUs of which a process can be given one."""
    return [device for device in hardware.devices() if device.kind in ("cuda", "xpu")]


def chosen(gpu: str = "", taken: Collection[str] = ()) -> Device:
    """The device that the knob `gpu` means, or the one with the most free memory of those whose address is not `taken`.

    Where there is no such GPU, or all are taken, as if it were empty, or none were: `check` is what refuses. Never
    waits for torch.
    """
    if gpu == CPU:
        return hardware.cpu()
    devices = hardware.devices()
    named = _named(gpu, devices) if gpu else None
    free = [device for device in devices if device.address not in taken] or devices
    return named or max(free, key=lambda device: (device.free, -device.number))


def check(gpu: str) -> None:
    """Raise UserError where the knob names a GPU that is not there; no error is raised before torch has answered."""
    if gpu in ("", CPU) or not hardware.settled():
        return
    available = gpus()
    if _named(gpu, available) is None:
        there = ", ".join(f"{device.number} ({device.name})" for device in available)
        have = f"it is one of {there}" if there else "torch sees none; --headless-check tells why"
        raise UserError(f"There is no GPU '{gpu}': {have}, or leave gpu empty for the one with the most free memory.")


def environment(gpu: str = "", taken: Collection[str] = ()) -> dict[str, str]:
    """The variables that give a child process one card: the one that `gpu` names, else the one with the most free memory.

    {} where there is no choice.

    Waits for torch's answer where several GPUs may be there. `taken` are the addresses of cards that are in use.
    Raises UserError as `check` does.
    """
    if gpu == CPU:
        return {
            hardware.USE_CPU: "true",
            CARD_VARIABLE: json.dumps({"address": CPU, "said": "On the CPU, as gpu says."}),
        }
    if not gpu and hardware.settled() and _seen() < 2:
        return {}
    hardware.settle()
    check(gpu)
    available = gpus()
    if not available or _seen() < 2:
        return {}
    card = chosen(gpu, taken)
    default = (
        f"the one of {len(available)} GPUs with the most free memory"
        if len(available) > 1
        else "the only one that torch has kernels for"
    )
    text = f"On GPU {card.number} ({card}), {'as gpu says' if gpu else default}.{_others(available, card, taken)}"
    return _visible([card]) | {CARD_VARIABLE: json.dumps({"address": card.address, "said": text})}


def environment_of_several() -> dict[str, str]:
    """The variables that hide from several processes the cards that torch has no kernels for; {} where there are none."""
    hardware.settle()
    available = gpus()
    return _visible(available) if 0 < len(available) < _seen() else {}


def _seen() -> int:
    """How many GPUs torch sees, with those that it cannot compute on."""
    view = hardware.view()
    return len(view.cards) if view and view.cards else len(gpus())


def _others(available: Sequence[Device], card: Device, taken: Collection[str]) -> str:
    """What the idle GPUs can be used for, as a sentence after others; "" where there is none."""
    idle = [device for device in available if device.address not in {card.address, *taken}]
    if not idle:
        return ""
    which = f"GPU {idle[0].number} is" if len(idle) == 1 else f"{len(idle)} GPUs are"
    return f" {which} left for a second run, started or queued; num_processes {len(available)} trains one run on all."


def _visible(cards: Sequence[Device]) -> dict[str, str]:
    """What hides all cards but these. A number counts among those that are visible already."""
    view = hardware.view() or torch_view.View()
    kind = cards[0].kind
    name = "ZE_AFFINITY_MASK" if kind == "xpu" else "HIP_VISIBLE_DEVICES" if view.is_rocm else "CUDA_VISIBLE_DEVICES"
    # HIP reads CUDA's variable where its own is not set
    variable = os.environ.get(name) or (os.environ.get("CUDA_VISIBLE_DEVICES") if view.is_rocm else None) or ""
    given = [part.strip() for part in variable.split(",") if part.strip()]

    def value(card: Device) -> str:
        seen = next((other for other in view.cards if other.number == card.number), None)
        if name == "CUDA_VISIBLE_DEVICES" and seen and seen.uuid and "MIG" not in seen.name:
            return f"GPU-{seen.uuid}"
        return given[card.number] if card.number < len(given) else str(card.number)

    return {name: ",".join(map(value, cards))}


def _named(gpu: str, devices: Sequence[Device]) -> Device | None:
    if gpu.isdigit():
        return next((device for device in devices if device.number == int(gpu)), None)
    wanted = gpu.lower().removeprefix("gpu-").removeprefix("mig-")
    alike = [device for device in devices if device.address.lower().removeprefix("gpu-").startswith(wanted)]
    return alike[0] if len(alike) == 1 else None
