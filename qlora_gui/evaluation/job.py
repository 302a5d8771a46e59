"""An evaluation as a child process: started, followed, and its result read, by files alone. It outlives the page."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qlora_gui import locks, plain_files
from qlora_gui.errors import UserError
from qlora_gui.evaluation import results
from qlora_gui.files import explained
from qlora_gui.runs import event_file
from qlora_gui.runs.events import EventLog, Failed, Finished, Progress, Saved, Stage, as_record
from qlora_gui.runs.history import RunHistory
from qlora_gui.runs.launch import detached, processes_of
from qlora_gui.runs.store import EVALUATION_LOCK, Run

MODULE = "qlora_gui.evaluation.run"
FILE, PROGRESS = "evaluation.json", "evaluate.jsonl"
_START_SECONDS = 180.0  # for a very busy machine; a child that ends earlier is noticed


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
    """The state of the last evaluation started from a run's folder: `share` is 0 to 1; `fault` a sentence or ""."""

    running: bool
    text: str = ""
    share: float = 0.0
    fault: str = ""


def lock(folder: Path) -> locks.Lock:
    """Held while an evaluation started from this run is alive."""
    return locks.Lock(folder / EVALUATION_LOCK)


def start(runs: Sequence[Run], settings: Settings = STANDARD) -> None:
    """Evaluate runs in a child; its progress is in the first run's folder.

    Raises UserError where it cannot begin, or ended at once.
    """
    for run in runs:
        if not run.has_adapter():
            raise UserError(f"The run '{run.id}' has no adapter yet: train it first.")
        run.check_writable()
    if state(runs[0]).running:
        raise UserError(f"The run '{runs[0].id}' is being evaluated already.")
    log_file = runs[0].path / "evaluate.log"
    with explained("The evaluation's log", runs[0].path), plain_files.open_to_write(log_file) as log:
        (runs[0].path / PROGRESS).unlink(missing_ok=True)
        EventLog(runs[0].path / PROGRESS).append("stage", text="Starting")  # a full disk is reported here, not later
        command = [sys.executable, "-m", MODULE, json.dumps(asdict(settings)), *(str(run.path) for run in runs)]
        child = detached(command, log)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and not _is_locked(runs[0].path):
        if child.poll() is not None:
            if len(event_file.read(runs[0].path / PROGRESS)[0]) < 2:
                last = plain_files.read_bytes(log_file).decode(errors="replace").strip().splitlines()[-1:]
                message = f"The evaluation ended at once: {last[0] if last else 'no output'}"
                EventLog(runs[0].path / PROGRESS).append("failed", message=message)
                raise UserError(message)
            return
        time.sleep(0.05)


def state(run: Run) -> State:
    """The progress of the evaluation started from this run."""
    recorded, _ = event_file.read(run.path / PROGRESS)
    running = _is_locked(run.path)
    if len(recorded) == 1 and not running:  # written by `start`: its child has not taken the lock yet, or never did
        running = bool(processes_of(MODULE, run))
    if not recorded:
        return State(running, "Starting" if running else "")
    history = RunHistory(recorded)
    progress, stage = history.latest(Progress), history.latest(Stage)
    if running:
        share = progress.done / progress.of if progress else 0.0
        return State(True, stage.text if stage else "Starting", share)
    end = as_record(recorded[-1])
    if isinstance(end, Failed):
        return State(False, fault=end.message)
    if isinstance(end, Finished):
        return State(False, share=1.0)
    return State(
        False, fault="The evaluation ended without an error message (killed, or out of memory): evaluate again."
    )


def _is_locked(folder: Path) -> bool:
    return locks.is_held(folder / EVALUATION_LOCK)


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
    stale = saved and saved.sha256 not in (None, known.adapter.sha256)
    return None if stale else known
