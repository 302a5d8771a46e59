"""One question to all columns: what is written so far, column by column, until all have ended."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

from qlora_gui.data.tokenization import with_system
from qlora_gui.inference.sampling import Decoding
from qlora_gui.ui import views
from qlora_gui.ui.compare.session import Messages, Session

_REDRAW_SECONDS = 0.12


@dataclass
class Answer:
    """One column's answer: its text so far, a line of HTML about it, the prompt as the model read it.

    `tokens` is its length and `reason` what ended it, once it has `ended`.
    """

    text: str = ""
    line: str = "waiting…"
    prompt: str = ""
    ended: bool = False
    tokens: int = 0
    reason: str = ""


def ask(session: Session, histories: list[Messages], system: str, decoding: Decoding) -> Iterator[list[Answer]]:
    """The answers as they grow, at most eight times per second."""
    answers = [Answer() for _ in histories]
    conversations = [with_system(history, system) for history in histories]
    drawn = time.monotonic()
    for event in session.answer(conversations, decoding):
        _take(answers, event)
        if event["kind"] == "done" or time.monotonic() - drawn > _REDRAW_SECONDS:
            yield answers
            drawn = time.monotonic()


def _take(answers: list[Answer], event: dict[str, Any]) -> None:
    if "column" not in event:
        return
    answer = answers[event["column"]]
    if event["kind"] == "prompt":
        answer.prompt = event["prompt"]
    elif event["kind"] == "text":
        answer.text += event["text"]
        answer.line = "writing…"
    elif event["kind"] == "column":
        answer.line, answer.ended = views.ending(event), True
        answer.tokens, answer.reason = event["tokens"], event["ended"]
    elif event["kind"] == "error":
        answer.line, answer.ended = escape(str(event.get("message", "failed"))), True


def without_last_answer(history: Messages) -> Messages:
    """A conversation up to its last question."""
    last = max((number for number, turn in enumerate(history) if turn["role"] == "user"), default=-1)
    return history[: last + 1]
