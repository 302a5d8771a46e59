"""Where memory goes when a base is loaded."""

from typing import Any

import torch

from qlora_gui.models import base as bases
from qlora_gui.models import device as devices


def loads(base: str) -> list[dict[str, Any]]:
    """The peak of a base's first load, which quantizes it, and of its second, in bytes, and what each said."""
    found = []
    for _ in range(2):
        devices.release()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        said: list[str] = []
        model = bases.load_model(base, "nf4", True, torch.device("cuda", 0), torch.float16, said.append)
        stays = torch.cuda.memory_allocated() - before
        found.append({"peak": torch.cuda.max_memory_allocated() - before, "stays": stays, "said": said})
        del model
    return found
