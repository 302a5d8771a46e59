"""The longest batch at full shapes, as the preflight takes it: what was planned, and what torch's allocator gave."""

import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))  # as benchmarks/gpu.py does

from gpu_parts import bases  # noqa: E402

from qlora_gui import config as configs  # noqa: E402
from qlora_gui.data import collate as batches  # noqa: E402
from qlora_gui.memory import model_shape as shapes  # noqa: E402
from qlora_gui.memory.estimate import plan  # noqa: E402
from qlora_gui.memory.step_sizes import Way  # noqa: E402
from qlora_gui.models import device as devices  # noqa: E402
from qlora_gui.step_rules import GPU_MULTIPLE  # noqa: E402
from qlora_gui.training import limit  # noqa: E402
from qlora_gui.training import preflight as fitting  # noqa: E402
from qlora_gui.training.trainer import arguments  # noqa: E402


def preflight(
    base: str, rows: int, length: int, knobs: dict[str, Any], packed: bool = False, way: Way = "ours"
) -> dict[str, Any]:
    """`planned` and `allocated` bytes of two steps of a known base with random weights, and the plan's `verdict`.

    `packed`: two examples of half the length share each row, which brings a mask. `way` is ours or stock. `total` is what
    the verdict goes by: with the context, and what is not torch's. `allocated` is None where the card ran out of memory.
    """
    device = torch.device("cuda", 0)
    config = configs.make({"base_model": base, "batch_size": rows, "max_length": length, **knobs})
    raw = bases.shape_of(base, False)
    found = plan(config, shapes.read(raw), limit.budget(device), way=way)
    config = config.model_copy(update={"gradient_checkpointing": found.checkpointing})
    model = {"ours": bases.ours, "stock": bases.stock}[way](bases.random_base(raw, config, device), config)
    if packed:
        rows, length = 2 * rows, length // 2
    row: batches.Row = {"input_ids": [5] * length, "labels": [5] * length}
    torch.cuda.reset_peak_memory_stats()
    told = {
        "planned": found.uncorrected,
        "total": found.total,
        "verdict": found.verdict,
        "checkpointing": found.checkpointing,
    }
    try:
        collate = batches.Collate(0, 2 * length if packed else 0, GPU_MULTIPLE)
        # The Trainer runs the usual way under autocast; ours needs none.
        with torch.autocast("cuda", devices.compute_dtype(device), enabled=way == "stock"):
            fitting.two_steps(model, [row] * rows, rows, collate, arguments(config, "unused", device, rows))
    except torch.OutOfMemoryError:
        return told | {"allocated": None}
    return told | {"allocated": torch.cuda.max_memory_allocated()}
