"""One question to all columns: what is written so far, column by column, until all have ended."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from typing import Any

from qlora_gui.compare.settings import Decoding
from qlora_gui.data.tokens import with_system
from qlora_gui.ui import views
from qlora_gui.ui.session import Messages, Session

_REDRAW_SECONDS = 0.08


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
    fresh: bool = field(default=True, repr=False)


def ask(session: Session, histories: list[Messages], system: str, decoding: Decoding) -> Iterator[list[Answer]]:
    """The answers as they grow, at most a dozen times a second; `fresh` ones have changed since the last time.

    Nothing is yielded when nothing is fresh: an update of no component is an error to Gradio.
    """
    answers = [Answer() for _ in histories]
    conversations = [with_system(history, system) for history in histories]
    drawn = time.monotonic()
    for event in session.answer(conversations, decoding):
        _take(answers, event)
        due = event["kind"] == "done" or time.monotonic() - drawn > _REDRAW_SECONDS
        if due and any(answer.fresh for answer in answers):
            yield answers
            for answer in answers:
                answer.fresh = False
            drawn = time.monotonic()


def _take(answers: list[Answer], event: dict[str, Any]) -> None:
    if "column" not in event:
        return
    answer = answers[event["column"]]
    answer.fresh = True
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
