"""Facts about encoded rows that decide whether anything good can be learned from them; the doctor reads them."""

from collections.abc import Sequence
from typing import Any

from qlora_gui.data import tokens
from qlora_gui.data.tokens import IGNORED, Encoded


def of(rows: Sequence[Encoded], tokenizer: Any, format: str, template: str, has_template: bool) -> dict[str, Any]:
    """The facts of rows encoded with `tokenizer`, as plain values for an event.

    `format` is what the rows were read as, `template` the digest of the chat template, `has_template` whether the base
    brings it. `supervised_share` is of the tokens that can be learned: all but the first of a row. `truncated_answers`
    counts rows that were cut before the end mark of their last answer, `spelled` those that spell out a special token.
    """
    marks = end_marks(tokenizer)
    ended = [_last_label(row) in marks for row in rows]
    bos = tokenizer.bos_token_id
    learnable = sum(len(row.input_ids) - 1 for row in rows)
    return {
        "rows": len(rows),
        "format": format,
        "supervised_share": sum(row.supervised for row in rows) / max(learnable, 1),
        "eos_supervised": sum(ended) / max(len(rows), 1),
        "truncated": sum(row.truncated for row in rows),
        "truncated_answers": sum(row.truncated and not end for row, end in zip(rows, ended, strict=True)),
        "spelled": sum(row.spelled for row in rows),
        "double_bos": bos is not None and any(row.input_ids[:2] == [bos, bos] for row in rows),
        "has_template": has_template,
        "template": template,
        "pad_is_eos": tokenizer.pad_token_id == tokenizer.eos_token_id,
        "longest": max((len(row.input_ids) for row in rows), default=0),
    }


def end_marks(tokenizer: Any) -> set[int]:
    """The tokens that end an answer: EOS, and the one the chat template puts behind an answer, if it puts one."""
    turns = [{"role": "user", "content": "ok"}, {"role": "assistant", "content": "ok"}]
    marks = {tokenizer.eos_token_id}
    try:
        rendered, spans = tokens.render(turns, tokenizer)
    except Exception:  # templates are programs; one that refuses these turns says nothing of its end mark
        return marks
    text = rendered.text
    if spans and not text[slice(*spans[-1])].endswith("ok"):
        marks.add(tokenizer(text[: spans[-1][1]], add_special_tokens=False)["input_ids"][-1])
    return marks


def _last_label(row: Encoded) -> int:
    """The last token that is learned; IGNORED where none is."""
    return next((label for label in reversed(row.labels) if label != IGNORED), IGNORED)
