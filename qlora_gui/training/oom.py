"""Why a run died of memory: what was predicted, what it took, what else held the GPU, and what would have helped."""

import os
from typing import Any

from qlora_gui import hardware
from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.memory import advice, known_models
from qlora_gui.memory.estimate import gigabytes, plan
from qlora_gui.models import device as devices
from qlora_gui.runs import events
from qlora_gui.runs.store import Run
from qlora_gui.training import limit


def of(run: Run) -> dict[str, Any]:
    """The fields of the `failed` event of a run that ran out of memory: message, bug, autopsy."""
    config, device = _as_it_ran(run), devices.pick()
    told, _ = run.events()
    stage, step = events.last(told, "stage"), events.last(told, "step")
    found: dict[str, Any] = {
        "phase": stage["text"] if stage else "Starting",
        "step": step["step"] if step else 0,
        "measured": limit.peak(device),
        "held_by": [holder.as_dict() for holder in hardware.holders() if holder.pid != os.getpid()],
        "predicted": None,
        "changes": [],
    }
    budget = limit.budget(device)
    found |= {"total": budget.total, "free": budget.free}
    try:
        shape = known_models.find(config)
        found["predicted"] = plan(config, shape, budget).total
        found["changes"] = [change.as_dict() for change in advice.changes(config, shape, budget)]
    except UserError:
        pass  # the base's shape is not known: then there is no plan and no advice
    return {"message": _sentence(found), "bug": False, "autopsy": found}


def _as_it_ran(run: Run) -> RunConfig:
    """The run's config with what the preflight changed in it."""
    config, changed = run.config(), events.last(run.events()[0], "fit")
    return config.model_copy(update=changed["knobs"]) if changed else config


def _sentence(found: dict[str, Any]) -> str:
    where = f"at step {found['step']}" if found["step"] else f"in the stage '{found['phase']}'"
    said = f"Out of memory {where}"
    if found["predicted"]:
        said += f": {gigabytes(found['predicted'])} were predicted, {gigabytes(found['free'])} were there"
    if found["changes"]:
        said += f"; what helps most: {found['changes'][0]['text'][0].lower()}{found['changes'][0]['text'][1:]}"
    return said + "."
