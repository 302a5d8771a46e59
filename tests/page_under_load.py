"""`python -m tests.page_under_load`: does in one process what the page does with a base, data and runs, and measures.

Asked with JSON on stdin, it answers with what was said, by how many bytes its memory grew at most, and for how long at
most it answered nobody.
"""

import contextlib
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from qlora_gui import config as configs
from qlora_gui import report
from qlora_gui.errors import UserError
from qlora_gui.evaluation import job
from qlora_gui.memory import known_models
from qlora_gui.runs import bounded_reading, sweep
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import run_view
from qlora_gui.ui.app import build_app
from qlora_gui.ui.runs import index
from qlora_gui.ui.train import form, preview


class Watch:
    """A thread that ticks, as whoever else the page serves would like it to."""

    def __init__(self) -> None:
        self.longest, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def _tick(self) -> None:
        before = time.monotonic()
        while not self._over.wait(0.02):
            now = time.monotonic()
            self.longest, before = max(self.longest, now - before), now

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()


def peak() -> int:
    """The most memory that this process ever had, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def shown(config: configs.RunConfig) -> list[str]:
    """What the preview says before its child has come up."""
    with contextlib.closing(preview.steps(config)) as steps:
        return [next(steps)]


def do(asked: dict[str, Any], store: RunStore) -> list[str]:
    """Everything of the page's process that reads what was given; one text for each."""
    config = configs.make(asked["config"]) if "config" in asked else configs.RunConfig()
    ways: dict[str, Any] = {
        "base": lambda: known_models.find(config, ask=False),
        "create": lambda: (form.judge(asked["config"], store), store.create(config)),
        "preview": lambda: shown(config),
        "held out": lambda: bounded_reading.held_out(config),
        "file": lambda: configs.resolve(file=asked["file"]),
        "sweep": lambda: sweep.parse(Path(asked["file"]).read_text()),
        "runs": lambda: [
            (index.summary(run), run_view.draw(run).overview, job.result(run), run.queue_mark()) for run in store.all()
        ],
        "report": lambda: "".join(render(report.written(store)) for render in report.RENDERERS.values()),
    }
    told = []
    for name in asked["do"]:
        try:
            told.append(f"{name}: {ways[name]()}"[:2000])
        except UserError as error:
            told.append(f"{name} refused: {error}")
    return told


def main() -> None:
    asked = json.load(sys.stdin)
    store = RunStore(asked["store"])
    with contextlib.redirect_stdout(sys.stderr):
        build_app(store)
        before = peak()
        with Watch() as watch:
            told = do(asked, store)
    print(json.dumps({"told": told, "grew": peak() - before, "silent": watch.longest}))


if __name__ == "__main__":
    main()
