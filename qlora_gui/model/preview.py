"""`python -m qlora_gui.model.preview`: the first rows of a data set as the real tokens see them.

Reads a config as JSON on stdin and writes JSON lines: `{"say": ...}` while something is fetched, then one line with
either `error` or the preview. A child of the page, for tokenizers come with the model stack.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from qlora_gui import hub
from qlora_gui.data import facts, read, tokens
from qlora_gui.errors import UserError
from qlora_gui.model import base as bases
from qlora_gui.model import template
from qlora_gui.runs import config as configs
from qlora_gui.runs.config import RunConfig

SHOWN = 3
COUNTED = 2000  # rows of a larger data set are counted up to here
_LONGEST = 1200  # tokens shown of one row


def preview(config: RunConfig, say: Any = print) -> dict[str, Any]:
    """The first rows as pieces of text, each learned from or not, and what becomes of the first `COUNTED` rows.

    `facts` are those of `data.facts` and say besides whether they are of all rows (`whole`), and whether rows to
    measure on will still be split off (`splits`).
    Raises UserError when base or data cannot be used.
    """
    hub.go_offline_if_unreachable()
    found = read.load(config.dataset, config.dataset_format, config.dataset_split, limit=COUNTED)
    base = bases.locate(config.base_model, config.revision, say)
    tokenizer = bases.load_tokenizer(base.path)
    rows = found.train
    kept, report = tokens.encode_all(rows, tokenizer, config.max_length, config.system_prompt, config.control)
    by_row = {example.row: example for example in kept}
    reasons = dict(report.dropped)
    whole, own_held_out = len(rows) < COUNTED, found.held_out is not None
    chat = tokenizer.chat_template
    about = facts.of(kept, tokenizer, found.format, template.digest(chat), has_template=chat != template.PLAIN)
    return {
        "format": found.format,
        "counted": len(rows),
        "whole": whole,
        "own_held_out": own_held_out,
        "used": report.used,
        "truncated": report.truncated,
        "dropped": len(report.dropped),
        "dropped_rows": [{"row": row, "reason": reason} for row, reason in report.dropped[:20]],
        "tokens": report.tokens,
        "supervised": report.supervised,
        "longest": about["longest"],
        "facts": about | {"whole": whole, "splits": not own_held_out},
        "rows": [_row(row, by_row.get(row), reasons.get(row), tokenizer) for row in [r["row"] for r in rows[:SHOWN]]],
    }


def _row(number: int, encoded: tokens.Encoded | None, reason: str | None, tokenizer: Any) -> dict[str, Any]:
    if encoded is None:
        return {"row": number, "dropped": reason, "pieces": []}
    return {
        "row": number,
        "tokens": len(encoded.input_ids),
        "supervised": encoded.supervised,
        "truncated": encoded.truncated,
        "cut": len(encoded.input_ids) > _LONGEST,
        "pieces": list(_pieces(encoded, tokenizer)),
    }


def _pieces(encoded: tokens.Encoded, tokenizer: Any) -> Iterator[tuple[str, bool]]:
    """Stretches of tokens that are all learned from, or all not; the very first token never is."""
    ids = encoded.input_ids[:_LONGEST]
    learned = [position > 0 and label != tokens.IGNORED for position, label in enumerate(encoded.labels[:_LONGEST])]
    begin = 0
    for position in range(1, len(ids) + 1):
        if position == len(ids) or learned[position] != learned[begin]:
            text = tokenizer.decode(ids[begin:position], clean_up_tokenization_spaces=False)
            yield text, learned[begin]
            begin = position


def main() -> int:
    answer = sys.stdout

    def write(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answer, flush=True)

    with contextlib.redirect_stdout(sys.stderr):  # what libraries print must not mix with the answer
        try:
            config = configs.make(json.load(sys.stdin))
            write(preview(config, lambda text: write({"say": text})))
        except UserError as error:
            write({"error": str(error)})
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
