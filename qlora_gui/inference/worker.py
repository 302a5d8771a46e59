"""`python -m qlora_gui.inference.worker`: requests as JSON lines on stdin, events as JSON lines on stdout.

What they hold is declared in `protocol`. The end of stdin ends the process: a worker never outlives its page.
"""

import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import psutil

from qlora_gui import locks
from qlora_gui.data.template_renderer import RENDERER, StoppedRendering
from qlora_gui.errors import UserError, panicked
from qlora_gui.inference import protocol
from qlora_gui.system import collector, processes

# About a third of what an equal would get of a busy processor; at 19, the lowest, it would be a sixtieth.
WHILE_TRAINING = 5
_SECONDS = 5.0
_TRAINER = "qlora_gui.training"
Emit = Callable[[protocol.Event], None]


def main() -> None:
    follow()
    # Libraries print as they like: their stdout becomes stderr, and the events keep the real one.
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def emit(event: protocol.Event) -> None:
        events.write(protocol.to_line(event))
        events.flush()

    requests: queue.Queue[protocol.Request | Exception] = queue.Queue()
    stop = Stop()
    threading.Thread(target=_listen, args=(requests, stop), daemon=True).start()

    def look_for_a_stop() -> None:
        if stop.is_set():
            raise StoppedRendering

    RENDERER.start()  # meanwhile

    with collector.paused():
        from qlora_gui.inference.columns import Columns  # torch: seconds after the process is there

    columns = Columns()
    with RENDERER.interrupted_by(look_for_a_stop):
        while True:
            _serve(requests.get(), columns, emit, stop)


class Stop(threading.Event):
    """Set when all that was asked for is to end; `numbers` are completions of it that are to end before."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: set[int] = set()

    def clear(self) -> None:
        super().clear()
        self.numbers.clear()


def _serve(request: protocol.Request | Exception, columns: Any, emit: Emit, stop: Stop) -> None:
    """Do what one request asks; whatever goes wrong is an event, and the next one is served."""
    try:
        if isinstance(request, Exception):
            raise request
        if columns.base is not None:
            from qlora_gui.models import device  # torch, which is imported by now

            device.keep_on_card(columns.base.model.device)  # a run may have ended, or begun, since it was loaded
        do(request, columns, emit, stop.is_set, stop.numbers)
    except UserError as error:
        emit(protocol.Error(str(error), bug=False))
    except StoppedRendering:
        emit(protocol.Error("Stopped while a chat template was rendered.", bug=False))
    except Exception as error:
        traceback.print_exc()
        if short := _ran_out(error):
            message = "There is not memory enough for this base with so many columns: take fewer, or free memory."
        else:
            message = f"{type(error).__name__}: {error}"
        emit(protocol.Error(message, bug=not short))
    except BaseException as error:
        if (panic := panicked(error)) is None:
            raise
        emit(protocol.Error(str(panic), bug=False))


def do(
    request: protocol.Request,
    columns: Any,
    emit: Emit,
    cancelled: Callable[[], bool],
    dropped: Collection[int] = (),
) -> None:
    """Do what a request asks of the `Columns`; what comes of it is emitted. Raises UserError."""
    if isinstance(request, protocol.Load):
        key = (request.base_model, request.revision, request.quant_type, request.double_quant)
        folders = [Path(folder) for folder in request.adapters]
        with locks.reading(folders, "Compare, which is loading it"):  # from then on it is in memory
            proofs = columns.load(key, folders, lambda text: emit(protocol.Stage(text)), request.chosen)
        emit(protocol.Loaded(proofs))
        return
    if isinstance(request, protocol.Ask):
        columns.answer(request.conversations, request.decoding, emit, cancelled, request.tools)
    elif isinstance(request, protocol.Complete):
        from qlora_gui.inference import completions  # torch, which is imported by now

        completions.complete(columns, request.completions, emit, cancelled, dropped)
    elif isinstance(request, protocol.Evaluate):
        from qlora_gui.inference import evidence  # torch, which is imported by now

        evidence.evaluate(columns, request, emit, cancelled)
    emit(protocol.Done())


def _ran_out(error: Exception) -> bool:
    from qlora_gui.models import device  # torch, which is imported by now

    return device.ran_out(error)


def _listen(requests: "queue.Queue[protocol.Request | Exception]", stop: Stop) -> None:
    """Read requests; a stop is for what was asked for before it. What cannot be read is served as its error."""
    for line in sys.stdin:
        request: protocol.Request | Exception
        try:
            request = protocol.to_request(line)
        except Exception as error:
            request = error
        if isinstance(request, protocol.Stop):
            if request.numbers is None:
                stop.set()
            else:
                stop.numbers.update(request.numbers)
            continue
        stop.clear()
        requests.put(request)
    os._exit(0)  # the page is gone, and with it whoever would read an answer


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


if __name__ == "__main__":
    main()
