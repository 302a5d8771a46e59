"""`python -m qlora_gui.export.run`: one export, in a process of its own, for the page or the command line."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_gui.errors import UserError
from qlora_gui.export import job
from qlora_gui.runs.child_job import Count, Say
from qlora_gui.system import collector, signals


def main(argv: Sequence[str]) -> int:
    """The page's child: settings as JSON, and the run's folder; what it does goes into its `export.jsonl`.

    With `--lines` the command line's: asked as JSON on stdin, answers with events as JSON lines on stdout.
    """
    if argv == ["--lines"]:
        return _lines()
    asked, folder = json.loads(argv[0]), Path(argv[1])
    base = asked.pop("base") or None
    settings = job.Settings(**asked)

    def work(say: Say, progress: Count) -> None:
        with collector.paused():
            from qlora_gui.export.work import export
        export(folder, settings, say, progress, base)

    return job.JOB.run([folder], work)


def _lines() -> int:
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no event

    def emit(kind: str, **values: Any) -> None:
        events.write(json.dumps({"kind": kind, **values}) + "\n")
        events.flush()

    signals.raise_on_terminate()
    asked = json.load(sys.stdin)
    try:
        with collector.paused():
            from qlora_gui.export.work import export
        export(
            Path(asked["adapter"]),
            job.Settings(**asked["settings"]),
            lambda text: emit("stage", text=text),
            lambda done, of: emit("progress", done=done, of=of),
            asked["base"],
            asked["revision"],
            asked["prompts"],
        )
    except UserError as error:
        emit("failed", message=str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
