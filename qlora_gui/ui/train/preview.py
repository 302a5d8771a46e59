"""What a run will learn from: the text of the first rows at once, the marks when the child has them."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qlora_gui.config import RunConfig
from qlora_gui.data import load, row_stats
from qlora_gui.data.bad_rows import FaultyRows
from qlora_gui.data.file_readers import SEPARATORS
from qlora_gui.errors import UserError
from qlora_gui.runs import bounded_reading
from qlora_gui.runs.launch import child_environment
from qlora_gui.ui import views
from qlora_gui.ui.rendering import html

KNOBS = (
    "base_model",
    "revision",
    "dataset",
    "dataset_format",
    "dataset_split",
    "skip_bad_rows",
    "system_prompt",
    "chat_template",
    "thinking",
    "special_tokens",
    "max_length",
)
_MODULE = "qlora_gui.training.preview"
_PATIENCE_SECONDS = 900.0  # a base may have to be fetched first
_LOOK_SECONDS = 0.5
_SHOWN = 3


def steps(
    config: RunConfig,
    learn: Callable[[dict[str, Any]], None] = lambda answer: None,
    wanted: Callable[[], bool] = lambda: True,
) -> Iterator[str]:
    """HTML, better and better: plain text, what the child is doing, the marked rows. Errors are sentences in it.

    `learn` is given each answer of the child (`model.preview`) before its HTML comes: the facts of the rows, and what
    was seen of all of them. Ends without another word, and ends the child, soon after nobody has `wanted` it any more.
    """
    try:
        plain = "" if load.find(config.dataset).is_hub else _plain(config)
    except UserError as error:
        yield html.note(str(error), bad=True)
        return
    yield html.hint("Marking what is learned from…") + plain
    for answer in _ask(config, wanted):
        if "say" in answer:
            yield html.hint(_saying(str(answer["say"]))) + plain
        elif "error" in answer:
            yield html.note(answer["error"], bad=True) + plain
        else:
            learn(answer)
            yield marked(answer, config)


def key(config: RunConfig) -> str:
    """What decides what the rows are and how they are encoded: equal for configs whose rows have the same facts."""
    return config.model_dump_json(include=set(KNOBS))


def _saying(text: str) -> str:
    return f"Preparing the demo model once… {text}" if "demo model" in text else text


def _plain(config: RunConfig) -> str:
    try:
        rows = bounded_reading.first(config, _SHOWN)
    except FaultyRows:
        return ""  # the child looks at more of them
    body = ""
    for row in rows:
        turns = row.get("messages") or [{"role": "text", "content": row.get("text", "")}]
        text = "\n".join(f"{turn['role']}: {_said(turn)}" for turn in turns)
        body += html.marked_row(f"Row {row['row']}", [(text, False)])
    return body


def _said(turn: dict[str, Any]) -> str:
    """All that a turn says: its reasoning, its text, its tool calls."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in turn.get("tool_calls", [])]
    return "\n".join(filter(None, [turn.get("reasoning_content", ""), turn["content"], *calls]))


def _ask(config: RunConfig, wanted: Callable[[], bool]) -> Iterator[dict[str, Any]]:
    """The lines of the child; it is ended when nobody listens any more, or its patience is over."""
    child = subprocess.Popen(
        [sys.executable, "-m", _MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=child_environment(),
        encoding="utf-8",
    )
    over = threading.Event()
    threading.Thread(target=_watch, args=(child, wanted, over), daemon=True).start()
    answered = False
    try:
        assert child.stdin and child.stdout
        child.stdin.write(json.dumps(config.model_dump(mode="json")))
        child.stdin.close()
        for line in child.stdout:
            if not wanted():
                return
            answer = json.loads(line)
            answered = "say" not in answer
            yield answer
        if not answered and wanted():
            yield {"error": "The rows could not be marked: the helper process ended without an answer; try again."}
    finally:
        over.set()
        child.kill()
        child.wait()


def _watch(child: "subprocess.Popen[str]", wanted: Callable[[], bool], over: threading.Event) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not over.wait(_LOOK_SECONDS):
        if not wanted() or time.monotonic() > deadline:
            child.kill()
            return


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
    if answer["separator"] not in ("", ","):
        told += f" Cells are separated by {SEPARATORS[answer['separator']]}."
    body = html.hint(told) + views.dropped(answer["dropped"], answer["dropped_rows"]) + _seen(answer["seen"], config)
    if answer["too_long"]:
        body += html.note(answer["too_long"] if answer["whole"] else f"{scope}: {answer['too_long']}")
    body += html.hint(" · ".join(row_stats.sentences(answer["facts"])))
    body += '<p class="hint"><mark>Marked</mark> is what the adapter learns to write.</p>'
    for row in answer["rows"]:
        if row.get("dropped"):
            body += html.marked_row(f"Row {row['row']} · dropped", [(row["dropped"], False)])
            continue
        part = f", part {row['part']}" if row.get("part") else ""
        title = f"Row {row['row']}{part} · {row['tokens']} tokens, {row['supervised']} learned from"
        title += " · truncated" if row["truncated"] else ""
        pieces = [(text, learned) for text, learned in row["pieces"]] + ([(" …", False)] if row["cut"] else [])
        body += html.marked_row(title, pieces)
    return body


def _seen(seen: dict[str, Any] | None, config: RunConfig) -> str:
    """What was seen of all rows; faulty ones are named at the data field."""
    if seen is None:
        return html.hint("Looking through the other rows…")
    refused = faulty(seen, config)
    return html.note(refused, bad=True) + views.rows_told(seen if config.skip_bad_rows else seen | {"skipped": 0})


def faulty(seen: Mapping[str, Any], config: RunConfig) -> str:
    """The sentence on rows that would stop the run; "" where there are none, or where they are left out."""
    count = seen.get("skipped", 0)
    if not count or config.skip_bad_rows:
        return ""
    which = (
        "1 row cannot be used: fix it, or leave it"
        if count == 1
        else f"{count:,} rows cannot be used: fix them, or leave them"
    )
    return f"{which} out."


def at_field(seen: Mapping[str, Any], config: RunConfig) -> str:
    """Faulty rows and why, as HTML for the place below the data field."""
    count, named = seen.get("skipped", 0), seen.get("skipped_rows", [])
    if not count:
        return ""
    if config.skip_bad_rows:
        return views.left_out(count, named, "Rows that are left out")
    return views.faulty(count, named)
