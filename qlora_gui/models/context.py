"""Rows longer than a base reads: refused where it keeps a table of positions, reported where it computes them."""

from collections.abc import Sequence
from pathlib import Path

from qlora_gui import families
from qlora_gui.data.tokenization import Encoded
from qlora_gui.errors import UserError
from qlora_gui.files import json_object
from qlora_gui.models import rope

_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")


def size(folder: str | Path) -> tuple[int | None, str]:
    """(the tokens that a base was made to read, None where its config.json does not say or its positions grow with the
    row; the type of its text part).
    """
    config = json_object(Path(folder) / "config.json")
    inner = config.get("text_config")
    text = inner if isinstance(inner, dict) else config
    length = next((value for name in _NAMES if isinstance(value := text.get(name), int)), None)
    return None if rope.grows(text) else length, str(text.get("model_type"))


def check_answers(prompts: Sequence[int], new: int, folder: str | Path, base: str) -> None:
    """Raise UserError where answers of up to `new` tokens to prompts of so many could need positions that a base has none for."""
    room, kind = size(folder)
    longest = max(prompts, default=0)
    if new and room is not None and longest + new > room and families.find(kind).position_table:
        raise UserError(
            f"The longest prompt has {longest:,} tokens, its answer may have {new:,}, and '{base}' has positions for {room:,}: ask "
            f"for at most {max(room - longest, 0):,} (--max-new-tokens; 0 measures without answers), or leave out the longest rows."
        )


def check(rows: Sequence[Encoded], folder: str | Path, base: str) -> str:
    """What to say of rows that are longer than the base was made to read, "" where none is.

    Raises UserError where it has no positions for them.
    """
    room, kind = size(folder)
    longest = max((len(row.input_ids) for row in rows), default=0)
    if room is None or longest <= room:
        return ""
    beyond = sum(len(row.input_ids) > room for row in rows)
    sentence = f"{beyond:,} rows are longer than the {room:,} tokens that '{base}' reads, the longest has {longest:,}"
    if families.find(kind).position_table:
        raise UserError(f"{sentence}: set max_length to {room}.")
    return f"{sentence}. It was not made for what comes after; max_length {room} cuts it off."
