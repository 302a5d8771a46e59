"""A run that goes on must go on with what it was begun with: the same rows, the same base. What has changed is reported.

Files and folders of this machine are looked at before a trainer is started; what a hub has given meanwhile, and the rows
as the model reads them, by the trainer itself (`training.resumed`).
"""

from pathlib import Path
from typing import Any

from qlora_gui.data import load
from qlora_gui.errors import UserError
from qlora_gui.references import ModelRef
from qlora_gui.runs.events import Base, Data
from qlora_gui.runs.fingerprints import fingerprint
from qlora_gui.runs.store import Run

FLAG = "--resume-changed"


class ChangedError(UserError):
    """A run cannot go on as it began, for what it learns from is another. `difference` says what has changed."""

    def __init__(self, run_id: str, difference: str):
        self.difference = difference
        super().__init__(
            f"The run '{run_id}' cannot go on as it began: {difference}. Put back what it began with, train again, or resume "
            f"anyway ({FLAG}, or a second click in the page)."
        )


def files_of(run: Run) -> dict[str, str]:
    """The SHA-256 of each of the data's files when the run was last started, else when it was made; by name."""
    data = run.history().latest(Data)
    try:
        files: Any = (data and data.files) or run.manifest().get("dataset")
    except UserError:
        return {}
    return {name: value for name, value in files.items() if name != "name"} if isinstance(files, dict) else {}


def describe_data_changes(run: Run) -> str:
    """Which of the data's files are others than they were, in words; "" for none. Raises UserError where there is none."""
    before = files_of(run)
    now = {name: value for name, value in load.find(run.config().dataset).fingerprint().items() if name != "name"}
    if not before or before == now:
        return ""
    words = [f"'{name}' has changed" for name in sorted(before.keys() & now.keys()) if before[name] != now[name]]
    words += [f"'{name}' is gone" for name in sorted(before.keys() - now.keys())]
    words += [f"'{name}' is new" for name in sorted(now.keys() - before.keys())]
    return "in its data " + ", ".join(words)


def describe_base_change(run: Run) -> str:
    """That the base's folder on this machine holds another model than it did, in words; else "". Raises UserError."""
    recorded, base = run.history().latest(Base), ModelRef.find(run.config().base_model)
    if (
        not recorded
        or not recorded.fingerprint
        or base.folder is None
        or fingerprint(base.folder) == recorded.fingerprint
    ):
        return ""
    return another_base(base.name)


def another_base(name: str) -> str:
    """That a base is another one now."""
    return f"the base '{Path(name).name if ModelRef.find(name).folder else name}' has different weights or a different shape"


def check(run: Run) -> None:
    """Raise ChangedError where data or base of a run are others than those it was last trained with."""
    if difference := "; ".join(filter(None, (describe_data_changes(run), describe_base_change(run)))):
        raise ChangedError(run.id, difference)


def no_checkpoint(run_id: str, wrong: list[str]) -> str:
    """That a run cannot be resumed, and what is wrong with the checkpoints that it has."""
    why = f"no intact checkpoint ({'; '.join(wrong)})" if wrong else "no checkpoint to resume from"
    return f"The run '{run_id}' has {why}: train again instead."
