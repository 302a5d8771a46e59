"""Work on a finished run in a child process: started, followed, and its end known, by files in the run's folder alone.

An evaluation, an export, a push to the hub. It outlives the page that began it.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from qlora_gui import locks, plain_files
from qlora_gui.errors import UserError
from qlora_gui.files import explained
from qlora_gui.runs import disk_reserve, event_file
from qlora_gui.runs.events import EventLog, Failed, Finished, Progress, Stage, as_record
from qlora_gui.runs.history import RunHistory
from qlora_gui.runs.launch import detached, processes_of
from qlora_gui.runs.store import Run
from qlora_gui.system import signals

_START_SECONDS = 180.0  # for a very busy machine; a child that ends earlier is noticed
Say = Callable[[str], None]
Count = Callable[[int, int], None]
Emit = Callable[..., None]  # the kind of an event, and its values by name


@dataclass(frozen=True)
class State:
    """The state of the last such job of a run: `share` is 0 to 1; `fault` a sentence or ""."""

    running: bool
    text: str = ""
    share: float = 0.0
    fault: str = ""


@dataclass(frozen=True)
class ChildJob:
    """A kind of job: the module that does it, its lock, progress and log in the run's folder, and its words.

    `what` is "the evaluation", `busy` "is being evaluated already", `again` "evaluate again".
    """

    module: str
    lock_file: str
    progress: str
    log: str
    what: str
    busy: str
    again: str

    def lock(self, folder: Path) -> locks.Lock:
        """Held while a job of this kind that was started from this run is alive."""
        return locks.Lock(folder / self.lock_file)

    def start(self, runs: Sequence[Run], settings: dict[str, Any], secret: str = "") -> None:
        """Begin in a child, whose progress is in the first run's folder; it reads `secret` on its stdin.

        Raises UserError where it cannot, or ended at once.
        """
        what = f"{self.what[0].upper()}{self.what[1:]}"
        for run in runs:
            if not run.has_adapter():
                raise UserError(f"The run '{run.id}' has no adapter yet: train it first.")
            run.check_writable()
        first = runs[0]
        if self.state(first).running:
            raise UserError(f"The run '{first.id}' {self.busy}.")
        log_file = first.path / self.log
        with explained(f"{what}'s log", first.path), plain_files.open_to_write(log_file) as log:
            (first.path / self.progress).unlink(missing_ok=True)
            EventLog(first.path / self.progress).append(
                "stage", text="Starting"
            )  # a full disk is reported here, not later
            words = [json.dumps(settings), *(str(run.path) for run in runs)]
            child = detached([sys.executable, "-m", self.module, *words], log, secret=secret)
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and not self._is_locked(first.path):
            if child.poll() is not None:
                if len(event_file.read(first.path / self.progress)[0]) < 2:
                    last = plain_files.read_bytes(log_file).decode(errors="replace").strip().splitlines()[-1:]
                    message = f"{what} ended at once: {last[0] if last else 'no output'}"
                    EventLog(first.path / self.progress).append("failed", message=message)
                    raise UserError(message)
                return
            time.sleep(0.05)

    def state(self, run: Run) -> State:
        """The progress of the job started from this run."""
        recorded, _ = event_file.read(run.path / self.progress)
        running = self._is_locked(run.path)
        if len(recorded) == 1 and not running:  # written by `start`: its child has not taken the lock yet, or never did
            running = bool(processes_of(self.module, run))
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
        what = f"{self.what[0].upper()}{self.what[1:]}"
        return State(False, fault=f"{what} ended without an error message (killed, or out of memory): {self.again}.")

    def _is_locked(self, folder: Path) -> bool:
        return locks.is_held(folder / self.lock_file)

    def run(self, folders: Sequence[Path], work: Callable[[Say, Count], object]) -> int:
        """In the child: do the work, with what it says and counts in the progress file, and how it ended. Returns the exit code."""
        try:
            with self.lock(folders[0]), disk_reserve.hold(folders[0]) as room:
                return self._logged(folders, work, EventLog(folders[0] / self.progress), room)
        except filelock.Timeout:  # another page was faster
            return 1

    def _logged(
        self, folders: Sequence[Path], work: Callable[[Say, Count], object], log: EventLog, room: disk_reserve.Reserve
    ) -> int:
        last = -1

        def say(text: str) -> None:
            log.append("stage", text=text)

        def count(done: int, of: int) -> None:
            nonlocal last
            if 100 * done // of != last:  # a second stage counts from the beginning
                last = 100 * done // of
                log.append("progress", done=done, of=of)

        try:
            log.append("started", adapters=[folder.name for folder in folders])
            work(say, count)
            log.append("finished")
            return 0
        except Exception as error:
            room.give_back()  # a last word needs a place on the disk
            full = disk_reserve.why_not_written(folders[0], error, self.again)
            message = str(error) if isinstance(error, UserError) else full or f"{type(error).__name__}: {error}"
            log.append("failed", message=message)
            if not (full or isinstance(error, UserError)):
                raise
        return 1


def answer_in_lines(work: Callable[[dict[str, Any], Emit], None]) -> int:
    """The command line's child: do what is asked as JSON on stdin, and answer with events as JSON lines on stdout.

    Returns the exit code: 2 where a UserError was the answer, 130 where it was interrupted.
    """
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no event

    def emit(kind: str, **values: Any) -> None:
        events.write(json.dumps({"kind": kind, **values}) + "\n")
        events.flush()

    signals.raise_on_terminate()
    asked = json.load(sys.stdin)
    try:
        work(asked, emit)
    except UserError as error:
        emit("failed", message=str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    return 0
