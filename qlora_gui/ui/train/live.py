"""The panel of one run: live while it trains, and how it ended after. The run's files are all it knows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import actions, findings, links, run_view
from qlora_gui.ui.runs import index, resuming
from qlora_gui.ui.theme import QUIET, TICK_SECONDS
from qlora_gui.ui.train import retry

UNSEEN = "unseen"
_LIVE = ("running", "stopping")


@dataclass
class Panel:
    """What others need of it: `followed` holds the id of the run it shows, or ""; `look` draws it anew."""

    followed: gr.State
    seen: gr.State
    look: dict[str, Any]


def panel(store: RunStore, link: gr.State, idle: gr.Column, before_start: Callable[[], None]) -> Panel:
    """Draw the panel. It takes the place of `idle` while it follows a run, and follows any run that goes live.

    `before_start` frees what a training run may need.
    """
    followed, seen = gr.State(""), gr.State(UNSEEN)
    with gr.Column(visible=False, elem_id="live", elem_classes="tight") as box:
        head = gr.HTML(elem_id="live-head")
        told = gr.HTML(elem_id="live-told")
        again_with = retry.build(store, link, before_start, "live")
        doctor = findings.build("live", "Train again:")
        data = gr.HTML()  # alone, so that what is unfolded in it stays so while the rest is drawn anew
        with gr.Row(elem_classes=["tight", "actions"]):
            hidden: dict[str, Any] = {"size": "sm", "min_width": 110, "scale": 0, "visible": False}
            stop = gr.Button("Stop and save", variant="stop", elem_id="stop", **hidden)
            kill = gr.Button("End now, unsaved", elem_id="kill", **hidden)
            resume = gr.Button("Resume", elem_id="resume", **hidden)
            compare = gr.Button("Compare with the base", elem_id="to-compare", **hidden)
            close = gr.Button("Back to the data preview", elem_id="close", **hidden)
        asking = resuming.build("live")
        plots = gr.HTML(elem_id="live-plots")
        probes = gr.HTML(elem_id="live-probes")  # alone, too: it changes only with a new measurement
        log = gr.HTML(elem_id="live-log")
        with gr.Accordion("Numbers", open=False):
            numbers = gr.HTML()
    outputs = [followed, seen, box, idle, head, told, data, stop, kill, resume, compare, close, plots, probes, log]
    outputs += [numbers]
    outputs += again_with.outputs + doctor.outputs

    def look(run_id: str, last_seen: str) -> Any:
        run = _which(store, run_id)
        if run is None:
            return gr.skip() if last_seen == "" else {followed: "", seen: "", box: _shown(False), idle: _shown(True)}
        now = run_view.of(run)
        stamp = f"{now.face} {now.log_size}"
        if stamp == last_seen:
            return gr.skip()
        updates: dict[Any, Any] = {followed: run.id, seen: stamp, log: now.log}
        if now.face == last_seen.rpartition(" ")[0]:  # only the log has grown
            return updates
        return updates | {
            box: _shown(True),
            idle: _shown(False),
            head: now.head,
            told: now.told,
            **again_with.updates(run.id, now.state, now.events),
            **doctor.updates(now.found, offer=not now.live),
            data: now.data,
            stop: _shown(now.state in ("starting", "running")),
            kill: _shown(now.state == "stopping"),
            resume: _shown(not now.live and now.can_resume),
            compare: _shown(not now.live and now.has_adapter),
            close: _shown(not now.live),
            plots: now.plots,
            probes: now.probes,
            numbers: now.numbers,
        }

    again: dict[str, Any] = {"fn": look, "inputs": [followed, seen], "outputs": outputs} | QUIET
    gr.Timer(TICK_SECONDS).tick(**again)
    stop.click(partial(actions.stop, store), followed, None, **QUIET).then(**again)
    kill.click(partial(actions.kill, store), followed, None, **QUIET).then(**again)
    resuming.wire(asking, store, resume, followed, again, QUIET)
    compare.click(lambda run_id: links.to("compare", run_id), followed, link, **QUIET)
    findings.train_again(doctor, store, link, before_start, followed)
    close.click(lambda: links.to("train"), None, link, **QUIET)
    return Panel(followed, seen, again)


def _which(store: RunStore, run_id: str) -> Run | None:
    """The run to show: the one that is followed while it exists, else one that is live."""
    try:
        return store.get(run_id)
    except UserError:
        return next((store.get(one.id) for one in index.glance(store).found if one.state in _LIVE), None)


def _shown(visible: bool) -> Any:
    return gr.update(visible=visible)
