"""The report's three experiments with the memory of a 16 GB card: the stock way, and ours."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from gpu_parts import bases, steps
from qlora_gui import config as configs
from qlora_gui.config import RunConfig
from qlora_gui.memory import budget
from qlora_gui.memory import model_shape as shapes
from qlora_gui.memory.estimate import plan
from qlora_gui.models import device as devices

CARD = 16


def run(dry: bool) -> Iterator[dict[str, Any]]:
    """A line for every experiment, size and way: whether it ran, its peak, and what was planned."""
    context = steps.context_bytes() if torch.cuda.is_available() else 0
    sizes = [(2, 64)] if dry else [(4, 1024), (4, 512)]
    for rows, length in sizes:
        for number in (2, 1, 3):
            for way in ("stock", "ours"):
                yield {"experiment": number, "rows": rows, "length": length, "way": way} | _one(
                    number, rows, length, way, dry, context
                )


def _one(number: int, rows: int, length: int, way: Any, dry: bool, context: int) -> dict[str, Any]:
    # Two micro-batches a step: the second finds the gradients of the first, as all further ones do.
    sizes = {"batch_size": rows, "max_length": length, "gradient_accumulation": 2}
    run = configs.resolve(sizes, preset=f"experiment-{number}")
    raw = bases.shape_of(run.base_model, dry)
    found = plan(run, shapes.read(raw), replace(budget.card(CARD), flash=steps.has_flash()), way=way)
    run = run.model_copy(update={"gradient_checkpointing": found.checkpointing})
    line = {"planned": found.total, "verdict": found.verdict, "checkpointing": found.checkpointing, "context": context}
    if torch.cuda.is_available():
        line["capped"] = steps.cap(CARD, context)
    try:
        return line | _steps(run, raw, way) | {"ran_out": False}
    except Exception as error:
        if devices.ran_out(error):
            return line | {"ran_out": True}
        # bitsandbytes makes biases fp16 in its first forward pass, and torch's scaler refuses to train such
        if way != "stock" or "unscale FP16" not in str(error):
            raise
        return line | {"ran_out": False, "refused": str(error)}


def _steps(run: RunConfig, raw: dict[str, Any], way: str) -> dict[str, Any]:
    steps.clear()
    model = bases.random_base(raw, run, steps.device())
    model = (bases.ours if way == "ours" else bases.stock)(model, run)
    batch = steps.made_up(run.batch_size, run.max_length, raw["vocab_size"], padded=way == "stock")
    return steps.take(model, run, batch, 2, autocast=way == "stock")
