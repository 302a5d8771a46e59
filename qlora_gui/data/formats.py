"""A row of a data file -> an Example. One function a format; a new format is a function and a line in FORMATS.

Example is `{"messages": [{"role", "content"}, ...]}` for conversations, or `{"text": ...}` for plain text.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

Row = dict[str, Any]
Example = dict[str, Any]
FormatName = Literal["auto", "alpaca", "messages", "sharegpt", "prompt-completion", "text"]

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}


class RowError(ValueError):
    """What is missing or wrong in one row, without saying which row."""


def alpaca(row: Row) -> Example:
    """`instruction`, optional `input`, `output`."""
    question = _text(row, "instruction")
    extra = _text(row, "input", optional=True)
    return _turn(f"{question}\n\n{extra}" if extra.strip() else question, _text(row, "output"), row)


def messages(row: Row) -> Example:
    """`messages`: a list of `role`, `content`."""
    return {"messages": _conversation(row, "messages", "role", "content")}


def sharegpt(row: Row) -> Example:
    """`conversations`: a list of `from`, `value`; optional `system`."""
    turns = _conversation(row, "conversations", "from", "value")
    return {"messages": _system(row) + turns if turns[0]["role"] != "system" else turns}


def prompt_completion(row: Row) -> Example:
    """`prompt` and `completion`, each a text or a list of messages."""
    if isinstance(row.get("prompt"), list):
        before = _turns(row["prompt"], "prompt", "role", "content")
        after = row.get("completion")
        if isinstance(after, list):
            return {"messages": _checked(before + _turns(after, "completion", "role", "content"), "completion")}
        return {"messages": [*before, {"role": "assistant", "content": _text(row, "completion")}]}
    return _turn(_text(row, "prompt"), _text(row, "completion"), row)


def text(row: Row) -> Example:
    """`text`: learned as it stands, from first to last token."""
    return {"text": _text(row, "text")}


FORMATS: dict[str, tuple[Callable[[Row], Example], tuple[str, ...]]] = {
    # name: (reader, the columns that give the format away)
    "messages": (messages, ("messages",)),
    "sharegpt": (sharegpt, ("conversations",)),
    "alpaca": (alpaca, ("instruction", "output")),
    "prompt-completion": (prompt_completion, ("prompt", "completion")),
    "text": (text, ("text",)),
}
assert {"auto", *FORMATS} == set(get_args(FormatName))


def recognize(row: Row) -> str | None:
    """The name of the first format whose columns this row has, or None."""
    return next((name for name, (_, columns) in FORMATS.items() if all(c in row for c in columns)), None)


def _text(row: Row, key: str, optional: bool = False) -> str:
    value = row.get(key)
    if value is None:
        if optional:
            return ""
        raise RowError(f"'{key}' is missing" if key not in row else f"'{key}' is null")
    if not isinstance(value, str):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)  # CSV and JSON answers such as 42
        raise RowError(f"'{key}' is {_kind(value)}, not a text")
    if not value.strip() and not optional:
        raise RowError(f"'{key}' is empty")
    return value


def _system(row: Row) -> list[dict[str, str]]:
    value = _text(row, "system", optional=True)
    return [{"role": "system", "content": value}] if value.strip() else []


def _turn(user: str, assistant: str, row: Row) -> Example:
    pair = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": _system(row) + pair}


def _conversation(row: Row, key: str, role_key: str, text_key: str) -> list[dict[str, str]]:
    value = row.get(key)
    if value is None:
        raise RowError(f"'{key}' is missing")
    return _checked(_turns(value, key, role_key, text_key), key)


def _turns(value: Any, key: str, role_key: str, text_key: str) -> list[dict[str, str]]:
    if not isinstance(value, list):
        raise RowError(f"'{key}' is {_kind(value)}, not a list")
    if not value:
        raise RowError(f"'{key}' is empty")
    turns = []
    for number, item in enumerate(value, 1):
        if not isinstance(item, dict):
            raise RowError(f"'{key}' entry {number} is {_kind(item)}, not an object")
        role = item.get(role_key)
        if not isinstance(role, str) or role.lower() not in _ROLES:
            known = "system, user or assistant" if role_key == "role" else "system, human or gpt"
            said = f"'{role_key}' is missing" if role is None else f"'{role_key}' is {role!r}"
            raise RowError(f"'{key}' entry {number}: {said}, expected {known}")
        try:
            turns.append({"role": _ROLES[role.lower()], "content": _text(item, text_key)})
        except RowError as error:
            raise RowError(f"'{key}' entry {number}: {error}") from None
    return turns


def _checked(turns: list[dict[str, str]], key: str) -> list[dict[str, str]]:
    if not any(turn["role"] == "assistant" for turn in turns):
        raise RowError(f"'{key}' has no assistant turn to learn from")
    return turns


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true/false", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)
