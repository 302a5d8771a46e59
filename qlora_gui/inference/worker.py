"""`python -m qlora_gui.inference.worker`: requests as JSON lines on stdin, events as JSON lines on stdout.

Requests: {"do": "load", "base_model", "revision", "quant_type", "double_quant", "adapters", "chosen"},
{"do": "answer", "conversations", "decoding"}, {"do": "evaluate", ...} (see evidence.py), {"do": "stop"}.
Each load ends with one `columns` event, each answer and evaluation with `done`, or any with `error`.
The end of stdin ends the process: a worker never outlives its page.
"""

import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from qlora_gui import locks
from qlora_gui.data.template_renderer import RENDERER, StoppedRendering
from qlora_gui.errors import UserError, panicked
from qlora_gui.inference.sampling import Decoding
from qlora_gui.system import processes

# About a third of what an equal would get of a busy processor; at 19, the lowest, it would be a sixtieth.
WHILE_TRAINING = 5
_SECONDS = 5.0
_TRAINER = "qlora_gui.training"


def main() -> None:
    follow()
    # Libraries print as they like: their stdout becomes stderr, and the events keep the real one.
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event, ensure_ascii=False) + "\n")
        events.flush()

    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(requests, stop), daemon=True).start()

    def look_for_a_stop() -> None:
        if stop.is_set():
            raise StoppedRendering

    RENDERER.start()  # meanwhile

    from qlora_gui.inference import evidence
    from qlora_gui.inference.columns import Columns  # torch: a second after the process is there

    columns = Columns()
    with RENDERER.interrupted_by(look_for_a_stop):
        while True:
            _serve(requests.get(), columns, emit, stop, evidence)


def _serve(request: dict[str, Any], columns: Any, emit: Any, stop: threading.Event, evidence: Any) -> None:
    """Do what one request asks; whatever goes wrong is an event, and the next one is served."""
    try:
        if columns.base is not None:
            from qlora_gui.models import device  # torch, which is imported by now

            device.keep_on_card(columns.base.model.device)  # a run may have ended, or begun, since it was loaded
        if request["do"] == "load":
            emit({"kind": "columns", "columns": _load(columns, request, emit)})
        elif request["do"] == "answer":
            decoding = Decoding(**request["decoding"])
            columns.answer(request["conversations"], decoding, emit, stop.is_set, request.get("tools"))
            emit({"kind": "done"})
        elif request["do"] == "evaluate":
            evidence.evaluate(columns, request, emit, stop.is_set)
            emit({"kind": "done"})
    except UserError as error:
        emit({"kind": "error", "message": str(error), "bug": False})
    except StoppedRendering:
        emit({"kind": "error", "message": "Stopped while a chat template was rendered.", "bug": False})
    except Exception as error:
        traceback.print_exc()
        if short := _ran_out(error):
            message = "There is not memory enough for this base with so many columns: take fewer, or free memory."
        else:
            message = f"{type(error).__name__}: {error}"
        emit({"kind": "error", "message": message, "bug": not short})
    except BaseException as error:
        if (panic := panicked(error)) is None:
            raise
        emit({"kind": "error", "message": str(panic), "bug": False})


def _ran_out(error: Exception) -> bool:
    from qlora_gui.models import device  # torch, which is imported by now

    return device.ran_out(error)


def _listen(requests: "queue.Queue[dict[str, Any]]", stop: threading.Event) -> None:
    """Read requests; a stop is for what was asked for before it."""
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "stop":
            stop.set()
            continue
        stop.clear()
        requests.put(request)
    os._exit(0)  # the page is gone, and with it whoever would read an answer


def _load(columns: Any, request: dict[str, Any], emit: Any) -> list[dict[str, Any]]:
    key = (request["base_model"], request["revision"], request["quant_type"], request["double_quant"])
    folders = [Path(folder) for folder in request["adapters"]]
    chosen = request.get("chosen", False)
    with locks.reading(folders, "Compare, which is loading it"):  # from then on it is in memory
        loaded: list[dict[str, Any]] = columns.load(
            key, folders, lambda text: emit({"kind": "stage", "text": text}), chosen
        )
    return loaded


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
