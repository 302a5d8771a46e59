"""What people wrote is text: a special token spelled out in a prompt or in data (`</s>`, `<|im_end|>`) controls nothing.

A conversation is rendered with a private character in the place of every such spelling, which no template touches, so
that afterwards it is known where they are; their tokens are then those of their letters.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Span = tuple[int, int]  # characters: first, and after the last
_PRIVATE = (*range(0xE000, 0xF900), *range(0xF0000, 0xF0100))  # more than a text has spellings


@dataclass(frozen=True)
class Text:
    """A text, and where in it people spelled out special tokens."""

    text: str
    literal: tuple[Span, ...] = ()

    def ids(self, tokenizer: Any) -> list[int]:
        """Its tokens, without any that a tokenizer would add."""
        return self.tokens(tokenizer)[0]

    def tokens(self, tokenizer: Any) -> tuple[list[int], list[Span]]:
        """Its tokens, and the characters of each."""
        encoded = tokenizer(self.text, add_special_tokens=False, return_offsets_mapping=True)
        ids, places = encoded["input_ids"], [tuple(place) for place in encoded["offset_mapping"]]
        return _spelled(tokenizer, self.text, ids, places, self.literal) if self.literal else (ids, places)


def plain(text: str, tokenizer: Any) -> Text:
    """A text all of which people wrote."""
    return Text(text, tuple(match.span() for match in _pattern(tokenizer).finditer(text)))


def ids_with_added(text: str, tokenizer: Any, control: bool) -> list[int]:
    """The tokens of a text all of which people wrote, with what the tokenizer adds (a BOS, say)."""
    text = _valid(text)
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    literal = () if control else plain(text, tokenizer).literal
    return _spelled(tokenizer, text, ids, encoded["offset_mapping"], literal)[0] if literal else ids


class Conversation:
    """Messages that are rendered by a chat template, wholly or in part; `control` lets special tokens be that."""

    def __init__(self, messages: Sequence[Mapping[str, str]], tokenizer: Any, control: bool = False):
        self.tokenizer = tokenizer
        self._spellings: dict[str, str] = {}
        self.messages = [{**message, "content": _valid(message["content"])} for message in messages]
        if not control and any(_pattern(tokenizer).search(turn["content"]) for turn in self.messages):
            used = {character for turn in self.messages for character in turn["content"]}
            self._free = iter(chr(code) for code in _PRIVATE if chr(code) not in used)
            for turn in self.messages:
                turn["content"] = _pattern(tokenizer).sub(self._hide, turn["content"])

    def _hide(self, match: re.Match[str]) -> str:
        known = {spelling: character for character, spelling in self._spellings.items()}
        if match.group() not in known:
            known[match.group()] = next(self._free)
            self._spellings[known[match.group()]] = match.group()
        return known[match.group()]

    def render(self, count: int | None = None, **settings: Any) -> Text:
        """The first `count` messages (default: all) as the template puts them; it may raise whatever it likes."""
        rendered = str(self.tokenizer.apply_chat_template(self.messages[:count], tokenize=False, **settings))
        if not self._spellings:
            return Text(rendered)
        parts: list[str] = []
        literal, length = [], 0
        for piece in re.split(f"([{''.join(self._spellings)}])", rendered):
            spelled = self._spellings.get(piece)
            if spelled:
                literal.append((length, length + len(spelled)))
            parts.append(spelled or piece)
            length += len(parts[-1])
        return Text("".join(parts), tuple(literal))


def spelled(example: Mapping[str, Any], tokenizer: Any) -> bool:
    """Whether somebody spelled out a special token in an example."""
    texts = [turn["content"] for turn in example["messages"]] if "messages" in example else [example["text"]]
    return any(_pattern(tokenizer).search(text) for text in texts)


def prompt(messages: Sequence[Mapping[str, str]], tokenizer: Any, control: bool = False, **settings: Any) -> Text:
    """A conversation up to where the answer begins."""
    return Conversation(messages, tokenizer, control).render(add_generation_prompt=True, **settings)


def _valid(text: str) -> str:
    """The text with a mark for every half of a character, which no tokenizer takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _spelled(
    tokenizer: Any, text: str, ids: Sequence[int], places: Sequence[Span], literal: Sequence[Span]
) -> tuple[list[int], list[Span]]:
    """The tokens with the special ones that lie in `literal` replaced by the tokens of their letters."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    found: list[int] = []
    spans: list[Span] = []
    for number, (first, last) in zip(ids, places, strict=True):
        if number in special and any(first < end and begin < last for begin, end in literal):
            piece = tokenizer(
                text[first:last], add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
            )
            found += piece["input_ids"]
            spans += [(first + begin, first + end) for begin, end in piece["offset_mapping"]]
        else:
            found.append(number)
            spans.append((first, last))
    return found, spans


def _pattern(tokenizer: Any) -> re.Pattern[str]:
    """Finds every spelling of a special token, the longest first."""
    return _compiled(tuple(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special))


@lru_cache(maxsize=16)
def _compiled(spellings: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, spellings), key=lambda spelling: -len(spelling))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
