"""What every fault needs: a small real base, a store of runs, seeded dice, and what must hold of a folder afterwards."""

import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_gui import report
from qlora_gui.config import make
from qlora_gui.errors import UserError
from qlora_gui.inference import adapter_file
from qlora_gui.runs import checkpoints, launch
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import views
from qlora_gui.ui.runs.index import summaries

KNOBS: dict[str, Any] = {
    "max_length": 96,
    "max_steps": 24,
    "batch_size": 2,
    "gradient_accumulation": 1,
    "gradient_checkpointing": "none",
    "learning_rate": 3e-3,
    "logging_steps": 1,
    "eval_steps": 8,
    "save_steps": 4,
    "probe_prompts": 0,
    "eval_fraction": 0.05,
}
ENDED = ("finished", "stopped", "failed", "died")


class LostError(AssertionError):
    """Something that was kept is gone, or a state is not told as it is."""


@dataclass
class Ground:
    """One try: `folder` is its own, `base` shared; `expected` are the losses of an uninterrupted run, by step."""

    folder: Path
    base: Path
    dice: random.Random
    expected: dict[int, float] = field(default_factory=dict)

    @property
    def store(self) -> RunStore:
        return RunStore(self.folder / "adapters")

    def create(self, name: str = "run", **knobs: object) -> Run:
        return self.store.create(make(KNOBS | {"base_model": str(self.base), "name": name} | knobs))

    def start(self, run: Run, resume: bool = False) -> None:
        launch.start(run, self.store, resume=resume)


def losses(run: Run) -> dict[int, float]:
    """Training losses by step; a step that was taken twice counts as it was last."""
    return {event["step"]: event["loss"] for event in run.events()[0] if event["kind"] == "step"}


def until(true: Any, what: str = "what was waited for", seconds: float = 120) -> None:
    """Wait for something; LostError where it does not come."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise LostError(f"it did not come within {seconds:g} s: {what}")
        time.sleep(0.05)


def ended(run: Run, seconds: float = 120) -> str:
    until(lambda: run.state() in ENDED, f"an end of {run.id}", seconds)
    return run.state()


def check(true: object, what: str) -> None:
    if not true:
        raise LostError(what)


def check_readable(store: RunStore) -> None:
    """Whatever is in the folders, everything that reads them says something, and nothing raises but UserErrors."""
    for one in summaries(store):
        run = store.get(one.id)
        history = run.history()
        views.headline(run.id, one.state, history)
        views.outcome(one.state, history, run.log_tail(1), one.checkpoint, one.adapter)
        views.curves(history)
        views.numbers(history)
    if store.all():
        blocks = report.written(store)
        for render in report.RENDERERS.values():
            render(blocks)


def check_adapter(run: Run) -> None:
    """An adapter that looks whole is whole."""
    if not run.has_adapter():
        return
    try:
        adapter_file.read(run.path)
    except UserError as error:
        raise LostError(f"the adapter of {run.id} looks whole and is not: {error}") from error


def check_checkpoint(run: Run) -> None:
    """The last checkpoint, if there is one, loads."""
    import torch
    from safetensors.torch import load_file

    found = run.last_checkpoint()
    if found is None:
        return
    load_file(found / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(found / name, weights_only=True)
    json.loads((found / "trainer_state.json").read_text())
    check(checkpoints.is_whole(found), "the last checkpoint is not whole")


def finish(ground: Ground, run: Run) -> None:
    """Resume where there is a checkpoint, else train anew; the losses are those of an uninterrupted run."""
    if run.state() != "finished":
        if run.last_checkpoint() is None:
            run = ground.create(f"{run.id}-again")
            ground.start(run)
        else:
            ground.start(run, resume=True)
        state = ended(run)
        check(state == "finished", f"it did not finish but {state}: {run.log_tail(8)}")
    check(losses(run) == ground.expected, f"other losses than without the fault: {losses(run)}")
    check_adapter(run)
    check(run.has_adapter(), "there is no adapter")
