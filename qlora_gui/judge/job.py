"""An evaluation as a child process: started, followed, and its result read, by files alone. It outlives the page."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock

from qlora_gui.errors import UserError
from qlora_gui.judge import stored
from qlora_gui.runs import events, locks
from qlora_gui.runs.launch import detached
from qlora_gui.runs.store import Run

MODULE = "qlora_gui.judge.evaluate"
FILE, PROGRESS = "evaluation.json", "evaluate.jsonl"
_START_SECONDS = 10.0


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


@dataclass(frozen=True)
class State:
    """What the last evaluation begun from a run's folder is doing: `share` is 0 to 1; `fault` a sentence or ""."""

    running: bool
    text: str = ""
    share: float = 0.0
    fault: str = ""


def lock(folder: Path) -> filelock.BaseFileLock:
    """Held while an evaluation lives that was begun from this run."""
    return filelock.FileLock(folder / ".evaluate.lock", timeout=0)


def start(runs: Sequence[Run], settings: Settings = STANDARD) -> None:
    """Evaluate runs in a child; its progress is found in the first one's folder. Raises UserError."""
    for run in runs:
        if not run.has_adapter():
            raise UserError(f"The run '{run.id}' has no adapter yet: train it first.")
    if state(runs[0]).running:
        raise UserError(f"The run '{runs[0].id}' is being evaluated already.")
    (runs[0].path / PROGRESS).unlink(missing_ok=True)
    with (runs[0].path / "evaluate.log").open("wb") as log:
        command = [sys.executable, "-m", MODULE, json.dumps(asdict(settings)), *(str(run.path) for run in runs)]
        child = detached(command, log)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and child.poll() is None and not _is_locked(runs[0].path):
        time.sleep(0.05)


def state(run: Run) -> State:
    """How the evaluation begun from this run is getting on."""
    found, _ = events.read(run.path / PROGRESS)
    running = _is_locked(run.path)
    if not found:
        return State(running, "Starting" if running else "")
    progress, stage = events.last(found, "progress"), events.last(found, "stage")
    share = progress["done"] / progress["of"] if progress else 0.0
    end = found[-1]
    if running:
        return State(True, str(stage["text"]) if stage else "Starting", share)
    if end["kind"] == "failed":
        return State(False, fault=str(end["message"]))
    if end["kind"] == "finished":
        return State(False, share=1.0)
    return State(False, fault="The evaluation is gone without a word (killed, or out of memory): evaluate again.")


def _is_locked(folder: Path) -> bool:
    return locks.is_held(folder / ".evaluate.lock")


def result(run: Run) -> dict[str, Any] | None:
    """The latest evaluation of this run's adapter; None where there is none, it is damaged, or of another adapter.

    What it may lack (see `stored.Evaluation`) is None in it, or empty.
    """
    try:
        found = json.loads((run.path / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    known = stored.checked(found)
    if known is None:
        return None
    saved = events.last(run.events()[0], "saved")
    stale = saved and saved.get("sha256") not in (None, known["adapter"]["sha256"])
    return None if stale else known
