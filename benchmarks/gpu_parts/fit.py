"""Will it fit: planned and simulated peaks against what three real steps allocated."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from gpu_parts import bases, steps
from qlora_gui.config import RunConfig, make
from qlora_gui.memory import budget
from qlora_gui.memory import model_shape as shapes
from qlora_gui.memory.estimate import MemoryPlan, plan
from qlora_gui.models import device as devices

Cell = dict[str, Any]
_USUAL = {"rank": 16, "bias": "none", "way": "ours"}


def cells(dry: bool) -> list[Cell]:
    """The grid, the most telling ones first: should time run out, the others are missing."""
    if dry:
        return [
            _USUAL | {"base": bases.BLOOM_7B1, "rows": 2, "length": 64, "checkpointing": "all", "bias": "all"},
            _USUAL | {"base": bases.LLAMA_1B, "rows": 1, "length": 64, "checkpointing": "all", "way": "stock"},
        ]
    sizes = [(1, 512), (4, 1024), (4, 512), (1, 2048), (4, 2048), (1, 256)]
    grid = [{"rows": rows, "length": length, "checkpointing": "all"} for rows, length in sizes]
    grid += [
        {"rows": 1, "length": 512, "checkpointing": "none"},
        {"rows": 4, "length": 1024, "checkpointing": "none"},
        {"rows": 2, "length": 1024, "checkpointing": "every-2"},
        {"rows": 4, "length": 1024, "checkpointing": "all", "rank": 64, "bias": "all"},
        {"rows": 1, "length": 512, "checkpointing": "all", "way": "stock"},
        {"rows": 4, "length": 1024, "checkpointing": "all", "way": "stock"},
    ]
    names = (bases.BLOOM_7B1, bases.BLOOM_560M, bases.LLAMA_1B)
    return [_USUAL | {"base": name} | cell for cell in grid for name in names]


def config_of(cell: Cell) -> RunConfig:
    return make(
        {
            "base_model": cell["base"],
            "rank": cell["rank"],
            "bias": cell["bias"],
            "dropout": 0,
            "batch_size": cell["rows"],
            "gradient_accumulation": 1,
            "max_length": cell["length"],
            "gradient_checkpointing": cell["checkpointing"],
        }
    )


def run(dry: bool) -> Iterator[dict[str, Any]]:
    """A line a cell. The simulations run beside the GPU, each in a process that sees none."""
    wanted = cells(dry)
    with ThreadPoolExecutor(max((os.cpu_count() or 2) - 2, 2)) as pool:
        simulated = [pool.submit(_simulated, cell, bases.shape_of(cell["base"], dry)) for cell in wanted]
        context = steps.context_bytes() if torch.cuda.is_available() else 0
        for cell, future in zip(wanted, simulated, strict=True):
            yield cell | _measured(cell, dry, context) | future.result()


def _simulated(cell: Cell, shape: dict[str, Any]) -> dict[str, Any]:
    asked = {key: cell[key] for key in ("rows", "length", "way", "checkpointing")}
    asked |= {"base": shape, "config": config_of(cell).model_dump()}
    told = subprocess.run(
        [sys.executable, "-m", "qlora_gui.simulation.__main__"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )
    try:
        answer = json.loads(told.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        answer = {"error": "\n".join(told.stderr.splitlines()[-3:])}
    if "peak" not in answer:
        return {"simulation_error": answer["error"]}  # a cell that cannot be simulated is a result, too
    return {"simulated": answer["peak"], "simulated_in_seconds": answer["seconds"]}


def _measured(cell: Cell, dry: bool, context: int) -> dict[str, Any]:
    """Planned for the smallest card that it should fit on, then run with no more memory than that card has."""
    raw, config = bases.shape_of(cell["base"], dry), config_of(cell)
    card, found = _smallest(config, raw, cell)
    line: dict[str, Any] = {
        "planned": found.uncorrected,
        "planned_total": found.total,
        "verdict": found.verdict,
        "card": card,
        "context": context,
    }
    if not torch.cuda.is_available():
        return line | _steps(cell, config, raw)
    line["capped"] = steps.cap(card, context)
    try:
        return line | _steps(cell, config, raw) | {"ran_out": False}
    except Exception as error:
        if not devices.ran_out(error):
            raise
    steps.cap(None, context)
    try:
        return line | _steps(cell, config, raw) | {"ran_out": line["capped"]}
    except Exception as error:  # without a cap it says nothing of the card: this GPU is smaller
        if not devices.ran_out(error):
            raise
        return line | {"ran_out": line["capped"]}


def _smallest(config: RunConfig, raw: dict[str, Any], cell: Cell) -> tuple[float, MemoryPlan]:
    shape = shapes.read(raw)
    for card in budget.CARDS:
        on_card = replace(budget.card(card), flash=steps.has_flash())
        found = plan(config, shape, on_card, way=cell["way"], checkpointing=cell["checkpointing"])
        if found.fits:
            break
    return card, found


def _steps(cell: Cell, config: RunConfig, raw: dict[str, Any]) -> dict[str, Any]:
    steps.clear()
    model = bases.random_base(raw, config, steps.device())
    model = (bases.ours if cell["way"] == "ours" else bases.stock)(model, config)
    batch = steps.made_up(cell["rows"], cell["length"], raw["vocab_size"], padded=cell["way"] == "stock")
    return steps.take(model, config, batch, 3, autocast=cell["way"] == "stock")
