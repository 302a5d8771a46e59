"""`python -m qlora_gui.export.push_run`: one push to the hub, in a process of its own, for the page or the command line.

The token comes on stdin, and is nowhere else: in no argument, file, log or sentence.
"""

import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlora_gui import hub
from qlora_gui.errors import UserError
from qlora_gui.export import hub_target, push_job
from qlora_gui.runs.child_job import Count, Emit, Say, answer_in_lines

_MOST_TOKEN = 10_000  # bytes


def main(argv: Sequence[str]) -> int:
    """The page's child: what is asked for as JSON, and the run's folder; the token on stdin.

    With `--lines` the command line's: asked as JSON on stdin, answers with events as JSON lines on stdout.
    """
    hub.try_again()
    if argv == ["--lines"]:
        return answer_in_lines(_asked)
    asked, folder = push_job.Push(**json.loads(argv[0])), Path(argv[1])
    token = sys.stdin.read(_MOST_TOKEN)
    return push_job.JOB.run([folder], lambda say, count: _push(folder, asked, token, say, count))


def _asked(given: dict[str, Any], emit: Emit) -> None:
    url = _push(
        Path(given["adapter"]),
        push_job.Push(**given["asked"]),
        given["token"],
        lambda text: emit("stage", text=text),
        lambda done, of: emit("progress", done=done, of=of),
    )
    emit("pushed", url=url)


def _push(folder: Path, asked: push_job.Push, token: str, say: Say, count: Count) -> str:
    """Push; whatever is said or raised has no token in it."""
    try:
        from qlora_gui.export.push import push

        return push(folder, asked, token, lambda text: say(hub_target.without_secrets(text, token)), count)
    except UserError as error:
        raise UserError(hub_target.without_secrets(str(error), token)) from None
    except Exception as error:
        print(hub_target.without_secrets(traceback.format_exc(), token), file=sys.stderr, flush=True)
        what = hub_target.without_secrets(f"{type(error).__name__}: {error}", token)
        raise UserError(f"The push failed: {what[:500]}.") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
