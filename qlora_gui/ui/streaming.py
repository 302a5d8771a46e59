"""Listeners that draw in several steps, and what keeps the answer to an older question from replacing a newer one."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ParamSpec

import gradio as gr

_P = ParamSpec("_P")


def streams(listener: Callable[_P, Iterator[Any]]) -> Callable[_P, Iterator[Any]]:
    """Decorates every listener that yields.

    Gradio sends the last output once more when a generator ends, and empties the outputs of one that yielded nothing:
    ending with "no change" keeps what is on the page.
    """

    @functools.wraps(listener)
    def ended_with_no_change(*args: _P.args, **kwargs: _P.kwargs) -> Iterator[Any]:
        yield from listener(*args, **kwargs)
        yield gr.skip()

    ended_with_no_change.ends_with_no_change = True  # type: ignore[attr-defined]
    return ended_with_no_change


@dataclass
class Newest:
    """Counts the questions of one page about one output; kept in a gr.State, of which each page has its own copy.

    `about` tells the newest question from others, so that it need not be asked twice.
    """

    asked: int = 0
    about: str = ""

    def ask(self, about: str = "") -> Callable[[], bool]:
        """Begin a question; gives a function that says whether it is still the newest one."""
        self.asked += 1
        self.about = about
        mine = self.asked
        return lambda: self.asked == mine
