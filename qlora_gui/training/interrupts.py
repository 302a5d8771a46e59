"""A stop that is enforced: what does not end by itself within 30 seconds is interrupted, and at last ended.

The stop file asks for an end after the step. A step may be long, a disk or a hub may hang: then the main thread is
interrupted (an interrupted step has changed nothing, and the adapter is saved as it is), and where even that does not
help, the process ends itself.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from qlora_gui.runs.events import EventLog
from qlora_gui.runs.store import Run
from qlora_gui.system import signals
from qlora_gui.training import distributed

PATIENCE_SECONDS = 30.0
_LAST_SECONDS = 15.0  # from the interruption to the end of the process
_SAVING_SECONDS = 120.0  # for an adapter that is being written
_POLL_SECONDS = 0.5


class Interrupted(BaseException):
    """Raised in the main thread when a stop has waited too long. No Exception, so that libraries let it through."""


class StopWatch:
    """While it is entered, a stop file that stays leads to `Interrupted`, later to the end of this process.

    Of several processes rank 0 alone is interrupted, for all would be so in different places; the others end later.

    To be used in the main thread. QLORA_GUI_STOP_SECONDS changes the patience, for tests.
    """

    def __init__(self, run: Run, log: EventLog):
        self.run, self.log = run, log
        self.patience = float(os.environ.get("QLORA_GUI_STOP_SECONDS", PATIENCE_SECONDS))
        self._holds = 0
        self._pending = self._saving = False
        self._over = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopWatch":
        self._before = signals.on_interrupt(self._interrupt)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        signals.restore(self._before)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is interrupted within; what came meanwhile is raised at its end."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        if self._pending and not self._holds:
            self._pending = False
            raise Interrupted

    def saving(self) -> None:
        """From now on nothing is interrupted: the adapter is being written, for which there is more time."""
        self._saving = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._saving:
            return
        if self._holds:
            self._pending = True
            return
        raise Interrupted

    def _watch(self) -> None:
        if distributed.rank():
            if self._stays(self.patience + 2 * min(_LAST_SECONDS, self.patience)):
                os._exit(0)  # rank 0 was interrupted, and saves or has saved; this process may wait for it in vain
            return
        if not self._stays(self.patience):
            return
        print(f"Not stopped within {self.patience:g} s: interrupted", flush=True)
        if not self._saving:
            signals.interrupt_main_thread()
        if not self._stays(_SAVING_SECONDS if self._saving else min(_LAST_SECONDS, self.patience)):
            return
        if self._saving and not self._stays(_SAVING_SECONDS):
            return
        message = "Ended at once, because it did not stop on its own; what was not saved is lost."
        self.log.append("stopped", step=self.run.history().logged_step, message=message)
        os._exit(1)

    def _stays(self, seconds: float) -> bool:
        """Whether a stop is asked for during so many seconds; waits for one first. False when the watch is over."""
        asked: float | None = None
        while not self._over.wait(_POLL_SECONDS):
            if asked is None and self.run.stop_file.exists():
                asked = time.monotonic()
            if asked is not None and time.monotonic() - asked >= seconds:
                return True
        return False
