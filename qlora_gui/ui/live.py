"""The panel of one run: live while it trains, and how it ended after. The run's files are all it knows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import actions, evidence, findings, fit_views, html, links, retry, views
from qlora_gui.ui.theme import QUIET, TICK_SECONDS

LOG_LINES = 40
UNSEEN = "unseen"


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
        state = run.state()
        sizes = [path.stat().st_size if path.exists() else 0 for path in (run.events_file, run.log_file)]
        now = f"{run.id} {state} {sizes[0]} {sizes[1]}"
        if now == last_seen:
            return gr.skip()
        updates: dict[Any, Any] = {followed: run.id, seen: now, log: html.log(run.log_tail(LOG_LINES))}
        if now.rpartition(" ")[0] == last_seen.rpartition(" ")[0]:  # only the log has grown
            return updates
        events, _ = run.events()
        live, can_resume = state in views.LIVE, run.last_checkpoint() is not None
        over = views.outcome(state, events, run.log_tail(1), can_resume and state != "finished", run.has_adapter())
        doing = html.hint(views.stage(state, events)) if live else over
        return updates | {
            box: _shown(True),
            idle: _shown(False),
            head: views.headline(run.id, state, events),
            told: doing + fit_views.told(events) + views.tiles(events),
            **again_with.updates(run.id, state, events),
            **doctor.updates(findings.of_run(run, events), offer=not live),
            data: views.data_told(events),
            stop: _shown(state in ("starting", "running")),
            kill: _shown(state == "stopping"),
            resume: _shown(not live and state != "finished" and can_resume),
            compare: _shown(not live and run.has_adapter()),
            close: _shown(not live),
            plots: views.curves(events),
            probes: evidence.timeline(events),
            numbers: views.numbers(events),
        }

    again: dict[str, Any] = {"fn": look, "inputs": [followed, seen], "outputs": outputs} | QUIET
    gr.Timer(TICK_SECONDS).tick(**again)
    stop.click(partial(actions.stop, store), followed, None, **QUIET).then(**again)
    kill.click(partial(actions.kill, store), followed, None, **QUIET).then(**again)
    resume.click(partial(actions.resume, store), followed, None, **QUIET).then(**again)
    compare.click(lambda run_id: links.to("compare", run_id), followed, link, **QUIET)
    findings.train_again(doctor, store, link, before_start, followed)
    close.click(lambda: links.to("train"), None, link, **QUIET)
    return Panel(followed, seen, again)


def _which(store: RunStore, run_id: str) -> Run | None:
    """The run to show: the one that is followed while it exists, else one that is live."""
    try:
        return store.get(run_id)
    except UserError:
        return next((run for run in store.all() if run.is_locked()), None)


def _shown(visible: bool) -> Any:
    return gr.update(visible=visible)
