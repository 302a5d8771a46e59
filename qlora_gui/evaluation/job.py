"""An evaluation as a child process: started, followed, and its result read, by files alone (`runs.child_job`)."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from qlora_gui import plain_files
from qlora_gui.errors import UserError
from qlora_gui.evaluation import results
from qlora_gui.runs import event_file
from qlora_gui.runs.child_job import ChildJob, State
from qlora_gui.runs.events import Saved
from qlora_gui.runs.history import RunHistory
from qlora_gui.runs.store import EVALUATION_LOCK, WEIGHTS, Run

MODULE = "qlora_gui.evaluation.run"
FILE, PROGRESS = "evaluation.json", "evaluate.jsonl"
JOB = ChildJob(
    MODULE, EVALUATION_LOCK, PROGRESS, "evaluate.log", "the evaluation", "is being evaluated already", "evaluate again"
)


@dataclass(frozen=True)
class Settings:
    """What is measured: at most so many rows, and greedy answers of at most so many tokens (0: no answers).

    `seed` is that of the resampling behind the intervals.
    """

    rows: int = 100
    max_new_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < 2:
            raise UserError(f"An interval needs at least 2 rows, not {self.rows}: ask for more.")
        if not 0 <= self.max_new_tokens <= 4096:
            raise UserError(f"Answers of {self.max_new_tokens} tokens cannot be asked for: choose 0 to 4096.")


STANDARD = Settings()


def start(runs: Sequence[Run], settings: Settings = STANDARD, data: str = "", base: str = "") -> None:
    """Evaluate runs in a child, on `data` and on `base` where they are named; its progress is in the first run's folder.

    Raises UserError where it cannot begin, or ended at once.
    """
    JOB.start(runs, asdict(settings) | {"data": data, "base": base})


def state(run: Run) -> State:
    """The progress of the evaluation started from this run."""
    return JOB.state(run)


def result(run: Run) -> results.Evaluation | None:
    """The latest evaluation of this run's adapter; None where there is none, it is damaged, or of another adapter."""
    try:
        content = json.loads(plain_files.read_text(run.path / FILE))
    except (OSError, ValueError, RecursionError):
        return None
    known = results.parse(content)
    if known is None:
        return None
    saved = RunHistory(event_file.recent(run.events_file)).latest(Saved)
    if saved is None and run.is_elsewhere():  # whose weights no event tells
        return known if _checksum(run.path / WEIGHTS) in (None, known.adapter.sha256) else None
    stale = saved and saved.sha256 not in (None, known.adapter.sha256)
    return None if stale else known


def _checksum(weights: Path) -> str | None:
    """The SHA-256 of a file, computed anew when the file has changed; None where it cannot be read."""
    try:
        info = weights.stat()
        return _computed(weights, info.st_size, info.st_mtime_ns, info.st_ino)
    except OSError:
        return None


@lru_cache(maxsize=256)
def _computed(weights: Path, *stamp: int) -> str:
    digest = hashlib.sha256()
    with plain_files.open_to_read(weights) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
