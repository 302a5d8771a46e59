"""A sweep from the form: settings to vary, the grid they make with what fits, and a press that queues it."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from qlora_gui.config import marked
from qlora_gui.errors import UserError
from qlora_gui.formatting import setting
from qlora_gui.memory import budget, sweeps
from qlora_gui.memory.sweeps import Cell
from qlora_gui.runs import queue, sweep
from qlora_gui.runs.store import RunStore
from qlora_gui.runs.sweep import Sweep
from qlora_gui.ui import actions, links
from qlora_gui.ui.rendering import html
from qlora_gui.ui.theme import QUIET
from qlora_gui.ui.train import form

_EMPTY = "One setting per line. Every combination becomes a run; everything else is taken from the form."


class SweepPanel:
    """The panel; `before_start` frees what a training run may need."""

    def __init__(self, fields: form.Form, store: RunStore, link: gr.State, before_start: Callable[[], None]):
        self._fields, self._store, self._link, self._before_start = fields, store, link, before_start
        with gr.Accordion("Sweep: try several settings", open=False, elem_id="sweep"):
            self.text = gr.Textbox(
                label="Settings to vary", lines=3, placeholder="rank: 8, 16, 64\nbias: none, all", elem_id="sweep-text"
            )
            self.grid = gr.HTML(html.hint(_EMPTY), elem_id="sweep-grid")
            self.start = gr.Button("Queue the sweep", size="sm", interactive=False, elem_id="sweep-start")

    def wire(self) -> None:
        """Connect the events."""
        inputs = self._fields.inputs() | {self.text}
        # Not at every change of the form, of which a preset alone makes forty; what is queued is planned anew.
        asked = [self.text.change, self.text.focus]
        gr.on(asked, self.check, inputs, [self.grid, self.start], trigger_mode="always_last", **QUIET)
        once: dict[str, Any] = {"concurrency_limit": 1, "trigger_mode": "once"} | QUIET
        self.start.click(self.begin, inputs, [self._link, self.text, self.start], **once)

    def check(self, seen: dict[Any, Any]) -> dict[Any, Any]:
        """Show the grid, and what of it fits."""
        if not (seen[self.text] or "").strip():
            return {
                self.grid: html.hint(_EMPTY),
                self.start: gr.update(value="Queue the sweep", interactive=False),
            }
        try:
            _, cells = self._plan(seen)
        except UserError as error:
            return {self.grid: html.faults([str(error)]), self.start: gr.update(interactive=False)}
        count = sum(not cell.refused for cell in cells)
        caption = f"Queue {count} {'run' if count == 1 else 'runs'}"
        return {self.grid: render_grid(cells), self.start: gr.update(value=caption, interactive=count > 0)}

    def begin(self, seen: dict[Any, Any]) -> dict[Any, Any]:
        """Queue every run that fits, and go to them."""
        try:
            given, cells = self._plan(seen)
            runs = sweep.create(self._store, given, sweeps.fitting(cells))
            self._before_start()
            queue.add(self._store, runs)
            return {self._link: links.to("runs", *(run.id for run in runs)), self.text: ""}
        except UserError as error:
            actions.warn(error)
            return {self.start: gr.skip()}

    def _plan(self, seen: dict[Any, Any]) -> tuple[Sweep, list[Cell]]:
        given = self._fields.values(seen) | sweep.parse(seen[self.text] or "")
        for knob in marked("path"):
            for named in given[knob] if isinstance(given[knob], list) else [given[knob]]:
                self._store.check_allowed(str(named or ""), knob)
        expanded = sweep.expand(given)
        return expanded, sweeps.planned(expanded, budget.here(str(given["gpu"] or "")))


def render_grid(cells: Sequence[Cell]) -> str:
    """The grid as a table: what is particular to each run, and whether it fits."""
    varies = list(cells[0].varied)
    rows = [[*(setting(cell.varied[name], "+") for name in varies), _verdict(cell)] for cell in cells]
    refused = sum(cell.refused for cell in cells)
    hint = f"{refused} of {len(cells)} cannot fit and will not be queued. " if refused else ""
    head = [*map(form.label, varies), "memory, estimated"]
    return html.table(head, rows) + html.hint(f"{hint}They run in this order, one at a time on every GPU.")


def _verdict(cell: Cell) -> str:
    return f"{'✗ ' if cell.refused else ''}{cell.verdict_text}"
