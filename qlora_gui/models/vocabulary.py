"""Tokens that the base has no embedding for: a sentence, where a GPU would only stop with an assertion."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from qlora_gui.errors import UserError
from qlora_gui.files import json_object


def size(folder: str | Path) -> int | None:
    """How many tokens a base has embeddings for, by its config.json; None where that does not say."""
    config = json_object(Path(folder) / "config.json")
    for part in (config.get("text_config"), config):
        if isinstance(part, dict) and isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None


def check(rows: Iterable[Sequence[int]], tokenizer: Any, tokens: int | None, base: str) -> None:
    """Raise UserError where the ids of a row, or of padding, are not all below `tokens`; None is not known."""
    if tokens is None:
        return
    pad = tokenizer.pad_token_id
    beyond = next((number for row in rows for number in row if number >= tokens), None)
    if beyond is None and pad < tokens:
        return
    number = pad if beyond is None else beyond
    fix = (
        "set pad_token in its tokenizer_config.json to a token that the base has, like the one that ends a text"
        if number == pad
        else "take that token out of the text and the chat template, or enlarge the embeddings of the base and save it"
    )
    raise UserError(
        f"The tokenizer of '{base}' has the token '{tokenizer.convert_ids_to_tokens(number)}' with id {number}, for which "
        f"the base has no embedding (its ids end at {tokens - 1}): {fix}."
    )
