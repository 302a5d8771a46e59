"""`python -m qlora_gui.training.preview`: the first rows of a data set as the real tokens see them.

Reads `config` and how many `rows` to show as JSON on stdin and writes JSON lines: `{"say": ...}` while something is
fetched, then one line with either `error` or the preview; of a large data set once more when all of it was looked
through. A child process of its own, for tokenizers come with the model stack.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import psutil

from qlora_gui import config as configs
from qlora_gui import hub
from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError, panicked
from qlora_gui.runs import bounded_reading
from qlora_gui.runs.row_preview import SHOWN
from qlora_gui.runs.training_rows import Rows, divided
from qlora_gui.system import collector, processes

with collector.paused():
    from qlora_gui.data import load, row_stats, tokenization
    from qlora_gui.models import base as bases
    from qlora_gui.models import chats, context, vocabulary

COUNTED = 2000  # rows of a larger data set are counted up to here
_LEAST_MEMORY = 4 << 30  # bytes, with the tokenizer
_LONGEST = 1200  # tokens shown of one row


def preview(config: RunConfig, say: Any = print, shown: int = SHOWN) -> dict[str, Any]:
    """The first `shown` rows as pieces of text, each learned from or not, and what becomes of the first `COUNTED` rows.

    Faulty rows are left out here, and counted in `seen` (None while not all rows were looked at), whatever the run does.
    `facts` are those of `data.row_stats` and say besides whether they are of all rows (`whole`), whether rows to measure on
    will still be split off (`splits`), and how many rows settled the thinking where a run may look at more
    (`thinking_by_first`).
    Raises UserError when base or data cannot be used.
    """
    hub.go_offline_if_unreachable()
    data = load.load(config.dataset, config.dataset_format, config.dataset_split, limit=COUNTED, skip_bad_rows=True)
    base = bases.locate(config.base_model, config.revision, say)
    rows = data.train
    chat = chats.for_run(base.path, config, rows)
    encoded, report = tokenization.encode_all(rows, chat, config.max_length, config.system_prompt)
    vocabulary.check((row.input_ids for row in encoded), chat.tokenizer, vocabulary.size(base.path), base.name)
    too_long = context.check(encoded, base.path, base.name)
    whole, own_held_out = data.rows < COUNTED, data.held_out is not None
    all_seen = whole and len(data.held_out or []) + data.skipped < COUNTED
    about = row_stats.compute(encoded, report, chat, data.format)
    by_first = data.rows if not whole and config.thinking == "auto" else None
    return {
        "format": data.format,
        "counted": data.rows,
        "whole": whole,
        "own_held_out": own_held_out,
        "used": report.used,
        "truncated": report.truncated,
        "dropped": len(report.dropped),
        "dropped_rows": [{"row": row, "reason": reason} for row, reason in report.dropped[:20]],
        "tokens": report.tokens,
        "supervised": report.supervised,
        "longest": about["longest"],
        "facts": about | {"whole": whole, "splits": not own_held_out, "thinking_by_first": by_first},
        "separator": data.separator,
        "too_long": too_long,
        "seen": divided(data, config).event_fields() if all_seen else None,
        "rows": [part for row in rows[:shown] for part in _shown(row["row"], encoded, report, chat.tokenizer)],
    }


def _shown(
    number: int, encoded: list[tokenization.Encoded], report: tokenization.Report, tokenizer: Any
) -> list[dict[str, Any]]:
    """One example as it is learned: dropped with the reason, or each of its rows."""
    rows = [row for row in encoded if row.row == number]
    if not rows:
        return [_row(number, None, dict(report.dropped).get(number), tokenizer)]
    parts = [_row(number, row, None, tokenizer) for row in rows]
    if len(parts) == 1:
        return parts
    return [part | {"part": f"{place} of {len(parts)}"} for place, part in enumerate(parts, 1)]


def looked_through(config: RunConfig) -> dict[str, Any]:
    """What a `data` event will say about the rows of a data set of any size, without keeping them. Raises UserError."""
    seen = load.survey(config.dataset, config.dataset_format, config.dataset_split)
    return Rows(
        seen.format,
        [],
        [],
        skipped=seen.faulty,
        skipped_rows=seen.named,
        ignored=dict(seen.ignored),
        duplicates=seen.duplicates,
        known=seen.known,
        usable=seen.usable,
        unused_files=load.find(config.dataset).unused_files,
    ).event_fields()


def _row(number: int, encoded: tokenization.Encoded | None, reason: str | None, tokenizer: Any) -> dict[str, Any]:
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


def _pieces(encoded: tokenization.Encoded, tokenizer: Any) -> Iterator[tuple[str, bool]]:
    """Stretches of tokens that are all learned from, or all not; the very first token never is."""
    ids = encoded.input_ids[:_LONGEST]
    learned = [
        position > 0 and label != tokenization.IGNORED for position, label in enumerate(encoded.labels[:_LONGEST])
    ]
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
            asked = json.load(sys.stdin)
            config = configs.make(asked["config"])
            most = max(psutil.virtual_memory().available // 2, _LEAST_MEMORY)
            processes.limit_memory(most)
            first = preview(config, lambda text: write({"say": text}), asked["rows"])
            write(first)
            if first["seen"] is None:
                write(first | {"seen": looked_through(config)})
        except UserError as error:
            write({"error": str(error)})
            return 1
        except MemoryError:
            write({"error": bounded_reading.too_large(config.dataset, most)})
            return 1
        except BaseException as error:
            if (panic := panicked(error)) is None:
                raise
            write({"error": str(panic)})
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
