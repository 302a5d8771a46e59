"""The project's trainer on a card, in this process: the real entry point, its events, and what the card was asked."""

import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_gui.config import make
from qlora_gui.runs.store import RunStore
from qlora_gui.training import __main__ as program
from tests.null_card.emulate import counts

# Small enough that a run takes seconds: every operator goes through Python here.
TINY: dict[str, Any] = {
    "max_steps": 2,
    "eval_steps": 2,
    "save_steps": 2,
    "logging_steps": 1,
    "max_length": 128,
    "rank": 8,
    "learning_rate": 1e-3,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "eval_fraction": 0.05,
    "probe_prompts": 0,
    "dropout": 0.0,
}


def train(
    folder: str, name: str, knobs: dict[str, Any], first_scale: float = 2.0**16, dtype: str = ""
) -> dict[str, Any]:
    """Train a run in the store `folder`: its exit code, its events, and the attention kernels that were used.

    `first_scale` is what fp16's loss scaling begins with; `dtype` is computed in instead of the card's own format.
    """
    run = RunStore(Path(folder)).create(make(TINY | {"name": name} | knobs))
    with _beginning_with(first_scale), pytest.MonkeyPatch.context() as patch:
        if dtype:
            patch.setenv("QLORA_GUI_COMPUTE_DTYPE", dtype)
        return _ended(run, [])


def resume(folder: str, name: str, step: int) -> dict[str, Any]:
    """Go on with a run of `train` from its checkpoint at `step`, as if it had died after it; its events from then on."""
    run = RunStore(Path(folder)).get(name)
    for checkpoint in run.checkpoints.glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    known = len(run.events()[0])
    told = _ended(run, ["--resume"])
    return told | {"events": told["events"][known:]}


def scale_of(folder: str, name: str, step: int) -> float:
    """The loss scale that a checkpoint has kept."""
    state = torch.load(RunStore(Path(folder)).get(name).checkpoints / f"checkpoint-{step}" / "scaler.pt")
    return float(state["scale"])


def _ended(run: Any, flags: list[str]) -> dict[str, Any]:
    counts.clear()
    sys.argv = ["qlora_gui.training", str(run.path), *flags]
    code = program.main()
    return {"code": code, "events": [_plain(event) for event in run.events()[0]], "attention": dict(counts.attention)}


def _plain(event: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    odd = {key: str(value) for key, value in event.items() if isinstance(value, float) and not math.isfinite(value)}
    return event | odd


@contextmanager
def _beginning_with(scale: float) -> Iterator[None]:
    plain = torch.amp.GradScaler.__init__

    def init(self: Any, device: str = "cuda", init_scale: float = 2.0**16, **settings: Any) -> None:
        plain(self, device, init_scale=scale, **settings)

    torch.amp.GradScaler.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.amp.GradScaler.__init__ = plain  # type: ignore[method-assign]
