"""`python -m qlora_gui.models.ask_torch`: which devices torch sees, as one line of JSON (`torch_view.View`)."""

import json
import os
import sys
import warnings
from dataclasses import asdict

import psutil

from qlora_gui import torch_view
from qlora_gui.system import collector
from qlora_gui.torch_view import Card, View

with collector.paused():
    import torch

    from qlora_gui.models import device as devices


def view() -> View:
    """torch's own view of the accelerators, from within the process that will use them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        kind = accelerator.type if accelerator else ""
        cards = tuple(_card(kind, number) for number in range(torch.accelerator.device_count() if kind else 0))
        device = devices.pick()
        dtype = str(devices.compute_dtype(device)).removeprefix("torch.")
    installed = torch_view.installed()
    warning = " ".join(str(caught[0].message).split()) if caught and not cards else ""
    return View(kind, cards, torch.__version__, installed.built_for, dtype, warning)


def _card(kind: str, number: int) -> Card:
    if kind == "mps":
        memory = psutil.virtual_memory()  # shared with the processor
        return Card(number, "Apple GPU", memory.total, memory.available)
    if kind == "xpu":
        free, total = devices.free_and_total(torch.device(kind, number))
        return Card(number, torch.xpu.get_device_name(number), total, free)
    card = torch.cuda.get_device_properties(number)
    uuid = str(getattr(card, "uuid", ""))
    bus = f"{getattr(card, 'pci_domain_id', 0):04x}:{getattr(card, 'pci_bus_id', 0):02x}:{getattr(card, 'pci_device_id', 0):02x}.0"
    free, total = devices.free_and_total(torch.device(kind, number))
    return Card(
        number,
        card.name,
        total,
        free,
        "" if set(uuid) <= set("0-") else uuid.lower(),
        bus,
        f"{card.major}.{card.minor}",
        *devices.lacking_kernels(number),
    )


def main() -> None:
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    answer.write(json.dumps(asdict(view())) + "\n")
    answer.flush()


if __name__ == "__main__":
    main()
