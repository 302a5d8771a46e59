"""`python -m qlora_gui.export.run`: one export, in a process of its own, for the page or the command line."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_gui.export import job
from qlora_gui.runs.child_job import Count, Emit, Say, answer_in_lines
from qlora_gui.system import collector


def main(argv: Sequence[str]) -> int:
    """The page's child: settings as JSON, and the run's folder; what it does goes into its `export.jsonl`.

    With `--lines` the command line's: asked as JSON on stdin, answers with events as JSON lines on stdout.
    """
    if argv == ["--lines"]:
        return answer_in_lines(_export)
    asked, folder = json.loads(argv[0]), Path(argv[1])
    base = asked.pop("base") or None
    settings = job.Settings(**asked)

    def work(say: Say, progress: Count) -> None:
        with collector.paused():
            from qlora_gui.export.work import export
        export(folder, settings, say, progress, base)

    return job.JOB.run([folder], work)


def _export(asked: dict[str, Any], emit: Emit) -> None:
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
