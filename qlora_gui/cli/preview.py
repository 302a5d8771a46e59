"""`preview`: what a run will learn from, token by token, as text or as JSON."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from qlora_gui.config import RunConfig
from qlora_gui.data import row_stats
from qlora_gui.errors import UserError
from qlora_gui.runs import row_preview

_BEGINS, _ENDS = "\u27ea", "\u27eb"  # around what is learned, in text


def show(config: RunConfig, rows: int, as_json: bool) -> int:
    """Print the first `rows` rows, and what becomes of all. Returns 0. Raises UserError when base or data cannot be used."""
    if not 1 <= rows <= row_preview.MOST_SHOWN:
        raise UserError(f"--rows is {rows}: give a number from 1 to {row_preview.MOST_SHOWN:,}.")
    answer: dict[str, Any] = {}
    for message in row_preview.ask(config, rows=rows):
        if "error" in message:
            raise UserError(str(message["error"]))
        if "say" in message:
            print(message["say"], file=sys.stderr, flush=True)
        else:
            answer = message
    print(json.dumps(answer) if as_json else "\n".join(_lines(answer, config)), flush=True)
    return 0


def _lines(answer: Mapping[str, Any], config: RunConfig) -> list[str]:
    lines = [row_preview.summary(answer, config), row_preview.too_long(answer), *row_stats.sentences(answer["facts"])]
    seen = answer["seen"] or {}
    if count := seen.get("skipped", 0):
        lines.append("1 row cannot be used:" if count == 1 else f"{count:,} rows cannot be used:")
        lines += [f"  row {row['row']}: {row['reason']}" for row in seen.get("skipped_rows", [])]
    lines += [f"  row {row['row']} is dropped: {row['reason']}" for row in answer["dropped_rows"]]
    lines.append(f"What the adapter learns to write stands between {_BEGINS} and {_ENDS}.")
    return [line for line in lines if line] + [line for row in answer["rows"] for line in _row(row)]


def _row(row: Mapping[str, Any]) -> list[str]:
    if row.get("dropped"):
        return ["", f"--- Row {row['row']}, dropped: {row['dropped']}"]
    part = f", part {row['part']}" if row.get("part") else ""
    cut = ", truncated" if row["truncated"] else ""
    text = "".join(f"{_BEGINS}{text}{_ENDS}" if learned else text for text, learned in row["pieces"])
    head = f"--- Row {row['row']}{part}: {row['tokens']} tokens, {row['supervised']} trained on{cut}"
    return ["", head, text + (" \u2026" if row["cut"] else "")]
