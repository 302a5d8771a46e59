"""What people wrote is text: a special token spelled out in a prompt or in data (`</s>`, `<|im_end|>`) controls nothing.

A conversation is rendered with a private character in the place of every such spelling, which no template touches, so
that afterwards it is known where they are; their tokens are then those of their letters.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

Span = tuple[int, int]  # characters: first, and after the last
Turn = Mapping[str, Any]  # role, content; see data/formats.py for the rest
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

    def __add__(self, other: "Text") -> "Text":
        shift = len(self.text)
        return Text(self.text + other.text, self.literal + tuple((a + shift, b + shift) for a, b in other.literal))

    def __getitem__(self, place: slice) -> "Text":
        first, last, _ = place.indices(len(self.text))
        inside = tuple((a - first, b - first) for a, b in self.literal if first <= a and b <= last)
        return Text(self.text[first:last], inside)

    def startswith(self, other: "Text") -> bool:
        """Whether it begins with all of the other text, spelled alike."""
        return self.text.startswith(other.text) and self[: len(other.text)].literal == other.literal


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
    """Messages, and tools, with every special token spelled out in them hidden; `control` lets them be that.

    `turns` are for a template to render; `reveal` makes text of what it gave.
    """

    def __init__(
        self, messages: Sequence[Turn], tokenizer: Any, control: bool = False, tools: Sequence[Any] | None = None
    ):
        self._spellings: dict[str, str] = {}
        valid: list[Any] = _mapped([list(messages), list(tools or [])], _valid)
        pattern = _pattern(tokenizer)
        if not control and any(pattern.search(text) for text in _texts(valid)):
            used = {character for text in _texts(valid) for character in text}
            self._free = iter(chr(code) for code in _PRIVATE if chr(code) not in used)
            valid = _mapped(valid, lambda text: pattern.sub(self._hide, text))
        self.turns: list[dict[str, Any]] = valid[0]
        self.tools: list[Any] | None = valid[1] or None

    def _hide(self, match: re.Match[str]) -> str:
        known = {spelling: character for character, spelling in self._spellings.items()}
        if match.group() not in known:
            known[match.group()] = next(self._free)
            self._spellings[known[match.group()]] = match.group()
        return known[match.group()]

    def reveal(self, rendered: str) -> Text:
        """A rendered text with the spellings in their places again."""
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
    texts = _texts(example["messages"]) if "messages" in example else iter([example["text"]])
    return any(_pattern(tokenizer).search(text) for text in texts)


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Nested messages with every text changed; roles and names of fields are not people's text, but harmless."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, (list, tuple)) else value


def _valid(text: str) -> str:
    """The text with a mark for every half of a character, which no tokenizer takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _spelled(
    tokenizer: Any, text: str, ids: Sequence[int], places: Sequence[Span], literal: Sequence[Span]
) -> tuple[list[int], list[Span]]:
    """The tokens with the special ones that lie in `literal` replaced by the tokens of their letters."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    replaced: list[int] = []
    spans: list[Span] = []
    for number, (first, last) in zip(ids, places, strict=True):
        if number in special and any(first < end and begin < last for begin, end in literal):
            piece = tokenizer(
                text[first:last], add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
            )
            replaced += piece["input_ids"]
            spans += [(first + begin, first + end) for begin, end in piece["offset_mapping"]]
        else:
            replaced.append(number)
            spans.append((first, last))
    return replaced, spans


_patterns: WeakKeyDictionary[Any, tuple[int, re.Pattern[str]]] = WeakKeyDictionary()  # Gemma brings 6,000 added tokens


def _pattern(tokenizer: Any) -> re.Pattern[str]:
    """Finds every spelling of a special token; made once a tokenizer, and again when it got more tokens."""
    size, pattern = _patterns.get(tokenizer, (-1, re.compile("")))
    if size != len(tokenizer):
        pattern = compiled(tuple(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special))
        _patterns[tokenizer] = len(tokenizer), pattern
    return pattern


@lru_cache(maxsize=16)
def compiled(spellings: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern that finds any of these texts, the longest first; it finds nothing where there are none."""
    longest_first = sorted(filter(None, spellings), key=lambda spelling: -len(spelling))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
