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


class CheckPanel:
    """The place; it is there until a run has finished."""

    def __init__(self, store: RunStore, link: gr.State):
        self._store, self._link = store, link
        with gr.Column(visible=not _has_finished(store), elem_id="check", elem_classes="tight") as self.box:
            gr.HTML(html.hint(_WHAT))
            self.press = gr.Button(_CAPTION, size="sm", elem_id="check-start")
            self.report = gr.HTML(elem_id="check-report")

    def wire(self) -> None:
        """Connect the events."""
        alone: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "check", "trigger_mode": "once"}
        # One at a time, for two would measure each other.
        self.press.click(self.check, None, [self.press, self.report], **alone, **QUIET)
        self._link.change(lambda: gr.update(visible=not _has_finished(self._store)), None, self.box, **QUIET)

    @streams
    def check(self) -> Iterator[dict[Any, Any]]:
        """Check the machine; yields the lines so far."""
        yield {
            self.press: gr.update(value="Checking…", interactive=False),
            self.report: html.hint("The first lines appear right away."),
        }
        began, so_far = time.monotonic(), []
        try:
            for line in client.run(self._store):
                so_far.append(line)
                yield {self.report: lines(so_far)}
            yield {self.report: lines(so_far, verdict(so_far, time.monotonic() - began))}
        except UserError as error:
            actions.warn(error)
            yield {self.report: ""}
        finally:
            yield {self.press: gr.update(value=_CAPTION, interactive=True)}


def lines(checked: list[Line], conclusion: str = "") -> str:
    """The lines as HTML, without private names: others may see the page. At the end what to paste into an issue."""
    rows = "".join(
        f'<p class="fit-verdict {_STYLES[line.state]}"><b>{_MARKS[line.state]}</b> {escape(without_names(line.text))}'
        + (f" <b>{escape(without_names(line.fix))}</b>" if line.fix else "")
        + "</p>"
        for line in checked
    )
    if not conclusion:
        return rows + html.hint("Still checking…")
    failed = any(line.state == "failed" for line in checked)
    return (
        html.note(conclusion, bad=failed)
        + rows
        + html.folded("To paste into an issue", html.literal(for_an_issue(checked, conclusion)))
    )


def _has_finished(store: RunStore) -> bool:
    return any(run.has_adapter() or run.state() == "finished" for run in store.all())
