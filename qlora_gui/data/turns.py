"""Turns of conversations as data files write them -> Turns as chat templates take them.

A Turn is `{"role", "content"}` with, where the data has them, `reasoning_content`, `tool_calls`, `name`, `tool_call_id`,
and `learn: False` on an assistant turn that is context only. Names of fields that are not honoured go into `unused`.
"""

import ast
import json
import warnings
from collections.abc import Mapping
from typing import Any

from qlora_gui.data import lenient_json, utf8

Turn = dict[str, Any]
_MOST_PYTHON = 20_000  # values in a list of Python's, whose syntax tree takes 1.5 kB for each

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
_ARGUMENTS = ("arguments", "parameters", "args", "input")  # of a tool call, the usual name first
_CALLS = ("function_call", "tool_call")  # roles whose text is a tool call as JSON
_OTHER_KEY = {"role": "from", "from": "role", "content": "value", "value": "content"}
_REASONING = ("reasoning_content", "reasoning", "thinking")
_LEARNS = ("train", "training", "loss", "learn")  # fields that say yes or no
_HIDES = ("masked", "mask")  # fields that say the opposite
_TEXT_BLOCKS = ("text", "input_text", "output_text")
_THOUGHT_BLOCKS = ("thinking", "reasoning")
_OTHER_BLOCKS = (
    *("image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video", "video_url", "input_video"),
    *("file", "input_file", "document"),
)
_BLOCKS = (*_TEXT_BLOCKS, *_THOUGHT_BLOCKS, *_OTHER_BLOCKS)


class RowError(ValueError):
    """What is missing or wrong in one row, without saying which row."""


def conversation(value: Any, key: str, role_key: str, text_key: str, unused: set[str]) -> list[Turn]:
    """The turns of the column `key`: a list, or its JSON. Raises RowError."""
    value = listed(value)
    if not isinstance(value, list):
        raise RowError(f"'{key}' is {kind(value)}, not a list")
    if not value:
        raise RowError(f"'{key}' is empty")
    turns = []
    for number, item in enumerate(value, 1):
        if not isinstance(item, dict):
            raise RowError(f"'{key}' entry {number} is {kind(item)}, not an object")
        try:
            turn = _turn(item, key, role_key, text_key, unused)
        except RowError as error:
            raise RowError(f"'{key}' entry {number}: {error}") from None
        if turn["content"].strip() or turn["role"] != "system":  # an empty system turn says nothing
            turns.append(turn)
    return turns


def tools(value: Any) -> list[dict[str, Any]]:
    """The tools column, a list or its JSON, as templates take it: [{"type": "function", "function": {...}}].

    Raises RowError.
    """
    parsed = []
    for item in _objects(value, "'tools'"):
        bare = {name: part for name, part in item.items() if name != "type"}
        function = item.get("function", bare)
        if not isinstance(function, dict) or not _is_text(function.get("name")):
            raise RowError("'tools' holds a tool without a name")
        parsed.append({"type": "function", "function": function})
    return parsed


def messages_in(value: Any, answers: bool = False) -> list[Any] | None:
    """A list of messages, or the one whose JSON a cell holds; None for what is none, as a text.

    JSON in a text is messages only where every entry is one, and of `answers` where the assistant begins: roles and
    names are also what people extract from texts, and an answer may be a conversation that was asked for.
    """
    messages = listed(value) if isinstance(value, str) and value.lstrip().startswith("[") else value
    if not isinstance(messages, list):
        return None
    if messages is value:
        return messages
    if (
        not messages
        or not all(map(_is_message, messages))
        or (answers and _ROLES[messages[0]["role"].lower()] != "assistant")
    ):
        return None  # a text that begins with a bracket, or other JSON that is to be learned
    return messages


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict) or str(value.get("role")).lower() not in _ROLES:
        return False
    return isinstance(value.get("content"), (str, list)) or bool(value.get("tool_calls"))


def pairs(value: Any, key: str) -> list[Turn]:
    """[[question, answer], ...] as turns. Raises RowError."""
    value = listed(value, f"'{key}'") or []
    if not isinstance(value, list):
        raise RowError(f"'{key}' is {kind(value)}, not a list of pairs")
    turns: list[Turn] = []
    for number, pair in enumerate(value, 1):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise RowError(f"'{key}' entry {number} is not a pair of question and answer")
        question, answer = ("" if part is None else part for part in pair)
        if not isinstance(question, str) or not isinstance(answer, str):
            raise RowError(f"'{key}' entry {number} is not a pair of question and answer")
        if not question.strip() and not answer.strip():
            continue  # as some tools fill up what did not come before
        if not answer.strip():
            raise RowError(f"'{key}' entry {number} has an empty answer")
        if question.strip():  # else the assistant began, as chat pages keep a greeting
            turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": answer})
    return turns


