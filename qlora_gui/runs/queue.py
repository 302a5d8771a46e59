"""Runs that wait for a GPU: a marker in each folder has its place, and a separate process starts them in turn.

`python -m qlora_gui.runs.queue ADAPTERS` is that process. It holds no model and needs no page; it lives while something
waits. Where it is gone (a crash, a restart of the machine), the next page, command or ending run starts it again.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock

from qlora_gui import locks, plain_files
from qlora_gui.errors import UserError
from qlora_gui.files import explained, write_whole
from qlora_gui.runs import launch, scan, seal
from qlora_gui.runs.events import FINAL, EventLog
from qlora_gui.runs.store import Run, RunStore

MODULE = "qlora_gui.runs.queue"
LOG = ".queue.log"
LOCK = ".queue.lock"
_POLL_SECONDS = 1.0


def waiting(store: RunStore) -> list[Run]:
    """The runs that wait and will be started, the next one first."""
    marked = [(mark, run) for mark, run in _marked(store) if mark["ours"]]
    return [run for _, run in sorted(marked, key=lambda pair: (pair[0]["place"], pair[1].created(), pair[1].id))]


def held_back(store: RunStore) -> list[Run]:
    """Runs marked as waiting by something other than this folder's queue: they are not started."""
    return [run for mark, run in _marked(store) if not mark["ours"]]


def _marked(store: RunStore) -> list[tuple[dict[str, Any], Run]]:
    queued = [Run(entry.path) for entry in scan.scan(store.root) if entry.queued and not entry.locked]
    return [(mark, run) for run in queued if (mark := run.queue_mark()) is not None]


def add(store: RunStore, runs: Sequence[Run], resume: bool = False) -> None:
    """Put runs at the end of the queue, in this order, and see that they will be started.

    Raises UserError; then none of them waits.
    """
    for run in runs:
        mark = run.queue_mark()
        if run.is_locked() or (mark is not None and mark["ours"]):
            raise UserError(f"The run '{run.id}' is {run.state()} already.")
        run.check_writable()
        if resume:
            launch.check_resume(run)
    marks = [mark["place"] for run in waiting(store) if (mark := run.queue_mark()) and mark["place"] < math.inf]
    try:
        for place, run in enumerate(runs, int(max(marks, default=0)) + 1):
            _mark(run, place, resume)
        ensure_starter(store)
    except UserError:
        for run in runs:
            run.queue_file.unlink(missing_ok=True)
        raise


def move(store: RunStore, run: Run, by: int) -> None:
    """Move a waiting run: -1 is one place earlier. Nothing happens beyond the ends, or where it no longer waits.

    Raises UserError while a run is being started.
    """
    with store.nothing_starts():
        order = waiting(store)
        ids = [other.id for other in order]
        if run.id not in ids:
            return
        here = ids.index(run.id)
        order.insert(min(max(here + by, 0), len(order) - 1), order.pop(here))
        for place, other in enumerate(order, 1):
            if (mark := other.queue_mark()) is not None:
                _mark(other, place, mark["resume"])


def leave(store: RunStore, run: Run) -> None:
    """Take a run out of the queue; one that has never started counts as stopped. Raises UserError once it has begun."""
    with store.nothing_starts():
        if run.is_locked():
            raise UserError(f"The run '{run.id}' has begun: stop it instead.")
        run.check_writable()
        mark = run.queue_mark()
        with explained(f"The removal of '{run.id}' from the queue", run.path):
            if mark is not None and not mark["resume"]:
                EventLog(run.events_file).append("stopped", step=0, message="Taken out of the queue before it started.")
            run.queue_file.unlink(missing_ok=True)


def ensure_starter(store: RunStore) -> None:
    """Start the process that starts waiting runs, unless it lives or nothing waits."""
    if not waiting(store) or locks.is_held(store.root / LOCK):
        return
    with explained("The queue's log", store.root), plain_files.open_to_write(store.root / LOG, append=True) as log:
        launch.detached([sys.executable, "-m", MODULE, str(store.root)], log)


def _mark(run: Run, place: int, resume: bool) -> None:
    with explained(f"The place of '{run.id}' in the queue", run.path):
        mark = {"place": place, "resume": resume, "seal": seal.make(run.path)}
        write_whole(run.queue_file, json.dumps(mark) + "\n")


def _lock(store: RunStore) -> locks.Lock:
    return locks.Lock(store.root / LOCK)


def serve(store: RunStore) -> None:
    """Start waiting runs one after the other until none is left. A second process returns at once."""
    while waiting(store):  # asked again without the lock: what is added while it is given back has seen it held
        try:
            with _lock(store):
                _drain(store)
        except filelock.Timeout:
            return


def _drain(store: RunStore) -> None:
    while order := waiting(store):
        if launch.has_room(store, order[0]):
            _start(store, order[0])
        time.sleep(_POLL_SECONDS)


def _start(store: RunStore, run: Run) -> None:
    mark = run.queue_mark()
    if mark is None or not mark["ours"]:  # taken out meanwhile
        return
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} starting {run.id}", flush=True)
    try:
        launch.start(run, store, resume=mark["resume"])
    except launch.BusyError:
        return
    except UserError as error:
        print(error, flush=True)
        with contextlib.suppress(OSError):  # its folder was deleted meanwhile
            run.queue_file.unlink(missing_ok=True)
            if run.state() not in FINAL:
                EventLog(run.events_file).append("failed", message=str(error), bug=False)


def main(argv: Sequence[str]) -> int:
    serve(RunStore(Path(argv[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
