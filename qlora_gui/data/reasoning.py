"""Reasoning before an answer: the marks around it, taken apart, and closed where a generation prompt opens it."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# How models mark their reasoning. The first pair is by far the most usual.
MARKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)

_LINE_END = re.compile(r"[ \t]*(\r|\n|$)")


def split(content: str, opened: bool = False) -> tuple[str, str]:
    """(reasoning, answer) of a text that begins with reasoning in MARKS; ("", text) of any other.

    The opening mark may be missing, for some generation prompts end with it; then no other may follow. Where it is
    not known to be `opened` so, the closing mark has to end a line outside of code: else it is what the text is about.
    """
    for opening, closing in MARKS:
        before, found, after = content.partition(closing)
        head, mark, inside = before.partition(opening)
        if found and mark and not head.strip():
            return inside.strip(), after.lstrip()
        closes = opened or (_LINE_END.match(after) and before.count("```") % 2 == 0)
        if found and not mark and opening not in after and closes:
            return before.strip(), after.lstrip()
    return "", content


@dataclass(frozen=True)
class Parted:
    """A text taken apart to be shown: nothing is left out, `thought + answer` is the text.

    `thought` has its marks and the line ends after it, "" where there is none; `ended` says whether it was closed.
    """

    thought: str
    answer: str
    ended: bool = True

    def title(self, writing: bool = False) -> str:
        """What the thought is called where it is folded; `writing` while more of the text comes."""
        state = "" if self.ended else "…" if writing else " (not finished)"
        return f"Thinking{state} · {len(self.thought):,} characters"


def parted(text: str, prompt: str | None = None) -> Parted:
    """The thought at the beginning of a text, open or closed, and the answer after it.

    `prompt` is what the text goes on from. It may end within a thought, whose opening mark the text then lacks; after
    one that does not, a closing mark alone is a word like others. None: not known, and a closing mark alone counts.
    """
    opened = left_open(prompt) if prompt is not None else None
    for opening, closing in MARKS:
        before, found, after = text.partition(closing)
        begun = text.lstrip().startswith(opening) or (opened is not None and opened[0] == closing)
        if not begun and not (prompt is None and found and opening not in text):
            continue
        if not found:
            return Parted(text, "", ended=False)
        gap = re.match(r"(?:[ \t]*\r?\n)*", after)
        end = len(before) + len(closing) + (gap.end() if gap else 0)
        return Parted(text[:end], text[end:])
    return Parted("", text)


def split_turn(turn: Mapping[str, Any], opened: bool = False) -> dict[str, Any]:
    """An assistant turn with the reasoning of its content in `reasoning_content`, unless that field holds something else.

    Marks with nothing between them, as models write them that think no more, are taken off.
    """
    content = str(turn.get("content") or "")
    reasoning, answer = split(content, opened)
    given = str(turn.get("reasoning_content") or "").strip()
    if answer == content or (reasoning and given not in ("", reasoning)):
        return dict(turn)
    return {**turn, "content": answer, **({"reasoning_content": reasoning} if reasoning else {})}


def share_with_reasoning(conversations: Iterable[Sequence[Mapping[str, Any]]]) -> float:
    """The share of answers, of those that are learned, that carry reasoning; 0 of none."""
    answers = [
        bool(split_turn(turn).get("reasoning_content"))
        for turns in conversations
        for turn in turns
        if turn["role"] == "assistant" and turn.get("learn", True)
    ]
    return sum(answers) / len(answers) if answers else 0.0


def left_open(prompt: str) -> tuple[str, str] | None:
    """(the mark it ends with, what closes it again with nothing thought) of a prompt that opens a thought."""
    for opening, closing in MARKS:
        if prompt.rstrip().endswith(opening):
            return closing, f"\n{closing}\n\n" if prompt.endswith("\n") else closing
    return None


def closed(prompt: str) -> str:
    """A prompt that leaves no thought open."""
    opened = left_open(prompt)
    return prompt + opened[1] if opened else prompt


def completed(context: str, rest: str, reasoning: str) -> tuple[str, str]:
    """Context and answer made consistent where the prompt opens a thought that the template does not go on with.

    With reasoning the answer goes on with it; without, the thought is closed in the context.
    """
    opened = left_open(context)
    if opened is None:
        return context, rest
    mark, closing = opened
    if reasoning and reasoning in rest:
        opening = next(opening for opening, closing_mark in MARKS if closing_mark == mark)
        began = rest.lstrip().startswith(opening)
        return context, rest.lstrip().removeprefix(opening).lstrip() if began else rest
    if rest.lstrip().startswith(mark):
        rest = rest.lstrip().removeprefix(mark).lstrip()
    if not reasoning:
        return context + closing, rest
    return context, reasoning + closing + rest


def spans(text: str) -> list[tuple[int, int]]:
    """Where closed thoughts stand in a text."""
    pairs = "|".join(f"{re.escape(opening)}.*?{re.escape(closing)}" for opening, closing in MARKS)
    return [match.span() for match in re.finditer(pairs, text, re.DOTALL)]