def learns(fields: Mapping[str, Any], names: tuple[str, ...], unused: set[str], prefix: str = "") -> bool:
    """Whether an answer is learned, by the fields of these names that its turn or its row has.

    `weight` counts as 0 or 1; any other weight cannot be honoured and is noted.
    """
    learned = True
    for name in names:
        value = fields.get(name)
        if is_empty(value):
            continue
        flag = _yes_or_no(value)
        if flag is None:
            unused.add(f"{prefix}{name} other than 0 and 1" if name == "weight" else f"{prefix}{name}")
        else:
            learned &= flag != (name in _HIDES)
    return learned


def text(fields: Mapping[str, Any], key: str, optional: bool = False) -> str:
    """A text by its name; numbers are texts too. Raises RowError where it is missing, or empty and not optional."""
    value = fields.get(key)
    if value is None:
        if optional:
            return ""
        raise RowError(f"'{key}' is missing" if key not in fields else f"'{key}' is null")
    if not isinstance(value, str):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)  # CSV and JSON answers such as 42
        raise RowError(f"'{key}' is {kind(value)}, not a text")
    if not value.strip() and not optional:
        raise RowError(f"'{key}' is empty")
    return value


def is_empty(value: Any) -> bool:
    """Whether a field holds nothing."""
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})


def listed(value: Any, what: str = "") -> Any:
    """A list or object, also from its JSON or Python text, as cells of CSV and Parquet hold it.

    A text that is neither is given back, or with `what` a RowError.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return []
    try:
        return lenient_json.parsed(value)
    except (ValueError, RecursionError):
        pass
    if value.lstrip()[:1] in "[{" and sum(map(value.count, ",[{:")) <= _MOST_PYTHON:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of backslashes in the texts
                return utf8.whole(ast.literal_eval(value))  # what pandas writes for a list
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            pass
    if what:
        raise RowError(f"{what} is not JSON")
    return value


def kind(value: Any) -> str:
    """`a list`, `a text`: the type of a value in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true/false", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def _turn(item: dict[str, Any], key: str, role_key: str, text_key: str, unused: set[str]) -> Turn:
    role_key = role_key if role_key in item or _OTHER_KEY[role_key] not in item else _OTHER_KEY[role_key]
    text_key = text_key if text_key in item or _OTHER_KEY[text_key] not in item else _OTHER_KEY[text_key]
    given_role = item.get(role_key)
    name = given_role.strip().lower() if isinstance(given_role, str) else ""
    if name not in _ROLES:
        known = "system, user or assistant" if role_key == "role" else "system, human or gpt"
        problem = f"'{role_key}' is missing" if given_role is None else f"'{role_key}' is {given_role!r}"
        raise RowError(f"{problem}: use {known} (or tool)")
    role = _ROLES[name]
    used = {role_key, text_key, "name", "tool_call_id"}
    turn: Turn = {"role": role}
    calls: list[dict[str, Any]] = []
    if name in _CALLS:
        calls = _calls(item.get(text_key), f"the {name}", key, unused)
        if not calls:
            raise RowError(f"'{text_key}' is empty")
        turn["content"] = ""
    else:
        if role == "assistant":
            calls = _calls(item.get("tool_calls"), "'tool_calls'", key, unused)
            used.add("tool_calls" if calls else "function_call")
            calls = calls or _calls(item.get("function_call"), "'function_call'", key, unused)
        content, thought = _content(item, text_key, bool(calls) or role in ("tool", "system"), unused, role == "tool")
        turn["content"] = content
        if role == "assistant":
            thought = thought or _reasoning(item, used)
            turn |= {"reasoning_content": thought} if thought else {}
        elif thought:
            unused.add(f"{key}.thinking")
    if calls:
        turn["tool_calls"] = calls
    turn |= {field: item[field] for field in ("name", "tool_call_id") if _is_text(item.get(field))}
    switches = ("weight", *_LEARNS, *_HIDES)
    if role == "assistant":
        used |= set(switches)
        if not learns(item, switches, unused, f"{key}."):
            turn["learn"] = False
    else:  # only answers are learned; a question marked as not to be learned needs no note, nor a weight that all have
        used |= {name for name in switches if name == "weight" or not learns(item, (name,), set())}
    unused |= {f"{key}.{field}" for field, value in item.items() if field not in used and not is_empty(value)}
    return turn


def _is_data(value: Any) -> bool:
    """Whether the result of a tool is an object or a list of them, and not blocks of content."""
    if not isinstance(value, list):
        return isinstance(value, dict)
    if any(isinstance(part, dict) and part.get("type") in _OTHER_BLOCKS for part in value):
        return False  # a picture, say, which is no text
    return any(not isinstance(part, str) and not (isinstance(part, dict) and _is_block(part)) for part in value)


