"""A sweep from the form: settings to vary, the grid they make with what fits, and a press that queues it."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.memory import budget, sweeps
from qlora_gui.memory.sweeps import Cell
from qlora_gui.runs import queue, sweep
from qlora_gui.runs.store import PATH_KNOBS, RunStore
from qlora_gui.runs.sweep import Sweep
from qlora_gui.ui import actions, links
from qlora_gui.ui.rendering import html
from qlora_gui.ui.theme import QUIET
from qlora_gui.ui.train import form

_EMPTY = "One setting a line with its values. Every combination is a run; all else is as in the form above."


def build(fields: form.Form, store: RunStore, link: gr.State, before_start: Callable[[], None]) -> None:
    """Draw the panel and wire it; `before_start` frees what a training run may need."""
    with gr.Accordion("Sweep: try several settings", open=False, elem_id="sweep"):
        text = gr.Textbox(
            label="Settings to vary", lines=3, placeholder="rank: 8, 16, 64\nbias: none, all", elem_id="sweep-text"
        )
        grid = gr.HTML(html.hint(_EMPTY), elem_id="sweep-grid")
        start = gr.Button("Queue the sweep", size="sm", interactive=False, elem_id="sweep-start")

    def planned(seen: dict[Any, Any]) -> tuple[Sweep, list[Cell]]:
        given = fields.values(seen) | sweep.parse(seen[text] or "")
        for knob in PATH_KNOBS:
            for named in given[knob] if isinstance(given[knob], list) else [given[knob]]:
                store.check_allowed(str(named or ""), knob)
        found = sweep.expand(given)
        return found, sweeps.planned(found, budget.here(str(given["gpu"] or "")))

    def check(seen: dict[Any, Any]) -> dict[Any, Any]:
        if not (seen[text] or "").strip():
            return {grid: html.hint(_EMPTY), start: gr.update(value="Queue the sweep", interactive=False)}
        try:
            _, cells = planned(seen)
        except UserError as error:
            return {grid: html.faults([str(error)]), start: gr.update(interactive=False)}
        count = sum(not cell.refused for cell in cells)
        runs = f"Queue {count} {'run' if count == 1 else 'runs'}"
        return {grid: told(cells), start: gr.update(value=runs, interactive=count > 0)}

    def begin(seen: dict[Any, Any]) -> dict[Any, Any]:
        try:
            found, cells = planned(seen)
            runs = sweep.create(store, found, sweeps.fitting(cells))
            before_start()
            queue.add(store, runs)
            return {link: links.to("runs", *(run.id for run in runs)), text: ""}
        except UserError as error:
            actions.warn(error)
            return {start: gr.skip()}

    inputs = fields.inputs() | {text}
    # Not at every change of the form, of which a preset alone makes forty; what is queued is planned anew.
    gr.on([text.change, text.focus], check, inputs, [grid, start], trigger_mode="always_last", **QUIET)
    start.click(begin, inputs, [link, text, start], concurrency_limit=1, trigger_mode="once", **QUIET)


def told(cells: Sequence[Cell]) -> str:
    """The grid as a table: what is particular to each run, and whether it fits."""
    varies = list(cells[0].varied)
    rows = [[*(sweep.plain(cell.varied[name]) for name in varies), _verdict(cell)] for cell in cells]
    refused = sum(cell.refused for cell in cells)
    hint = f"{refused} of {len(cells)} cannot fit and will not be queued. " if refused else ""
    head = [*map(form.label, varies), "memory, estimated"]
    return html.table(head, rows) + html.hint(f"{hint}They run in this order, one at a time on every GPU.")


def _verdict(cell: Cell) -> str:
    return f"{'✗ ' if cell.refused else ''}{cell.said}"
