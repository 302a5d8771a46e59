"""What a run will learn from, token by token: asked of a child process, for tokenizers come with the model stack."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

from qlora_gui.config import RunConfig
from qlora_gui.data.file_readers import SEPARATORS
from qlora_gui.runs.launch import child_environment

MODULE = "qlora_gui.training.preview"
SHOWN, MOST_SHOWN = 3, 2000  # rows
_PATIENCE_SECONDS = 900.0  # a base may have to be fetched first
_LOOK_SECONDS = 0.5


def ask(config: RunConfig, wanted: Callable[[], bool] = lambda: True, rows: int = SHOWN) -> Iterator[dict[str, Any]]:
    """The answers of the child (`training.preview`) with the first `rows` rows: `say`, `error`, or a preview.

    It is ended when nobody listens any more, nobody has `wanted` it for a moment, or its patience is over.
    """
    with tempfile.TemporaryFile() as words:
        yield from _answers(config, wanted, rows, words)


def _answers(config: RunConfig, wanted: Callable[[], bool], rows: int, words: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The answers of a child process that writes to `words` whatever else it says."""
    child = subprocess.Popen(
        [sys.executable, "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=words,
        env=child_environment(),
        encoding="utf-8",
    )
    over = threading.Event()
    threading.Thread(target=_watch, args=(child, wanted, over), daemon=True).start()
    answered = False
    try:
        assert child.stdin and child.stdout
        child.stdin.write(json.dumps({"config": config.model_dump(mode="json"), "rows": rows}))
        child.stdin.close()
        for line in child.stdout:
            if not wanted():
                return
            answer = json.loads(line)
            answered = "say" not in answer
            yield answer
        if not answered and wanted():
            yield {"error": f"The rows could not be marked: the helper process ended without an answer{_last(words)}."}
    finally:
        over.set()
        child.kill()
        child.wait()


def _last(words: IO[bytes]) -> str:
    """The last line that a child process wrote, as the end of a sentence about it."""
    words.seek(0, os.SEEK_END)
    words.seek(max(words.tell() - 10_000, 0))
    lines = words.read().decode(errors="replace").split("\n")
    last_line = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f" ({last_line.rstrip('.')})" if last_line else "; try again"


def _watch(child: "subprocess.Popen[str]", wanted: Callable[[], bool], over: threading.Event) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not over.wait(_LOOK_SECONDS):
        if not wanted() or time.monotonic() > deadline:
            child.kill()
            return


def summary(answer: Mapping[str, Any], config: RunConfig) -> str:
    """What becomes of the rows, in a few sentences."""
    scope = _scope(answer)
    share = 100 * answer["supervised"] / max(answer["tokens"], 1)
    text = (
        f"{scope} ({answer['format']}): {answer['used']:,} can be used · {answer['truncated']:,} truncated · "
        f"{answer['dropped']:,} dropped. {share:.0f}% of {answer['tokens']:,} tokens are trained on; "
        f"the longest row has {answer['longest']:,} of {config.max_length:,}."
    )
    if answer["own_held_out"]:
        text += " The data set has its own held-out rows."
    elif config.eval_fraction:
        text += f" {config.eval_fraction:.0%} of the rows are held out to measure on."
    if answer["separator"] not in ("", ","):
        text += f" Cells are separated by {SEPARATORS[answer['separator']]}."
    return text


def too_long(answer: Mapping[str, Any]) -> str:
    """What is wrong with the longest rows; "" where nothing is."""
    text = str(answer["too_long"] or "")
    return text if answer["whole"] or not text else f"{_scope(answer)}: {text}"


def _scope(answer: Mapping[str, Any]) -> str:
    rows = f"{answer['counted']:,} {'row' if answer['counted'] == 1 else 'rows'}"
    return rows if answer["whole"] else f"Of the first {rows}"
