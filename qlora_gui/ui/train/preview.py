"""What a run will learn from: the text of the first rows at once, the marks when the child has them."""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qlora_gui import config as configs
from qlora_gui.config import RunConfig
from qlora_gui.data import load, row_stats
from qlora_gui.data.bad_rows import FaultyRows
from qlora_gui.errors import UserError
from qlora_gui.runs import bounded_reading, row_preview
from qlora_gui.ui import views
from qlora_gui.ui.rendering import html

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
    yield html.hint("Marking what is trained on…") + plain
    for answer in row_preview.ask(config, wanted):
        if "say" in answer:
            yield html.hint(_saying(str(answer["say"]))) + plain
        elif "error" in answer:
            yield html.note(answer["error"], bad=True) + plain
        else:
            learn(answer)
            yield marked(answer, config)


def key(config: RunConfig) -> str:
    """What decides what the rows are and how they are encoded: equal for configs whose rows have the same facts."""
    return config.model_dump_json(include=set(configs.marked("rows")))


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
        text = "\n".join(f"{turn['role']}: {_turn_text(turn)}" for turn in turns)
        body += html.marked_row(f"Row {row['row']}", [(text, False)])
    return body


def _turn_text(turn: dict[str, Any]) -> str:
    """All that a turn says: its reasoning, its text, its tool calls."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in turn.get("tool_calls", [])]
    return "\n".join(filter(None, [turn.get("reasoning_content", ""), turn["content"], *calls]))


def marked(answer: dict[str, Any], config: RunConfig) -> str:
    """The child's answer as HTML."""
    body = (
        html.hint(row_preview.summary(answer, config))
        + views.dropped(answer["dropped"], answer["dropped_rows"])
        + _seen(answer["seen"], config)
    )
    if answer["too_long"]:
        body += html.note(row_preview.too_long(answer))
    body += html.hint(" · ".join(row_stats.sentences(answer["facts"])))
    body += '<p class="hint"><mark>Highlighted</mark>: what the adapter learns to write.</p>'
    for row in answer["rows"]:
        if row.get("dropped"):
            body += html.marked_row(f"Row {row['row']} · dropped", [(row["dropped"], False)])
            continue
        part = f", part {row['part']}" if row.get("part") else ""
        title = f"Row {row['row']}{part} · {row['tokens']} tokens, {row['supervised']} trained on"
        title += " · truncated" if row["truncated"] else ""
        pieces = [(text, learned) for text, learned in row["pieces"]] + ([(" …", False)] if row["cut"] else [])
        body += html.marked_row(title, pieces)
    return body


def _seen(seen: dict[str, Any] | None, config: RunConfig) -> str:
    """What was seen of all rows; faulty ones are named at the data field."""
    if seen is None:
        return html.hint("Looking through the other rows…")
    refused = faulty(seen, config)
    return html.note(refused, bad=True) + views.row_remarks(seen if config.skip_bad_rows else seen | {"skipped": 0})


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
