"""`python -m qlora_gui.compare.worker`: requests as JSON lines on stdin, events as JSON lines on stdout.

Requests: {"do": "load", "base_model", "revision", "quant_type", "double_quant", "adapters"},
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
from contextlib import suppress
from pathlib import Path
from typing import Any

from qlora_gui.compare.settings import Decoding
from qlora_gui.errors import UserError

_NICE = 19


def _let_others_go_first() -> None:
    """Where training, page and this process share a processor, this one waits."""
    if hasattr(os, "nice"):
        os.nice(_NICE)
    with suppress(OSError):  # Linux weighs sessions against each other, and this is one of its own
        Path("/proc/self/autogroup").write_text(str(_NICE))


def main() -> None:
    _let_others_go_first()
    # Libraries print as they like: their stdout becomes stderr, and the events keep the real one.
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def emit(event: dict[str, Any]) -> None:
        events.write(json.dumps(event, ensure_ascii=False) + "\n")
        events.flush()

    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    stop = threading.Event()
    threading.Thread(target=_listen, args=(requests, stop), daemon=True).start()

    from qlora_gui.compare import evidence
    from qlora_gui.compare.columns import Columns  # torch: a second after the process is there

    columns = Columns()
    while True:
        request = requests.get()
        try:
            if request["do"] == "load":
                emit({"kind": "columns", "columns": _load(columns, request, emit)})
            elif request["do"] == "answer":
                columns.answer(request["conversations"], Decoding(**request["decoding"]), emit, stop.is_set)
                emit({"kind": "done"})
            elif request["do"] == "evaluate":
                evidence.evaluate(columns, request, emit, stop.is_set)
                emit({"kind": "done"})
        except UserError as error:
            emit({"kind": "error", "message": str(error), "bug": False})
        except Exception as error:
            traceback.print_exc()
            emit({"kind": "error", "message": f"{type(error).__name__}: {error}", "bug": True})


def _listen(requests: "queue.Queue[dict[str, Any]]", stop: threading.Event) -> None:
    """Read requests; a stop is for what was asked for before it."""
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "stop":
            stop.set()
            continue
        if request["do"] in ("answer", "evaluate"):
            stop.clear()
        requests.put(request)
    os._exit(0)  # the page is gone, and with it whoever would read an answer


def _load(columns: Any, request: dict[str, Any], emit: Any) -> list[dict[str, Any]]:
    key = (request["base_model"], request["revision"], request["quant_type"], request["double_quant"])
    folders = [Path(folder) for folder in request["adapters"]]
    loaded: list[dict[str, Any]] = columns.load(key, folders, lambda text: emit({"kind": "stage", "text": text}))
    return loaded


if __name__ == "__main__":
    main()
