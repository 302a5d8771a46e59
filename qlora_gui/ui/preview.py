"""What a run will learn from: the text of the first rows at once, the marks when the child has them."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from qlora_gui.data import read
from qlora_gui.errors import UserError
from qlora_gui.runs.config import RunConfig
from qlora_gui.runs.launch import child_environment
from qlora_gui.ui import html, views

KNOBS = (
    "base_model",
    "revision",
    "dataset",
    "dataset_format",
    "dataset_split",
    "system_prompt",
    "special_tokens",
    "max_length",
)
_MODULE = "qlora_gui.model.preview"
_PATIENCE_SECONDS = 900.0  # a base may have to be fetched first
_SHOWN = 3


def steps(config: RunConfig, learn: Callable[[dict[str, Any]], None] = lambda facts: None) -> Iterator[str]:
    """HTML, better and better: plain text, what the child is doing, the marked rows. Errors are sentences in it.

    `learn` is given the facts of the rows (`data.facts`) before the last HTML comes.
    """
    try:
        plain = "" if read.find(config.dataset).is_hub else _plain(config)
    except UserError as error:
        yield html.note(str(error), bad=True)
        return
    yield html.hint("Marking what is learned from…") + plain
    for answer in _ask(config):
        if "say" in answer:
            yield html.hint(_saying(str(answer["say"]))) + plain
        elif "error" in answer:
            yield html.note(answer["error"], bad=True) + plain
        else:
            learn(answer["facts"])
            yield marked(answer, config)


def key(config: RunConfig) -> str:
    """What decides what the rows are and how they are encoded: equal for configs whose rows have the same facts."""
    return config.model_dump_json(include=set(KNOBS))


def _saying(text: str) -> str:
    return f"Preparing the demo model once… {text}" if "demo model" in text else text


def _plain(config: RunConfig) -> str:
    rows = read.load(config.dataset, config.dataset_format, config.dataset_split, limit=_SHOWN).train
    body = ""
    for row in rows:
        turns = row.get("messages") or [{"role": "text", "content": row.get("text", "")}]
        text = "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
        body += html.marked_row(f"Row {row['row']}", [(text, False)])
    return body


def _ask(config: RunConfig) -> Iterator[dict[str, Any]]:
    """The lines of the child; it is ended when nobody listens any more."""
    child = subprocess.Popen(
        [sys.executable, "-m", _MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
        text=True,
    )
    watchdog = threading.Timer(_PATIENCE_SECONDS, child.kill)
    watchdog.start()
    answered = False
    try:
        assert child.stdin and child.stdout
        child.stdin.write(json.dumps(config.model_dump(mode="json")))
        child.stdin.close()
        for line in child.stdout:
            answer = json.loads(line)
            answered = "say" not in answer
            yield answer
        if not answered:
            yield {"error": "The rows could not be marked: the helper process ended without an answer; try again."}
    finally:
        watchdog.cancel()
        child.kill()
        child.wait()


def marked(answer: dict[str, Any], config: RunConfig) -> str:
    """The child's answer as HTML."""
    scope = f"{answer['counted']:,} rows" if answer["whole"] else f"Of the first {answer['counted']:,} rows"
    share = 100 * answer["supervised"] / max(answer["tokens"], 1)
    told = (
        f"{scope} ({answer['format']}): {answer['used']:,} can be used · {answer['truncated']:,} truncated · "
        f"{answer['dropped']:,} dropped. {share:.0f}% of {answer['tokens']:,} tokens are learned from; "
        f"the longest row has {answer['longest']:,} of {config.max_length:,}."
    )
    if answer["own_held_out"]:
        told += " The data set brings held-out rows of its own."
    elif config.eval_fraction:
        told += f" {config.eval_fraction:.0%} of the rows are held out to measure on."
    body = html.hint(told) + views.dropped(answer["dropped"], answer["dropped_rows"])
    body += '<p class="hint"><mark>Marked</mark> is what the adapter learns to write.</p>'
    for row in answer["rows"]:
        if row.get("dropped"):
            body += html.marked_row(f"Row {row['row']} · dropped", [(row["dropped"], False)])
            continue
        title = f"Row {row['row']} · {row['tokens']} tokens, {row['supervised']} learned from"
        title += " · truncated" if row["truncated"] else ""
        pieces = [(text, learned) for text, learned in row["pieces"]] + ([(" …", False)] if row["cut"] else [])
        body += html.marked_row(title, pieces)
    return body
