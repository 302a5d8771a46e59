"""`python -m qlora_gui.training adapters/<run-id> [--resume]`: train one run, alone in this process.

Takes the run's lock before anything heavy is imported, and ends events.jsonl with exactly one of
finished, stopped, failed. Exit code 0 for finished and stopped, 1 for failed.
"""

import argparse
import contextlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import filelock

from qlora_gui import locks
from qlora_gui.errors import UserError, panicked
from qlora_gui.runs import disk_reserve, gpus, queue
from qlora_gui.runs.changes import ChangedError
from qlora_gui.runs.events import EventLog, Silent
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.system import collector
from qlora_gui.training import distributed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m qlora_gui.training")
    parser.add_argument("folder", type=Path, help="a run's folder, with its run.json")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--resume-changed", action="store_true", help="go on though data or base have changed")
    arguments = parser.parse_args()
    run = Run(arguments.folder.absolute())
    if distributed.rank():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  rank 0 prints the log; errors go to stderr, from all
        return _train(run, Silent(), arguments)
    try:
        run.check_writable()
        # A moment's patience: a reader that asks whether the run lives holds the lock that long.
        with run.lock(timeout=5):
            code = _lead(run, arguments)
        with contextlib.suppress(OSError):  # a full disk is reported elsewhere
            queue.ensure_starter(RunStore(run.path.parent))
        return code
    except filelock.Timeout:
        print(f"The run '{run.id}' is already being trained by another process.", file=sys.stderr)
        return 1
    except UserError as error:
        print(error, file=sys.stderr)
        return 1


def _lead(run: Run, arguments: argparse.Namespace) -> int:
    """Train as the process that writes into the run's folder."""
    log = EventLog(run.events_file)
    given = gpus.of_this_process()
    log.append("started", pid=os.getpid(), resumed=arguments.resume, **({"card": given.address} if given else {}))
    run.queue_file.unlink(missing_ok=True)  # only now: it waits until it has begun
    if note := locks.describe_fallback(run.path):
        log.append("note", text=note)
    distributed.on_failure_of_others(lambda message: log.append("failed", message=message, bug=False))
    with disk_reserve.hold(run.path) as room:
        return _train(run, log, arguments, room)


def _train(run: Run, log: EventLog, arguments: argparse.Namespace, room: disk_reserve.Reserve | None = None) -> int:
    try:
        with collector.paused():
            from qlora_gui.training.run import train

        train(run, log, arguments.resume, arguments.resume_changed)
        return 0
    except BaseException as raised:
        error = raised if isinstance(raised, Exception) else panicked(raised)
        if error is None:
            raise
        distributed.await_reason(error)
        if room is not None:
            room.give_back()  # a last word needs a place on the disk
        failure = _reason(run, error)
        log.append("failed", **failure)
        with contextlib.suppress(OSError):  # where even the log finds no place
            if failure.get("bug") is not False:
                traceback.print_exc()
            print(f"failed: {failure['message']}", file=sys.stderr, flush=True)
        if distributed.rank():
            distributed.tell_failure(failure["message"])
    return 1


def _reason(run: Run, error: Exception) -> dict[str, Any]:
    """The fields of the `failed` event. The traceback of a bug is in train.log."""
    from qlora_gui.models import device
    from qlora_gui.training import oom

    if device.ran_out(error):
        return oom.describe(run)
    if isinstance(error, UserError):
        changed = {"changed": True} if isinstance(error, ChangedError) else {}
        return {"message": str(error), "bug": False, **changed}
    if full := disk_reserve.why_not_written(run.path, error):
        return {"message": full, "bug": False}
    reason = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    return {"message": f"{type(error).__name__}: {reason}", "bug": True}


if __name__ == "__main__":
    sys.exit(main())
