"""A tokenizer.json as GGUF has it: the tokens with their kinds, merges or scores, and which way texts are cut before merging.

llama.cpp reimplements tokenizers, so only what it has a name for can be written; all else is refused.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from gguf import GGUFWriter, TokenType

from qlora_gui import plain_files
from qlora_gui.errors import UserError
from qlora_gui.models.base import MOST_TOKENIZER

_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The pattern that a text is cut by -> llama.cpp's name for it (LLAMA_VOCAB_PRE_TYPE in src/llama-vocab.cpp).
_BY_PATTERN = {
    _LLAMA3: "llama-bpe",
    _QWEN2: "qwen2",
    _O200K: "gpt-4o",
    _TEKKEN: "tekken",
    r" ?[^(\s|[.,!?…。，、।۔،])]+": "bloom",
}


@dataclass(frozen=True)
class Vocabulary:
    """What is written: `model` is "gpt2" (byte-level merges) or "llama" (SentencePiece's), `pre` the way of cutting."""

    model: str
    pre: str
    tokens: list[str]
    kinds: list[TokenType]
    merges: list[str]
    scores: list[float]
    space_prefix: bool


def read(folder: Path, size: int) -> Vocabulary:
    """The vocabulary of a folder's tokenizer.json, padded to `size` tokens, as many as the embedding has.

    Raises UserError for one that llama.cpp has no name for.
    """
    try:
        body = json.loads(plain_files.read_text(folder / "tokenizer.json", MOST_TOKENIZER, follow=True))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"The tokenizer.json of '{folder}' cannot be read ({error}).") from None
    model = body.get("model") or {}
    if model.get("type") != "BPE":
        raise _refused(f"its model is {model.get('type')}")
    pieces = model.get("byte_fallback") is True
    pre = "default" if pieces else _way_of_cutting(body.get("pre_tokenizer"), body.get("normalizer"))
    ids: dict[str, int] = dict(model["vocab"])
    added = {int(token["id"]): token for token in body.get("added_tokens") or []}
    ids |= {str(token["content"]): number for number, token in added.items()}
    # Gemma 3's smallest has a token for images, which it does not embed: what is only added and beyond is left out
    by_id = {number: token for token, number in ids.items() if number < size or number not in added}
    if max(by_id) >= size:
        raise UserError(
            f"The tokenizer has {max(by_id) + 1:,} tokens, and the model embeds {size:,}: take a whole copy of the base."
        )
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(size)]
    kinds = [_kind(number, by_id, added, pieces, model.get("unk_token")) for number in range(size)]
    merges = [_merge(pair) for pair in model.get("merges") or []]
    scores = _scores(tokens, kinds, model.get("merges") or []) if pieces else []
    return Vocabulary(
        "llama" if pieces else "gpt2", pre, tokens, kinds, [] if pieces else merges, scores, _adds_space(body)
    )


def _refused(why: str) -> UserError:
    return UserError(
        f"llama.cpp has no name for this tokenizer ({why}): merge the model (--to merged), then run llama.cpp's own "
        "convert_hf_to_gguf.py on that folder."
    )


def _kind(
    number: int, by_id: dict[int, str], added: dict[int, dict[str, Any]], pieces: bool, unknown: str | None
) -> TokenType:
    if number not in by_id:
        return TokenType.UNUSED
    token = by_id[number]
    if pieces and token == unknown:
        return TokenType.UNKNOWN
    if number in added:
        return TokenType.CONTROL if added[number].get("special") else TokenType.USER_DEFINED
    if pieces and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return TokenType.BYTE
    return TokenType.NORMAL


def _merge(pair: str | Sequence[str]) -> str:
    """One merge as a text; a space within a part is written as the byte-level letter for it."""
    if isinstance(pair, str):
        return pair
    return " ".join(part.replace(" ", chr(ord(" ") + 256)) for part in pair)


def _scores(tokens: Sequence[str], kinds: Sequence[TokenType], merges: Sequence[str | Sequence[str]]) -> list[float]:
    """SentencePiece merges the pair whose result has the highest score: so the score is how early a token is merged."""
    rank: dict[str, int] = {}
    for number, pair in enumerate(merges):
        left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
        rank.setdefault(left + right, number)
    last = len(rank)
    return [
        0.0 if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.BYTE) else -float(rank.get(token, last))
        for token, kind in zip(tokens, kinds, strict=True)
    ]


def _way_of_cutting(before: Any, normalizer: Any) -> str:
    """llama.cpp's name for a pre-tokenizer of byte-level merges."""
    steps = before.get("pretokenizers", [before]) if isinstance(before, dict) else []
    kinds = [step.get("type") for step in steps]
    if normalizer and normalizer.get("type") not in ("NFC", None):
        raise _refused(f"its normalizer is {normalizer.get('type')}")
    if "ByteLevel" not in kinds:
        raise _refused("it does not work on bytes")
    last = steps[kinds.index("ByteLevel")]
    if kinds == ["Split", "ByteLevel"] and not last.get("use_regex"):
        pattern = steps[0].get("pattern", {})
        found = _BY_PATTERN.get(pattern.get("Regex", ""))
        if found is None:
            raise _refused("it cuts texts by another pattern")
        return found
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and last.get("use_regex"):
        return "smollm"
    if kinds == ["ByteLevel"] and last.get("use_regex", True):
        return "gpt-2"
    raise _refused(f"it cuts texts by {', '.join(map(str, kinds))}")


def _adds_space(body: dict[str, Any]) -> bool:
    """Whether a space is put before a text, as SentencePiece does."""
    before, normalizer = body.get("pre_tokenizer") or {}, body.get("normalizer") or {}
    steps = [before, *before.get("pretokenizers", []), normalizer, *normalizer.get("normalizers", [])]
    return any(
        (step.get("type") == "Metaspace" and step.get("prepend_scheme") in ("always", "first"))
        or (step.get("type") == "Prepend")
        or (step.get("type") == "ByteLevel" and step.get("add_prefix_space"))
        for step in steps
    )


def write(writer: GGUFWriter, vocabulary: Vocabulary, folder: Path, ends: Sequence[int]) -> None:
    """Write the vocabulary, its special tokens and chat template, and every token that ends an answer (`ends`).

    Raises UserError where an answer ends with a token that the model does not embed.
    """
    if beyond := [end for end in ends if end >= len(vocabulary.tokens)]:
        raise UserError(f"An answer ends with token {beyond[0]:,}, and the model embeds {len(vocabulary.tokens):,}.")
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space_prefix)
    special = gguf.SpecialVocab(folder, load_merges=False, special_token_types=("bos", "unk", "pad"))
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    for name in ("bos", "unk", "pad"):
        if name in special.special_token_ids:
            getattr(writer, f"add_{name}_token_id")(special.special_token_ids[name])
    writer.add_add_bos_token(bool(special.add_special_token.get("bos", False)))
    writer.add_add_eos_token(False)
    # of more than one end llama.cpp knows three by name; it finds others by how they are spelled
    for add, end in zip(
        (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id), ends, strict=False
    ):
        add(end)
    if special.chat_template is not None:
        writer.add_chat_template(special.chat_template)