def _is_block(block: Mapping[str, Any]) -> bool:
    """Whether an object is a block of content: by its type, or with nothing but a text."""
    return block["type"] in _BLOCKS if isinstance(block.get("type"), str) else block.keys() <= {"type", "text"}


def _content(
    item: Mapping[str, Any], key: str, may_be_empty: bool, unused: set[str], result: bool = False
) -> tuple[str, str]:
    """(text, reasoning) of a turn's content: a text, or a list of blocks of text and thought.

    The `result` of a tool may also be an object or a list of objects, whose JSON is its text.
    """
    value = item.get(key)
    if result and _is_data(value):
        return json.dumps(value, ensure_ascii=False, default=str), ""  # dates, as Parquet has them
    if not isinstance(value, list):
        return text(item, key, may_be_empty), ""
    parts: dict[str, list[str]] = {"text": [], "thought": []}
    for block in value:
        where, part = _block(block, key, unused)
        parts[where].append(part)
    whole = "".join(parts["text"])
    if not whole.strip() and not may_be_empty:
        raise RowError(f"'{key}' is empty")
    return whole, "".join(parts["thought"])


def _block(block: Any, key: str, unused: set[str]) -> tuple[str, str]:
    """A block of content as ("text" or "thought", its text). Raises RowError for images and other things."""
    if isinstance(block, str):
        return "text", block
    block = _object(block, f"a block of '{key}'")
    name = block.get("type") or "text"
    if name in _TEXT_BLOCKS:
        if block.get("text") is None:
            raise RowError(f"'{key}' holds a block of text without its 'text'")
        _note_unused(block, {"type", "text"}, key, unused)
        return "text", text(block, "text", optional=True)
    if name in _THOUGHT_BLOCKS:
        field = next((part for part in (name, "text", "content") if block.get(part) is not None), None)
        if field is None:
            raise RowError(f"'{key}' holds a block of type {name!r} without its text")
        _note_unused(block, {"type", field, "signature"}, key, unused)
        inner = block[field]
        if isinstance(inner, str):
            return "thought", inner
        if not isinstance(inner, list):
            raise RowError(f"'{key}' holds a block of type {name!r} whose text is {kind(inner)}")
        return "thought", "".join(_block(part, key, unused)[1] for part in inner)
    raise RowError(f"'{key}' holds a block of type {name!r}; only text can be trained on")


def _note_unused(block: Mapping[str, Any], used: set[str], key: str, unused: set[str]) -> None:
    unused |= {f"{key}.{field}" for field, value in block.items() if field not in used and not is_empty(value)}


def _reasoning(item: Mapping[str, Any], used: set[str]) -> str:
    """The first field of reasoning that holds a text, as such added to `used`."""
    for name in _REASONING:
        if _is_text(item.get(name)):
            used.add(name)
            return str(item[name])
    return ""


def _calls(value: Any, what: str, key: str, unused: set[str]) -> list[dict[str, Any]]:
    """Tool calls, one or a list, each with or without `function` around it -> as templates take them."""
    calls = []
    for item in _objects(value, what):
        function = item.get("function", item)
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name.strip():
            raise RowError("a tool call has no name")
        arguments_key = next((field for field in _ARGUMENTS if not is_empty(function.get(field))), "arguments")
        arguments = function.get(arguments_key)
        used = {"function", "id", "type", "index", "name", arguments_key}
        fields = {field for field, content in (item | function).items() if not is_empty(content)}
        unused |= {f"{key}.{field} of a call" for field in fields - used}
        arguments = {} if is_empty(arguments) else listed(arguments)
        if not isinstance(arguments, dict):
            raise RowError(f"the arguments of the call of '{name}' are not a JSON object")
        call: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
        if _is_text(item.get("id")):
            call["id"] = item["id"]
        calls.append(call)
    return calls


def _objects(value: Any, what: str) -> list[dict[str, Any]]:
    """A list of objects, or a single one, or the JSON of either; [] for nothing. Raises RowError."""
    value = listed(value, what)
    if isinstance(value, dict):
        return [value]
    if value is not None and not isinstance(value, list):
        raise RowError(f"{what} is {kind(value)}, not a list")
    return [_object(item, f"an entry of {what}") for item in value or []]


def _object(value: Any, what: str) -> dict[str, Any]:
    value = listed(value)
    if not isinstance(value, dict):
        raise RowError(f"{what} is {kind(value)}, not an object")
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _yes_or_no(value: Any) -> bool | None:
    """What true, 1, "yes" and their opposites say; None for anything else."""
    words = {"true": True, "yes": True, "1": True, "1.0": True, "false": False, "no": False, "0": False, "0.0": False}
    if isinstance(value, str):
        return words.get(value.strip().lower())
    return bool(value) if isinstance(value, (bool, int, float)) and value in (0, 1) else None
