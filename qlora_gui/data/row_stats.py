"""Facts about encoded rows that decide whether anything good can be learned from them; read by the diagnostics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qlora_gui.data import chat_template
from qlora_gui.data.chat import NOTES, Chat
from qlora_gui.data.tokenization import Encoded, Report

_LISTED = 20


def compute(rows: Sequence[Encoded], report: Report, chat: Chat, format: str) -> dict[str, Any]:
    """The facts of rows encoded under `chat`, as plain values for an event.

    A row is an example here, also where it became several. `format` is what they were read as. `supervised_share` is
    of the tokens that can be learned: all but the first of what is trained on. `eos_supervised` is the share of the
    `rows` all of whose answers, if cut only after one, are learned to their end mark; `truncated` counts rows that were
    cut, `truncated_answers` those that were within an answer, and `spelled` those that spell out a special token.
    `turns` counts answers (see `Report`), those among the learned that were cut too (`unended`), `lost` lists the first
    of those that cannot be learned, `notes` counts what the template left out or had changed. `thinking` is None where
    the template has no such setting; `end_from` says what the end mark is. `refuses` is why the template takes not even
    a question and an answer, or "".
    """
    tokenizer = chat.tokenizer
    bos = tokenizer.bos_token_id
    learnable = sum(len(row.input_ids) - 1 for row in rows)
    return {
        "rows": report.used,
        "format": format,
        "supervised_share": sum(row.supervised for row in rows) / max(learnable, 1),
        "eos_supervised": 1 - _examples(rows, lambda row: not row.ended) / report.used if report.used else 0.0,
        "truncated": _examples(rows, lambda row: row.truncated),
        "truncated_answers": _examples(rows, lambda row: row.truncated and not row.ended),
        "spelled": _examples(rows, lambda row: row.spelled),
        "double_bos": bos is not None and any(row.input_ids[:2] == [bos, bos] for row in rows),
        "has_template": chat.template != chat_template.PLAIN,
        "template": chat_template.digest(chat.template),
        "pad_is_eos": tokenizer.pad_token_id == tokenizer.eos_token_id,
        "longest": max((len(row.input_ids) for row in rows), default=0),
        "turns": report.turns() | {"unended": sum(row.turn >= 0 and row.truncated and not row.ended for row in rows)},
        "lost": [{"row": row, "reason": reason} for row, reason in report.lost[:_LISTED]],
        "notes": dict(report.notes),
        "thinking": chat.thinking,
        "end": chat.probe.end,
        "end_from": chat.probe.end_from,
        "refuses": chat.probe.failure,
    }


def _examples(rows: Sequence[Encoded], which: Callable[[Encoded], bool]) -> int:
    """The number of examples with at least one such row."""
    return len({row.row for row in rows if which(row)})


def sentences(facts: Mapping[str, Any]) -> list[str]:
    """What became of the answers, and what the chat template did to them, for people; [] where there is nothing to report."""
    turns = facts.get("turns") or {}
    if not turns.get("present"):
        return []
    lines = []
    if facts.get("refuses"):
        lines.append(f"The chat template refuses even a question and an answer ({facts['refuses']})")
    unended = turns.get("unended", 0)
    if turns["learned"] != turns["present"] or turns["present"] != facts["rows"] or unended:
        apart = {"context_only": "as context only", "cut": "beyond max_length", "lost": "not learnable"}
        rest = [f"{turns[name]:,} {words}" for name, words in apart.items() if turns[name]]
        cut = f", {unended:,} of them without the end, which is beyond max_length" if unended else ""
        verb = "is" if 1 in (turns["learned"], turns["present"]) else "are"
        answers = _counted(turns["present"], "answers")
        lines.append(f"{turns['learned']:,} of {answers} {verb} learned{cut}" + _listed(rest))
    if turns["lost"] and facts.get("lost"):
        first = facts["lost"][0]
        lines.append(f"The first that is not learnable is in row {first['row']:,}: {first['reason']}")
    if turns["split"]:
        lines.append(
            f"{_counted(turns['split'], 'conversations')} became several rows, because the chat template writes earlier "
            "turns differently from the newest"
        )
    lines += [_counted(count, NOTES[name]) for name, count in facts.get("notes", {}).items() if count and name in NOTES]
    if facts.get("thinking") is not None:
        first = facts.get("thinking_by_first")
        which = f", going by the first {first:,} rows; a run goes by all it trains on" if first else ""
        lines.append(f"Thinking is {'on' if facts['thinking'] else 'off'}{which}")
    if facts.get("end_from") == "eos" and not facts.get("refuses"):
        lines.append("The chat template writes no end mark, so the EOS token is learned as one")
    if facts.get("end_from") == "next turn":
        lines.append(f"Answers end with {facts['end'].strip()}, where the next turn begins")
    return lines


def _counted(count: int, words: str) -> str:
    """`1 answer that ...`, `2 answers that ...`: of words that begin with what is counted, in the plural."""
    what, _, rest = words.partition(" ")
    return f"{count:,} {what.removesuffix('s') if count == 1 else what} {rest}".rstrip()


def _listed(parts: Sequence[str]) -> str:
    return f" ({', '.join(parts)})" if parts else ""
