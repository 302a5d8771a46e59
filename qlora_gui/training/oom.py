"""Why a run ran out of memory: what was predicted, what it took, what else held the GPU, and what would have helped."""

import os
from typing import Any

from qlora_gui import hardware
from qlora_gui.errors import UserError
from qlora_gui.formatting import gigabytes
from qlora_gui.memory import advice, known_models
from qlora_gui.memory.estimate import plan
from qlora_gui.models import device as devices
from qlora_gui.runs.events import Stage
from qlora_gui.runs.store import Run
from qlora_gui.training import limit


def describe(run: Run) -> dict[str, Any]:
    """The fields of the `failed` event of a run that ran out of memory: message, bug, autopsy."""
    history, device = run.history(), devices.pick()
    config, stage = history.config_as_it_ran(run.config()), history.latest(Stage)
    details: dict[str, Any] = {
        "phase": stage.text if stage else "Starting",
        "step": history.logged_step,
        "measured": limit.peak(device),
        "held_by": [holder.as_dict() for holder in hardware.holders() if holder.pid != os.getpid()],
        "predicted": None,
        "changes": [],
    }
    budget = limit.budget(device)
    details |= {"total": budget.total, "free": budget.free}
    try:
        shape = known_models.find(config)
        details["predicted"] = plan(config, shape, budget).total
        details["changes"] = [change.as_dict() for change in advice.changes(config, shape, budget)]
    except UserError:
        pass  # the base's shape is not known: then there is no plan and no advice
    return {"message": _sentence(details), "bug": False, "autopsy": details}


def _sentence(details: dict[str, Any]) -> str:
    where = f"at step {details['step']}" if details["step"] else f"in the stage '{details['phase']}'"
    sentence = f"Out of memory {where}"
    if details["predicted"]:
        sentence += f": {gigabytes(details['predicted'])} were predicted, {gigabytes(details['free'])} were there"
    if details["changes"]:
        sentence += f"; what helps most: {details['changes'][0]['text'][0].lower()}{details['changes'][0]['text'][1:]}"
    return sentence + "."
