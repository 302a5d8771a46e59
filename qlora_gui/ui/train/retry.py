"""A run that died of memory: what happened, and a button a change that trains it again with that change."""

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

from qlora_gui.runs.history import RunHistory
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import actions, memory_views
from qlora_gui.ui.rendering import html
from qlora_gui.ui.theme import QUIET


class Retry:
    """The place, hidden; a press starts the new run and follows it. `prefix` begins the ids on the page."""

    def __init__(self, store: RunStore, link: gr.State, before_start: Callable[[], None], prefix: str):
        self._store, self._link, self._before_start = store, link, before_start
        with gr.Column(visible=False, elem_id=f"{prefix}-autopsy", elem_classes="tight") as self.box:
            self.report = gr.HTML()
            self.buttons = [
                gr.Button(size="sm", visible=False, elem_id=f"{prefix}-retry-{number}", elem_classes="change")
                for number in range(memory_views.MOST_RETRIES)
            ]
        self.offered = gr.State([])

    def wire(self) -> None:
        """Connect the buttons."""
        once: dict[str, Any] = {"concurrency_limit": 1, "trigger_mode": "once"} | QUIET
        for number, button in enumerate(self.buttons):
            button.click(partial(self.press, number), self.offered, self._link, **once)

    def press(self, number: int, offered: list[tuple[str, dict[str, Any]]]) -> Any:
        """Train again with one of the offered changes."""
        return actions.again(self._store, self._before_start, *offered[number])

    @property
    def outputs(self) -> list[Any]:
        """What `updates` may change."""
        return [self.box, self.report, *self.buttons, self.offered]

    def updates(self, run_id: str, state: str, history: RunHistory) -> dict[Any, Any]:
        """What to show of a run: nothing, unless it died of memory."""
        oom = history.oom_report if state == "failed" else None
        if oom is None:
            return {self.box: gr.update(visible=False)}
        offers = memory_views.retries(oom)
        more = html.hint("Retry with this change: a new run with all other settings unchanged.")
        return {
            self.box: gr.update(visible=True),
            self.report: memory_views.oom_report(oom) + (more if offers else ""),
            self.offered: [(run_id, offer.knobs) for offer in offers],
        } | {
            button: gr.update(value=f"Retry: {memory_views.caption(offer, True)}" if offer else "", visible=bool(offer))
            for button, offer in zip(self.buttons, [*offers, *[None] * len(self.buttons)], strict=False)
        }
