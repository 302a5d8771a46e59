"""A row of a data file -> an Example. One function per format; a new format is a function and a line in FORMATS.

Example is `{"messages": [Turn, ...]}` for conversations (see `turns`), with `tools` where the row brings them, or
`{"text": ...}` for plain text.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, get_args

from qlora_gui.config import FormatName
from qlora_gui.data import turns
from qlora_gui.data.turns import RowError, Turn, is_empty, text

Row = dict[str, Any]
Example = dict[str, Any]

_EVERY_CHAT = ("system", "tools", "functions", "weight", "train")
# Columns that change what a row means: leaving them unused is a warning, leaving any other unused only a remark.
_MEANING = {
    *("image", "images", "audio", "audios", "video", "videos", "file", "files", "document", "documents"),
    *("chosen", "rejected", "label", "context", "input", "history", "system", "tools", "functions"),
    *("weight", "train", "reasoning", "reasoning_content", "thinking"),
}
_HARMLESS = {"id", "timestamp", "date", "created", "created_at", "model", "source", "language", "lang"}  # of a turn


def alpaca(row: Row, unused: set[str]) -> Example:
    """`instruction`, optional `input`, `output`; `history` holds pairs that came before."""
    question = text(row, "instruction")
    extra = text(row, "input", optional=True)
    user = f"{question}\n\n{extra}" if extra.strip() else question
    before = turns.pairs(row.get("history"), "history")
    return _chat(row, [*before, *_pair(user, text(row, "output"))], unused)


def messages(row: Row, unused: set[str]) -> Example:
    """`messages`: a list of `role`, `content`."""
    return _conversation(row, "messages", "role", "content", unused)


def sharegpt(row: Row, unused: set[str]) -> Example:
    """`conversations`: a list of `from`, `value`."""
    return _conversation(row, "conversations", "from", "value", unused)


def prompt_completion(row: Row, unused: set[str]) -> Example:
    """`prompt` and `completion`, each a text or a list of messages (or its JSON); answers in the prompt are context."""
    prompt, completion = turns.messages_in(row.get("prompt")), turns.messages_in(row.get("completion"), answers=True)
    if prompt is None:
        before: list[Turn] = [{"role": "user", "content": text(row, "prompt")}]
    else:
        before = turns.conversation(prompt, "prompt", "role", "content", unused)
    for turn in before:
        if turn["role"] == "assistant":
            turn["learn"] = False
    if completion is None:
        after: list[Turn] = [{"role": "assistant", "content": text(row, "completion")}]
    else:
        after = _answered(turns.conversation(completion, "completion", "role", "content", unused), "completion")
    return _chat(row, before + after, unused)


def plain_text(row: Row, unused: set[str]) -> Example:
    """`text`: learned as it stands, from first to last token."""
    return {"text": text(row, "text")}


@dataclass(frozen=True)
class Format:
    """How rows are read: `columns` give the format away, `optional` ones are used where they are there."""

    read: Callable[[Row, set[str]], Example]
    columns: tuple[str, ...]
    optional: tuple[str, ...] = _EVERY_CHAT


FORMATS: dict[str, Format] = {
    "messages": Format(messages, ("messages",)),
    "sharegpt": Format(sharegpt, ("conversations",)),
    "alpaca": Format(alpaca, ("instruction", "output"), ("input", "history", *_EVERY_CHAT)),
    "prompt-completion": Format(prompt_completion, ("prompt", "completion")),
    "text": Format(plain_text, ("text",), ()),
}
assert {"auto", *FORMATS} == set(get_args(FormatName))


def example(row: Any, format: str) -> tuple[Example, set[str]]:
    """A row read as `format`, and the names of its columns and fields that hold something and are not used.

    Fields of turns are named `column.field`. Raises RowError.
    """
    if not isinstance(row, dict):
        raise RowError("it is not an object with named fields")
    how = FORMATS[format]
    unused: set[str] = set()
    parsed = how.read(row, unused)
    used = (*how.columns, *how.optional)
    return parsed, unused | {str(name) for name, value in row.items() if name not in used and not is_empty(value)}


def recognize(columns: Iterable[str]) -> str | None:
    """The name of the first format whose columns these are, or None."""
    there = set(columns)
    return next((name for name, how in FORMATS.items() if there.issuperset(how.columns)), None)


def fits(columns: Iterable[str], format: str) -> bool:
    """Whether a row with these columns can be of this format; `auto` is any."""
    return recognize(columns) is not None if format == "auto" else set(columns).issuperset(FORMATS[format].columns)


def changes_meaning(name: str) -> bool:
    """Whether a column or field that is not used makes rows mean something else, like images or another weight."""
    column, dot, field = name.partition(".")
    if dot:
        return field not in _HARMLESS
    return column.partition(" ")[0] in _MEANING


def _pair(user: str, assistant: str) -> list[Turn]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _conversation(row: Row, key: str, role_key: str, text_key: str, unused: set[str]) -> Example:
    if row.get(key) is None:
        raise RowError(f"'{key}' is null" if key in row else f"'{key}' is missing")
    return _chat(row, _answered(turns.conversation(row[key], key, role_key, text_key, unused), key), unused)


def _chat(row: Row, conversation: list[Turn], unused: set[str]) -> Example:
    """The turns with what the columns of every chat format say: system, tools, and whether the row is learned."""
    system = text(row, "system", optional=True)
    if system.strip() and conversation[0]["role"] == "system":
        unused.add("system")  # the conversation brings its own
    elif system.strip():
        conversation = [{"role": "system", "content": system}, *conversation]
    if not turns.learns(row, ("weight", "train"), unused):
        for turn in conversation:
            if turn["role"] == "assistant":
                turn["learn"] = False
    tools, functions = turns.tools(row.get("tools")), turns.tools(row.get("functions"))
    if tools and functions:
        unused.add("functions")
    tools = tools or functions
    return {"messages": conversation} | ({"tools": tools} if tools else {})


def _answered(conversation: list[Turn], key: str) -> list[Turn]:
    if not any(turn["role"] == "assistant" for turn in conversation):
        raise RowError(f"'{key}' has no assistant turn to learn from")
    return conversation
