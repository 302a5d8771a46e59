"""The page with a compare worker that says what a file tells it: `python -m tests.browser.scripted FOLDER`.

`FOLDER/../script.json` holds `prompt`, what every answer goes on from, and the answer's `pieces`; between two of them it
waits for `FOLDER/../go`, unless `wait` is false.
"""

import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from qlora_gui.inference import client
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import app
from qlora_gui.ui.address import Address


class Scripted:
    """Stands in for the compare client."""

    is_loaded = True

    def __init__(self, folder: Path):
        self.folder, self.asked = folder, folder / "asked.jsonl"

    def columns(self, base: str, revision: str, adapters: list[Path], say: Any, **kind: Any) -> list[dict[str, Any]]:
        return [{"name": name, "sha256": None} for name in ("base", *(path.name for path in adapters))]

    def answer(self, conversations: list[Any], decoding: Any) -> Iterator[dict[str, Any]]:
        with self.asked.open("a") as file:
            file.write(json.dumps(conversations) + "\n")
        script = json.loads((self.folder / "script.json").read_text())
        every = range(len(conversations))
        for column in every:
            yield {"kind": "prompt", "column": column, "prompt": script["prompt"]}
        for number, piece in enumerate(script["pieces"]):
            go = self.folder / "go"
            while number and script.get("wait") and not go.exists():
                time.sleep(0.1)
            go.unlink(missing_ok=True)
            for column in every:
                yield {"kind": "text", "column": column, "text": piece}
            time.sleep(0.2)
            yield {"kind": "text", "column": 0, "text": ""}  # news after a while: all is drawn
        ended = {"kind": "column", "tokens": 9, "seconds": 1.0, "tokens_per_second": 9.0, "ended": "eos"}
        for column in every:
            yield ended | {"column": column}
        yield {"kind": "done"}

    def stop(self) -> None: ...

    def close(self) -> None: ...


if __name__ == "__main__":
    client.CompareClient = partial(Scripted, Path(sys.argv[1]).parent)  # type: ignore[misc]
    app.launch_page(RunStore(sys.argv[1]), Address())
