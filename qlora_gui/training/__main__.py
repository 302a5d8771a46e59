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

import filelock

from qlora_gui.errors import UserError
from qlora_gui.runs import queue
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.store import Run, RunStore


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m qlora_gui.training")
    parser.add_argument("folder", type=Path, help="a run's folder, with its run.json")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    arguments = parser.parse_args()
    run = Run(arguments.folder.absolute())
    try:
        # A moment's patience: a reader that asks whether the run lives holds the lock that long.
        with run.lock(timeout=5):
            code = _train(run, arguments.resume)
        with contextlib.suppress(OSError):  # a full disk is told elsewhere
            queue.ensure_starter(RunStore(run.path.parent))
        return code
    except filelock.Timeout:
        print(f"The run '{run.id}' is already being trained by another process.", file=sys.stderr)
        return 1


def _train(run: Run, resume: bool) -> int:
    log = EventLog(run.events_file)
    log.append("started", pid=os.getpid(), resumed=resume)
    run.queue_file.unlink(missing_ok=True)  # only now: it waits until it has begun
    try:
        from qlora_gui.training.run import train

        train(run, log, resume)
        return 0
    except Exception as error:
        from qlora_gui.training import autopsy

        if autopsy.ran_out(error):
            traceback.print_exc()
            told = autopsy.of(run)
            print(f"failed: {told['message']}", file=sys.stderr)
            log.append("failed", **told)
        elif isinstance(error, UserError):
            print(f"failed: {error}", file=sys.stderr)
            log.append("failed", message=str(error), bug=False)
        else:
            _log_bug(error, log)
    return 1


def _log_bug(error: Exception, log: EventLog) -> None:
    """The traceback goes to train.log."""
    traceback.print_exc()
    reason = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    log.append("failed", message=f"{type(error).__name__}: {reason}", bug=True)


if __name__ == "__main__":
    sys.exit(main())
