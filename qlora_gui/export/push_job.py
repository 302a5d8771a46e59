"""A push to the hub: what is asked for, started as a child process (`runs.child_job`), and what was pushed before."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from qlora_gui import plain_files
from qlora_gui.errors import UserError
from qlora_gui.export import hub_target
from qlora_gui.files import write_whole
from qlora_gui.runs.child_job import ChildJob, State
from qlora_gui.runs.store import PUSH_LOCK, Run

MODULE = "qlora_gui.export.push_run"
RECORD = "pushed.json"  # in a run's folder: what was pushed from it, the newest last
ADAPTER = "adapter"  # the value of `--to` for the adapter's own folder
JOB = ChildJob(MODULE, PUSH_LOCK, "push.jsonl", "push.log", "the push", "is being pushed already", "push again")
_KEPT = 20


@dataclass(frozen=True)
class Push:
    """What is pushed to `repo`: the exported folder `what`, or the adapter itself ("").

    `public` counts where the repository is made; `seen` is how it was when the user agreed (`hub_target.look`).
    """

    repo: str
    what: str = ""
    public: bool = False
    seen: hub_target.Seen = "new"

    def __post_init__(self) -> None:
        hub_target.check_name(self.repo)
        if self.seen not in get_args(hub_target.Seen):
            raise UserError(f"A repository is not {self.seen!r}: it is one of {', '.join(get_args(hub_target.Seen))}.")


@dataclass(frozen=True)
class Pushed:
    """A push that was made: the repository, whether it is private, what was pushed, when (seconds since 1970), and what
    should be known of it in sentences."""

    repo: str
    private: bool
    what: str
    at: float
    remarks: str = ""

    @property
    def url(self) -> str:
        return hub_target.url(self.repo)


def start(run: Run, asked: Push, token: str) -> None:
    """Push in a child; its progress is in the run's folder, and the token nowhere. Raises UserError where it cannot begin."""
    check_has_ended(run)
    JOB.start([run], asdict(asked), token)


def check_has_ended(run: Run) -> None:
    """Raise UserError for a run that goes on: its adapter is an earlier one, and is about to be replaced."""
    if run.is_live():
        raise UserError(f"The run '{run.id}' is {run.state()}: push it when it has finished.")


def state(run: Run) -> State:
    """The progress of the push started from this run."""
    return JOB.state(run)


def pushes(run: Run) -> list[Pushed]:
    """What was pushed from a run's folder, the newest last."""
    found = []
    for record in _records(run.path):
        try:
            told, what = str(record.get("remarks", ""))[:2000], str(record["what"])[:200]
            one = Pushed(str(record["repo"]), bool(record["private"]), what, float(record["at"]), told)
            hub_target.check_name(one.repo)  # the folder may be a stranger's, and the name becomes a link
            found.append(one)
        except (UserError, KeyError, TypeError, ValueError, OverflowError):
            continue
    return found


def record(folder: Path, repo: str, private: bool, what: str, remarks: str) -> None:
    """Write down in a run's folder that something was pushed. Raises OSError."""
    new = asdict(Pushed(repo, private, what, round(time.time(), 3), remarks))
    write_whole(folder / RECORD, json.dumps([*_records(folder), new][-_KEPT:], indent=1) + "\n")


def _records(folder: Path) -> Sequence[dict[str, Any]]:
    try:
        records = json.loads(plain_files.read_text(folder / RECORD, plain_files.MOST_CONFIG))
    except (OSError, ValueError, RecursionError):
        return []
    return [one for one in records if isinstance(one, dict)][-_KEPT:] if isinstance(records, list) else []
