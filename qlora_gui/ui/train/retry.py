"""A run that died of memory: what happened, and a button a change that trains it again with that change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_gui.runs.events import Event
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import actions, memory_views
from qlora_gui.ui.rendering import html
from qlora_gui.ui.theme import QUIET


@dataclass
class Retry:
    """The drawn place; `outputs` are what `updates` may change."""

    box: gr.Column
    told: gr.HTML
    buttons: list[gr.Button]
    offered: gr.State

    @property
    def outputs(self) -> list[Any]:
        return [self.box, self.told, *self.buttons, self.offered]

    def updates(self, run_id: str, state: str, events: Sequence[Event]) -> dict[Any, Any]:
        """What to show of a run: nothing, unless it died of memory."""
        found = memory_views.autopsy_of(events) if state == "failed" else None
        if found is None:
            return {self.box: gr.update(visible=False)}
        offers = memory_views.retries(found)
        more = html.hint("Retry with this change: a new run, with all other settings as they were.")
        return {
            self.box: gr.update(visible=True),
            self.told: memory_views.autopsy(found) + (more if offers else ""),
            self.offered: [(run_id, offer.knobs) for offer in offers],
        } | {
            button: gr.update(value=f"Retry: {memory_views.caption(offer, True)}" if offer else "", visible=bool(offer))
            for button, offer in zip(self.buttons, [*offers, *[None] * len(self.buttons)], strict=False)
        }


def build(store: RunStore, link: gr.State, before_start: Callable[[], None], prefix: str) -> Retry:
    """Draw the place, hidden; a press starts the new run and follows it. `prefix` begins the ids on the page."""
    with gr.Column(visible=False, elem_id=f"{prefix}-autopsy", elem_classes="tight") as box:
        told = gr.HTML()
        buttons = [
            gr.Button(size="sm", visible=False, elem_id=f"{prefix}-retry-{number}", elem_classes="change")
            for number in range(memory_views.MOST_RETRIES)
        ]
    offered = gr.State([])

    for number, button in enumerate(buttons):

        def press(offered: list[tuple[str, dict[str, Any]]], number: int = number) -> Any:
            return actions.again(store, before_start, *offered[number])

        button.click(press, offered, link, concurrency_limit=1, trigger_mode="once", **QUIET)
    return Retry(box, told, buttons, offered)
