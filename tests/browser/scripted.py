"""The page with a compare worker that says what a file tells it: `python -m tests.browser.scripted FOLDER`.

`FOLDER/../script.json` holds `prompt`, what every answer goes on from, and the answer's `pieces`; between two of them it
waits for `FOLDER/../go`, unless `wait` is false.
"""

import json
import sys
import time
from collections.abc import Generator
from functools import partial
from pathlib import Path

from qlora_gui.inference import protocol
from qlora_gui.inference.client import CompareClient
from qlora_gui.runs.store import RunStore
from qlora_gui.serving.address import Address
from qlora_gui.ui import app


class Scripted(CompareClient):
    """A client without a worker."""

    is_loaded = True

    def __init__(self, folder: Path):
        super().__init__()
        self.folder, self.asked = folder, folder / "asked.jsonl"

    def _exchange(self, request: protocol.Request) -> Generator[protocol.Event]:
        if isinstance(request, protocol.Load):
            names = ("base", *(Path(folder).name for folder in request.adapters))
            yield protocol.Loaded([{"name": name, "sha256": None} for name in names])
            return
        assert isinstance(request, protocol.Ask)
        with self.asked.open("a") as file:
            file.write(json.dumps(request.conversations) + "\n")
        script = json.loads((self.folder / "script.json").read_text())
        every = range(len(request.conversations))
        for column in every:
            yield protocol.Prompt(column, script["prompt"])
        for number, piece in enumerate(script["pieces"]):
            go = self.folder / "go"
            while number and script.get("wait") and not go.exists():
                time.sleep(0.1)
            go.unlink(missing_ok=True)
            for column in every:
                yield protocol.Text(column, piece)
            time.sleep(0.2)
            yield protocol.Text(0, "")  # news after a while: all is drawn
        for column in every:
            yield protocol.Ended(column, 9, 1.0, 9.0, "eos")
        yield protocol.Done()

    def stop(self) -> None: ...

    def close(self) -> None: ...


if __name__ == "__main__":
    app.CompareClient = partial(Scripted, Path(sys.argv[1]).parent)  # type: ignore[misc, attr-defined]
    app.launch_page(RunStore(sys.argv[1]), Address())
