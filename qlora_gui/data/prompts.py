"""Held-out conversations up to where their last answer is asked for: what probes and the command line ask."""

from collections.abc import Sequence
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
