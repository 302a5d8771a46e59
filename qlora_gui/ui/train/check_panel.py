"""Where no run has finished yet: a press that checks this machine, its lines as they come."""

import time
from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr

from qlora_gui.check import client
from qlora_gui.check.lines import Line, for_an_issue, verdict, without_names
from qlora_gui.errors import UserError
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import actions
from qlora_gui.ui.rendering import html
from qlora_gui.ui.streaming import streams
from qlora_gui.ui.theme import QUIET

_CAPTION = "Check this machine"
_WHAT = "No run has finished here yet. A check tries everything that a run needs on two tiny models, in about a minute."
_MARKS = {"ok": "✓", "warning": "!", "failed": "✗"}
_STYLES = {"ok": "fits", "warning": "tight", "failed": "over"}


def build(store: RunStore, link: gr.State) -> None:
    """Draw the place and wire it; it is there until a run has finished."""
    with gr.Column(visible=not _has_finished(store), elem_id="check", elem_classes="tight") as box:
        gr.HTML(html.hint(_WHAT))
        press = gr.Button(_CAPTION, size="sm", elem_id="check-start")
        told = gr.HTML(elem_id="check-told")

    @streams
    def look() -> Iterator[dict[Any, Any]]:
        yield {press: gr.update(value="Checking…", interactive=False), told: html.hint("The first lines come at once.")}
        began, found = time.monotonic(), []
        try:
            for line in client.run(store):
                found.append(line)
                yield {told: lines(found)}
            said = verdict(found, time.monotonic() - began)
            yield {told: lines(found, said)}
        except UserError as error:
            actions.warn(error)
            yield {told: ""}
        finally:
            yield {press: gr.update(value=_CAPTION, interactive=True)}

    # One at a time, for two would measure each other.
    press.click(look, None, [press, told], concurrency_limit=1, concurrency_id="check", trigger_mode="once", **QUIET)
    link.change(lambda: gr.update(visible=not _has_finished(store)), None, box, **QUIET)


def lines(found: list[Line], said: str = "") -> str:
    """The lines as HTML, without private names: others may see the page. At the end what to paste into an issue."""
    rows = "".join(
        f'<p class="fit-verdict {_STYLES[line.state]}"><b>{_MARKS[line.state]}</b> {escape(without_names(line.text))}'
        + (f" <b>{escape(without_names(line.fix))}</b>" if line.fix else "")
        + "</p>"
        for line in found
    )
    if not said:
        return rows + html.hint("Still checking…")
    failed = any(line.state == "failed" for line in found)
    return (
        html.note(said, bad=failed)
        + rows
        + html.folded("To paste into an issue", html.literal(for_an_issue(found, said)))
    )


def _has_finished(store: RunStore) -> bool:
    return any(run.has_adapter() or run.state() == "finished" for run in store.all())
