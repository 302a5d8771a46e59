"""What conversations ask and how they are answered: the prompts of held-out rows, their questions and their answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_gui.data.formats import Example
from qlora_gui.data.tokenization import with_system


@dataclass(frozen=True)
class Prompt:
    """A conversation up to where an answer is asked for, and the tools that it may call."""

    turns: list[dict[str, Any]]
    tools: list[Any] | None = None


def prompts_of(examples: Sequence[Example], count: int, system_prompt: str) -> list[Prompt]:
    """The first `count` conversations up to their last answer; rows of plain text have none.

    Answers that follow each other are one: many templates join them, and take no other question than a user's or a
    tool's turn.
    """
    prompts = []
    for example in examples:
        turns = example.get("messages", [])
        last = max((place for place, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
        while last and turns[last - 1]["role"] == "assistant":
            last -= 1
        if last:
            prompts.append(Prompt(with_system(turns[:last], system_prompt), example.get("tools")))
    return prompts[:count]


def first_exchange(example: Example) -> tuple[str, str] | None:
    """A conversation's first question and the data's own answer to it; None where it does not begin with them."""
    turns = [turn for turn in example.get("messages", []) if turn["role"] != "system"]
    if [turn["role"] for turn in turns[:2]] == ["user", "assistant"] and turns[1]["content"].strip():
        return turns[0]["content"], turns[1]["content"]
    return None


def latest(turns: Sequence[Mapping[str, Any]], role: str) -> str:
    """What the last turn of a role says; "" where there is none."""
    return next((str(turn["content"]) for turn in reversed(turns) if turn["role"] == role), "")


def up_to_last_question(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation up to its last question, to be answered anew."""
    last = max((place for place, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    return [*turns[: last + 1]]
