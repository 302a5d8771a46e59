"""The panel of one run: live while it trains, and how it ended after. The run's files are all it knows."""

from collections.abc import Callable
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


class LivePanel:
    """It takes the place of `idle` while it follows a run, and follows any run that goes live.

    `followed` holds the id of the run it shows, or ""; `before_start` frees what a training run may need.
    """

    def __init__(self, store: RunStore, link: gr.State, idle: gr.Column, before_start: Callable[[], None]):
        self._store, self._link, self._idle, self._before_start = store, link, idle, before_start
        self.followed, self.seen = gr.State(""), gr.State(UNSEEN)
        with gr.Column(visible=False, elem_id="live", elem_classes="tight") as self.box:
            self.head = gr.HTML(elem_id="live-head")
            self.overview = gr.HTML(elem_id="live-overview")
            self.retry = retry.Retry(store, link, before_start, "live")
            self.findings = findings.FindingsPanel("live", "Train again:")
            self.data = gr.HTML()  # alone, so that what is unfolded in it stays so while the rest is drawn anew
            with gr.Row(elem_classes=["tight", "actions"]):
                hidden: dict[str, Any] = {"size": "sm", "min_width": 110, "scale": 0, "visible": False}
                self.stop = gr.Button("Stop and save", variant="stop", elem_id="stop", **hidden)
                self.kill = gr.Button("Kill without saving", elem_id="kill", **hidden)
                self.resume = gr.Button("Resume", elem_id="resume", **hidden)
                self.compare = gr.Button("Compare with the base", elem_id="to-compare", **hidden)
                self.close = gr.Button("Close this run", elem_id="close", **hidden)
            self.question = resuming.ResumeQuestion(store, "live")
            self.plots = gr.HTML(elem_id="live-plots")
            self.probes = gr.HTML(elem_id="live-probes")  # alone, too: it changes only with a new measurement
            self.log = gr.HTML(elem_id="live-log")
            with gr.Accordion("Numbers", open=False):
                self.numbers = gr.HTML()
        self.timer = gr.Timer(TICK_SECONDS)
        self.looking: dict[str, Any] = {  # a listener that draws it anew
            "fn": self.look,
            "inputs": [self.followed, self.seen],
            "outputs": self._outputs(),
        } | QUIET

    def wire(self) -> None:
        """Connect the events."""
        self.retry.wire()
        self.timer.tick(**self.looking)
        self.stop.click(partial(actions.stop, self._store), self.followed, None, **QUIET).then(**self.looking)
        self.kill.click(partial(actions.kill, self._store), self.followed, None, **QUIET).then(**self.looking)
        self.question.wire(self.resume, self.followed, self.looking, QUIET)
        self.compare.click(lambda run_id: links.to("compare", run_id), self.followed, self._link, **QUIET)
        self.findings.wire_train_again(self._store, self._link, self._before_start, self.followed)
        self.close.click(lambda: links.to("train"), None, self._link, **QUIET)

    def look(self, run_id: str, last_seen: str) -> Any:
        """Draw the run anew, where something has changed."""
        run = _which(self._store, run_id)
        if run is None:
            if last_seen == "":
                return gr.skip()
            return {self.followed: "", self.seen: "", self.box: _shown(False), self._idle: _shown(True)}
        now = run_view.draw(run)
        stamp = f"{now.face} {now.log_size}"
        if stamp == last_seen:
            return gr.skip()
        updates: dict[Any, Any] = {self.followed: run.id, self.seen: stamp, self.log: now.log}
        if now.face == last_seen.rpartition(" ")[0]:  # only the log has grown
            return updates
        return updates | {
            self.box: _shown(True),
            self._idle: _shown(False),
            self.head: now.head,
            self.overview: now.overview,
            **self.retry.updates(run.id, now.state, now.history),
            **self.findings.updates(now.diagnosis, offer=not now.live),
            self.data: now.data,
            self.stop: _shown(now.state in ("starting", "running")),
            self.kill: _shown(now.state == "stopping"),
            self.resume: _shown(not now.live and now.can_resume),
            self.compare: _shown(not now.live and now.has_adapter),
            self.close: _shown(not now.live),
            self.plots: now.plots,
            self.probes: now.probes,
            self.numbers: now.numbers,
        }

    def _outputs(self) -> list[Any]:
        outputs = [self.followed, self.seen, self.box, self._idle, self.head, self.overview, self.data]
        outputs += [self.stop, self.kill, self.resume, self.compare, self.close]
        outputs += [self.plots, self.probes, self.log, self.numbers]
        return outputs + self.retry.outputs + self.findings.outputs


def _which(store: RunStore, run_id: str) -> Run | None:
    """The run to show: the one that is followed while it exists, else one that is live."""
    try:
        return store.get(run_id)
    except UserError:
        return next(
            (store.get(summary.id) for summary in index.glance(store).summaries if summary.state in _LIVE), None
        )


def _shown(visible: bool) -> Any:
    return gr.update(visible=visible)
