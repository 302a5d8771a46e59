"""Conversations as a template accepts them: joined, folded or filled where it refuses them as they are. Every change is counted."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

Turn = dict[str, Any]
_ID_LETTERS = 9  # Mistral's templates want ids of tool calls to have so many letters and digits

NOTES = {
    "roles_joined": "conversations with neighbouring turns of one role, joined into one",
    "system_moved": "conversations whose later system turns went into user turns",
    "system_folded": "conversations whose system turn went into the first user turn",
    "ids_renamed": "conversations whose tool call ids were renamed",
    "arguments_as_text": "conversations whose tool calls have their arguments as JSON text",
    "greeting_led": "conversations led by an empty user turn, because the assistant would speak first",
}


class Adapted(NamedTuple):
    """Turns as a template accepts them, what `ask` made of them, and the names of the changes."""

    turns: list[Turn]
    asked: str
    changes: list[str]


def adapt(turns: Sequence[Turn], ask: Callable[[Sequence[Turn]], str]) -> Adapted:
    """The turns with the fewest changes under which `ask` renders them whole.

    `ask` renders a prompt of the turns, and raises what the template raises. Raises the first such error where no
    change helps.
    """
    failure: Exception | None = None
    for changed, names in _choices(turns):
        try:
            asked = ask(changed)
            _check_shown(turns, asked)
            return Adapted(changed, asked, names)
        except Exception as error:  # templates are programs; they raise what they like on turns they dislike
            failure = failure or error
    assert failure is not None
    raise failure


def _choices(turns: Sequence[Turn]) -> Iterator[tuple[list[Turn], list[str]]]:
    """The turns with every set of changes that makes something else of them, the smallest first."""
    seen: list[list[Turn]] = []
    for size in range(len(_CHANGES) + 1):
        for names in combinations(_CHANGES, size):
            changed = list(turns)
            for name in names:
                changed = _CHANGES[name](changed)
            if changed not in seen:
                seen.append(changed)
                yield changed, list(names)


def _check_shown(turns: Sequence[Turn], rendered: str) -> None:
    """Raise LookupError where a template leaves a system turn or a tool's result out."""
    for turn in turns:
        if turn["role"] in ("system", "tool") and not shows(rendered, str(turn.get("content") or "")):
            what = "system turns" if turn["role"] == "system" else "results of tools"
            raise LookupError(f"the chat template does not show {what}")


def shows(rendered: str, text: str) -> bool:
    """Whether a text stands in what a template wrote, as it is, as JSON, or with other white space."""
    text = text.strip()
    if text in rendered or json.dumps(text, ensure_ascii=False)[1:-1] in rendered:
        return True
    return "".join(text.split()) in "".join(rendered.split())


def _joined(turns: list[Turn]) -> list[Turn]:
    """Neighbours of one role as one turn, which keeps them in `joined`; turns with tool calls stay."""
    joined: list[Turn] = []
    for turn in turns:
        before = joined[-1] if joined else None
        plain = turn["role"] in ("user", "assistant", "system") and not turn.get("tool_calls")
        if before is None or not plain or before["role"] != turn["role"] or before.get("tool_calls"):
            joined.append(dict(turn))
            continue
        parts = [*before.get("joined", [dict(before)]), turn]
        for name in ("content", "reasoning_content"):
            if texts := [part[name] for part in parts if part.get(name)]:
                before[name] = _paragraphs(*texts)
        before["joined"] = parts
    return joined


def _moved(turns: list[Turn]) -> list[Turn]:
    """System turns after the beginning in user turns; those that lead stay."""
    first = next((place for place, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    return [*turns[:first], *_folded(turns[first:])]


def _folded(turns: list[Turn]) -> list[Turn]:
    """System turns at the end of the user turn that they follow, or else at the head of the next one."""
    folded: list[Turn] = []
    waiting = ""
    for turn in turns:
        if turn["role"] == "system" and folded and folded[-1]["role"] == "user":
            folded[-1] = {**folded[-1], "content": _paragraphs(folded[-1]["content"], turn["content"])}
        elif turn["role"] == "system":
            waiting = _paragraphs(waiting, turn["content"])
        elif turn["role"] == "user" and waiting:
            folded.append({**turn, "content": _paragraphs(waiting, turn["content"])})
            waiting = ""
        else:
            folded.append(turn)
    return turns if waiting else folded


def _paragraphs(*texts: str) -> str:
    return "\n\n".join(filter(None, texts))


def _renamed(turns: list[Turn]) -> list[Turn]:
    """Tool calls with ids of nine letters and digits, and results that name them, in order where they named none."""
    names: dict[str, str] = {}
    unanswered: list[str] = []
    renamed = []
    for turn in turns:
        if turn.get("tool_calls"):
            calls = []
            for call in turn["tool_calls"]:
                new = f"call{len(names):05d}"[:_ID_LETTERS]
                names[str(call.get("id") or new)] = new
                unanswered.append(new)
                calls.append({**call, "id": new})
            turn = {**turn, "tool_calls": calls}
        elif turn["role"] == "tool":
            known = names.get(str(turn.get("tool_call_id")))
            turn = {**turn, "tool_call_id": known or (unanswered[0] if unanswered else f"{0:09d}")}
            unanswered = [name for name in unanswered if name != turn["tool_call_id"]]
        renamed.append(turn)
    return renamed


def _arguments_as_text(turns: list[Turn]) -> list[Turn]:
    """Arguments of tool calls as text, for templates that want to write them as they are."""

    def as_text(call: Turn) -> Turn:
        function = dict(call.get("function") or {})
        if not isinstance(function.get("arguments", ""), str):
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        return {**call, "function": function}

    return [
        {**turn, "tool_calls": [as_text(call) for call in turn["tool_calls"]]} if turn.get("tool_calls") else turn
        for turn in turns
    ]


def _led(turns: list[Turn]) -> list[Turn]:
    """An empty user turn before an answer that nobody asked for, also where that is still to come."""
    first = next((place for place, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    if first < len(turns) and turns[first]["role"] != "assistant":
        return turns
    return [*turns[:first], {"role": "user", "content": ""}, *turns[first:]]


_CHANGES: Mapping[str, Callable[[list[Turn]], list[Turn]]] = {
    "greeting_led": _led,
    "roles_joined": _joined,
    "system_moved": _moved,
    "system_folded": _folded,
    "ids_renamed": _renamed,
    "arguments_as_text": _arguments_as_text,
}
