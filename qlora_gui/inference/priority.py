"""The compare process makes way for a run that trains on this machine, and only then; never so far that it starves."""

import threading
from collections.abc import Callable

import psutil

from qlora_gui.system import processes

# About a third of what an equal would get of a busy processor; at 19, the lowest, it would be a sixtieth.
WHILE_TRAINING = 5
_SECONDS = 5.0
_TRAINER = "qlora_gui.training"


def a_run_trains_here() -> bool:
    """Whether a trainer of this program runs on this machine, whatever folder its run is in."""
    return any(_TRAINER in (process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))


def follow(training: Callable[[], bool] = a_run_trains_here) -> None:
    """For as long as this process is, make way while a run trains."""

    def look() -> None:
        pause, now = threading.Event(), 0
        while True:
            wanted = WHILE_TRAINING if training() else 0
            if wanted != now:
                processes.set_niceness(wanted)
                now = wanted
            pause.wait(_SECONDS)

    threading.Thread(target=look, daemon=True).start()
