"""Runs: all of them in a table; one opened, or several against each other."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.evaluation import job
from qlora_gui.evaluation.results import Evaluation
from qlora_gui.export import job as exports
from qlora_gui.export import push_job as pushes
from qlora_gui.inference.sampling import MAX_ADAPTERS
from qlora_gui.runs import elsewhere, queue
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import actions, evaluation_views, findings, links, run_view, views
from qlora_gui.ui.bring import BringPanel
from qlora_gui.ui.compare import offers
from qlora_gui.ui.rendering import html
from qlora_gui.ui.runs import cache, comparison, export_panel, index, resuming
from qlora_gui.ui.runs import table as runs_table
from qlora_gui.ui.runs.index import Look
from qlora_gui.ui.runs.summary import Summary
from qlora_gui.ui.theme import RAW, TICK_SECONDS
from qlora_gui.ui.train import retry

_EMPTY = html.empty(
    "No runs yet. Open Train and press Start: the demo is filled in already. Or add an adapter below that was made elsewhere."
)
_CHOOSE = html.hint("Choose one run to open it, or several to see their curves and how they differ.")
_MOST = 24
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 110, "scale": 0}
# One that puts a question aside must not answer after one that asks it, though it was asked before it.
_IN_TURN: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "delete"}


class _ActionBar:
    """What can be done with the chosen runs: the buttons, the settings of Evaluate, and the question before Delete."""

    def __init__(self) -> None:
        with gr.Row(elem_classes=["tight", "actions"], visible=False, elem_id="run-actions") as self.buttons:
            self.show = gr.Button("Open in Train", **_SMALL)
            self.whole = gr.Button("The whole sweep", elem_id="whole-sweep", **_SMALL)
            self.stop = gr.Button("Stop and save", variant="stop", **_SMALL)
            self.earlier = gr.Button("Earlier", elem_id="earlier", **_SMALL)
            self.later = gr.Button("Later", elem_id="later", **_SMALL)
            self.leave = gr.Button("Leave the queue", elem_id="leave", **_SMALL)
            self.resume = gr.Button("Resume", **_SMALL)
            self.again = gr.Button("Train again with changes", elem_id="again", **_SMALL)
            self.evaluate = gr.Button("Evaluate", elem_id="evaluate", **_SMALL)
            self.compare = gr.Button("Compare the answers", variant="primary", **_SMALL)
            self.delete = gr.Button("Delete…", elem_id="delete", **_SMALL)
        title = "What Evaluate measures"
        with gr.Accordion(title, open=False, visible=False, elem_id="evaluate-how") as self.how, gr.Row():
            self.rows = gr.Number(
                job.STANDARD.rows,
                precision=0,
                label="Rows",
                info="Held-out rows, at most.",
                elem_id="evaluate-rows",
            )
            self.tokens = gr.Number(
                job.STANDARD.max_new_tokens,
                precision=0,
                label="Max new tokens",
                info="Length limit of an answer, in tokens; 0 measures losses only.",
                elem_id="evaluate-tokens",
            )
            self.data = gr.Textbox(
                label="Rows from",
                info="File or hub id; needed for what was made elsewhere. Empty: what the first run held out.",
                elem_id="evaluate-data",
                max_lines=1,
                min_width=260,
            )
            self.base = gr.Textbox(
                label="Base",
                info="Hub id or folder. Empty: the one that the first adapter names.",
                elem_id="evaluate-base",
                max_lines=1,
                min_width=220,
            )
        with gr.Row(elem_classes=["tight", "actions"], visible=False, elem_id="confirm") as self.confirm:
            self.question = gr.HTML(elem_id="question")
            self.sure = gr.Button("Delete", variant="stop", elem_id="sure", **_SMALL)
            self.keep = gr.Button("Cancel", **_SMALL)

    @property
    def outputs(self) -> list[Any]:
        """What `updates` may change."""
        return [
            self.buttons,
            self.show,
            self.whole,
            self.stop,
            self.earlier,
            self.later,
            self.leave,
            self.resume,
            self.again,
            self.evaluate,
            self.how,
            self.compare,
            self.delete,
        ]

    def updates(self, look: Look, runs: list[Run], summaries: list[Summary], evaluating: bool) -> dict[Any, Any]:
        """Show the buttons that suit the chosen runs."""
        only = summaries[0] if len(summaries) == 1 else None
        live = only is not None and only.state in views.LIVE
        waits = only is not None and only.state == "queued"
        can_resume = only is not None and not live and not waits and _can_resume(runs[0], only)
        can_be_evaluated = _can_be_evaluated(summaries)
        return {
            self.evaluate: gr.update(visible=can_be_evaluated, interactive=not evaluating),
            self.how: gr.update(visible=can_be_evaluated),
            self.buttons: gr.update(visible=bool(summaries)),
            self.show: gr.update(visible=only is not None and not only.elsewhere),
            self.whole: gr.update(visible=only is not None and len(_sweep_ids(look, only)) > 1),
            self.stop: gr.update(visible=live),
            **{button: gr.update(visible=waits) for button in (self.earlier, self.later, self.leave)},
            self.resume: gr.update(visible=can_resume),
            self.again: gr.update(visible=bool(only and only.config)),
            self.compare: gr.update(visible=any(summary.adapter for summary in summaries)),
            self.delete: gr.update(visible=only is not None and not live),
        }


class _Details:
    """The opened run, or several against each other."""

    def __init__(self, store: RunStore, link: gr.State, before_start: Callable[[], None]):
        self._store = store
        self.overview, self.evaluation = gr.HTML(elem_id="runs-overview"), gr.HTML(elem_id="runs-judged")
        self.findings = findings.FindingsPanel("runs", "Train again:")
        self.retry = retry.Retry(store, link, before_start, "runs")
        self.data, self.plots = gr.HTML(), gr.HTML(elem_id="runs-plots")
        with gr.Column(visible=False, elem_classes="tight") as self.more:
            with gr.Accordion("Numbers", open=False):
                self.numbers = gr.HTML()
            with gr.Accordion("Settings", open=False):
                self.settings = gr.HTML()
            with gr.Accordion("End of the log", open=False):
                self.log = gr.HTML()

    @property
    def outputs(self) -> list[Any]:
        """What `updates` and `evaluation_updates` may change."""
        parts = [self.overview, self.evaluation, self.data, self.plots]
        parts += [self.more, self.numbers, self.settings, self.log]
        return [*parts, *self.retry.outputs, *self.findings.outputs]

    def updates(self, runs: list[Run], summaries: list[Summary]) -> dict[Any, Any]:
        """Show what the files of the runs say."""
        if len(runs) == 1:
            return self._one_run(runs[0], summaries[0])
        several = comparison.render(runs, summaries) if runs else ""
        plots = several if runs else _CHOOSE if index.glance(self._store).summaries else ""
        hidden = gr.update(visible=False)
        return {self.overview: "", self.data: "", self.plots: plots, self.more: hidden, self.retry.box: hidden}

    def _one_run(self, run: Run, summary: Summary) -> dict[Any, Any]:
        now = run_view.Drawing(run, summary.state)
        return {
            self.overview: now.head + now.overview,
            **self.retry.updates(run.id, now.state, now.history),
            self.data: now.data,
            self.plots: now.plots + now.probes,
            self.more: gr.update(visible=True),
            self.numbers: now.numbers,
            self.settings: _settings(run, summary),
            self.log: now.log,
        }

    def evaluation_updates(
        self, runs: list[Run], results: dict[str, Evaluation | None], working: job.State, live: bool
    ) -> dict[Any, Any]:
        """Show what the evaluations of the runs came to, and the findings."""
        progress = evaluation_views.working(working)
        if len(runs) != 1:
            return {self.evaluation: progress + evaluation_views.several(results), **self.findings.updates([])}
        result = results[runs[0].id]
        remarks = [] if index.reading(runs[0]) else findings.after_run(runs[0], result)
        head = '<h3 class="part">Diagnostics</h3>' if remarks else ""
        body = progress + (evaluation_views.render(result) if result else "") + head
        return {self.evaluation: body, **self.findings.updates(remarks, offer=not live)}


class RunsTab:
    """The tab; `before_start` frees what a training run may need."""

    def __init__(self, store: RunStore, link: gr.State, before_start: Callable[[], None]):
        self._store, self._link, self._before_start = store, link, before_start
        self.empty = gr.HTML(_EMPTY, elem_id="no-runs")
        self.find = gr.Textbox(
            label="Find runs",
            info="Words from any column, e.g. qwen failed",
            elem_id="runs-find",
            visible=False,
            max_lines=1,
        )
        self.table = gr.HTML(elem_id="runs-table", max_height=330, js_on_load=runs_table.PRESSED)
        self.more_rows = gr.Button(f"Show {runs_table.PAGE} more", elem_id="runs-more", visible=False, **_SMALL)
        self.chosen = gr.Dropdown(
            [], value=[], multiselect=True, max_choices=_MOST, label="Chosen runs", elem_id="chosen", visible=False
        )
        self.actions = _ActionBar()
        self.question = resuming.ResumeQuestion(store, "runs")
        self.export = export_panel.ExportPanel(store, before_start)
        self.details = _Details(store, link, before_start)
        self.bring = BringPanel(store, "runs")
        self.disk = cache.DiskPanel(store)
        self.seen, self.detail_seen = gr.State(""), gr.State("")
        self.order = gr.State(runs_table.NEWEST_FIRST)
        self.doomed = gr.State("")
        self.most = gr.State(runs_table.PAGE)
        self.timer = gr.Timer(2 * TICK_SECONDS)

    def wire(self) -> None:
        """Connect the events."""
        self.details.retry.wire()
        self.disk.wire()
        refreshing: dict[str, Any] = {
            "fn": self.refresh,
            "inputs": [self.seen, *self._looks()],
            "outputs": [self.seen, self.empty, self.find, *self._drawn_anew()],
        } | RAW
        detailing: dict[str, Any] = {
            "fn": self.detail,
            "inputs": [self.chosen, self.detail_seen],
            "outputs": [*self.details.outputs, self.detail_seen, *self.actions.outputs, *self.export.outputs],
        } | RAW
        self.bring.wire(self._link, self.chosen)
        self.timer.tick(**refreshing | {"fn": self.tick}).then(**detailing)
        followed = self._link.change(**refreshing)
        followed.then(self.follow, [self._link, self.chosen], self.chosen, **RAW).then(**detailing)
        self.details.findings.wire_train_again(self._store, self._link, self._before_start, self.chosen)
        self._wire_table(detailing)
        self._wire_actions(refreshing, detailing)
        self._wire_delete(refreshing)

    def _wire_table(self, detailing: dict[str, Any]) -> None:
        looks, drawn_anew, bar = self._looks(), self._drawn_anew(), self.actions
        # "once", which is Gradio's own, drops a press that comes while the answer to the one before is still under way.
        self.table.sort(self.sort, looks, [self.order, *drawn_anew], trigger_mode="multiple", **RAW)
        self.table.select(self.toggle, self.chosen, self.chosen, trigger_mode="multiple", **RAW)
        self.find.change(self.redraw, looks, drawn_anew, trigger_mode="always_last", **RAW)
        self.more_rows.click(self.show_more, looks, [self.most, *drawn_anew], **RAW)
        # One listener and what follows it: with several, Gradio 6.31 sends changes without end while nothing changes.
        changed = self.chosen.change(lambda *looks: self.redraw(*looks)[self.table], looks, self.table, **RAW)
        aside = [self.chosen, self.doomed], [bar.confirm, self.question.box]
        changed = changed.then(**detailing).then(self.put_aside, *aside, **_IN_TURN | RAW)
        self.export.wire(self.chosen, detailing, changed)

    def _wire_actions(self, refreshing: dict[str, Any], detailing: dict[str, Any]) -> None:
        bar, store, chosen, link = self.actions, self._store, self.chosen, self._link
        bar.show.click(lambda picked: links.to("train", picked[0]), chosen, link, **RAW)
        bar.whole.click(lambda picked: self.whole_sweep(picked[0]), chosen, chosen, **RAW)
        bar.again.click(lambda picked: links.to("train", picked[0], show=False, fill=True), chosen, link, **RAW)
        bar.compare.click(lambda picked: links.to("compare", *picked), chosen, link, **RAW)
        asked = [chosen, bar.rows, bar.tokens, bar.data, bar.base]
        bar.evaluate.click(self.begin_evaluation, asked, None, **RAW).then(**detailing)
        bar.stop.click(lambda picked: actions.stop(store, picked[0]), chosen, None, **RAW).then(**detailing)
        self.question.wire(bar.resume, chosen, detailing, RAW)
        for button, by in ((bar.earlier, -1), (bar.later, 1)):
            moved = button.click(lambda picked, by=by: actions.move(store, picked[0], by), chosen, None, **RAW)
            moved.then(**refreshing)
        bar.leave.click(lambda picked: actions.leave_queue(store, picked[0]), chosen, None, **RAW).then(**refreshing)

    def _wire_delete(self, refreshing: dict[str, Any]) -> None:
        bar = self.actions
        bar.delete.click(self.ask, self.chosen, [bar.confirm, bar.question, self.doomed], **_IN_TURN | RAW)
        bar.keep.click(lambda: gr.update(visible=False), None, bar.confirm, **RAW)
        bar.sure.click(self.remove, self.doomed, bar.confirm, **RAW).then(**refreshing)

    def _looks(self) -> list[Any]:
        """What the table is drawn by."""
        return [self.chosen, self.order, self.find, self.most]

    def _drawn_anew(self) -> list[Any]:
        return [self.table, self.chosen, self.more_rows]

    def refresh(
        self,
        before: str,
        picked: list[str],
        order: runs_table.Order,
        sought: str | None,
        rows: int,
        look: Look | None = None,
    ) -> Any:
        """Draw the table anew, where a run has changed."""
        look = look or index.now(self._store)
        if any(summary.place for summary in look.summaries):
            queue.ensure_starter(self._store)
        if look.version == before:
            return gr.skip()
        ids = {summary.id: None for summary in look.summaries}  # the newest first
        kept = [run_id for run_id in picked if run_id in ids] or ([*ids][:1] if not before else [])
        return {
            self.seen: look.version,
            self.empty: gr.update(visible=not ids),
            self.find: gr.update(visible=len(ids) > runs_table.PAGE),
        } | self._listed(look, kept, order, sought, rows)

    def tick(self, before: str, picked: list[str], order: runs_table.Order, sought: str | None, rows: int) -> Any:
        """As `refresh`, with a look that other pages share; before the first link it is not known what to choose."""
        if not before:
            return gr.skip()
        return self.refresh(before, picked, order, sought, rows, index.glance(self._store))

    def redraw(self, picked: list[str], order: runs_table.Order, sought: str | None, rows: int) -> dict[Any, Any]:
        """Draw the table anew."""
        return self._listed(index.glance(self._store), picked, order, sought, rows)

    def _listed(
        self, look: Look, picked: list[str], order: runs_table.Order, sought: str | None, rows: int
    ) -> dict[Any, Any]:
        """The table, and what can be chosen by name: what the table shows, and what is chosen."""
        shown = runs_table.ordered(runs_table.matching(look.summaries, sought), order)
        names = dict.fromkeys([*picked, *(summary.id for summary in shown[:rows])])
        return {
            self.table: runs_table.drawn(look.summaries, order, picked, sought, rows),
            self.chosen: gr.update(choices=list(names), value=picked, visible=bool(look.summaries)),
            self.more_rows: gr.update(visible=len(shown) > rows),
        }

    def sort(
        self, picked: list[str], order: runs_table.Order, sought: str | None, rows: int, event: gr.EventData
    ) -> dict[Any, Any]:
        """Sort by the heading that was pressed."""
        now = runs_table.pressed(order, event.column)
        return {self.order: now} | self.redraw(picked, now, sought, rows)

    def show_more(self, picked: list[str], order: runs_table.Order, sought: str | None, rows: int) -> dict[Any, Any]:
        """Show another page of rows."""
        return {self.most: rows + runs_table.PAGE} | self.redraw(picked, order, sought, rows + runs_table.PAGE)

    def toggle(self, picked: list[str], event: gr.EventData) -> list[str]:
        """Choose the run that was pressed, or choose it no more."""
        run_id = str(event.run)
        return [name for name in picked if name != run_id] if run_id in picked else [*picked, run_id][-_MOST:]

    def whole_sweep(self, run_id: str) -> Any:
        """Choose all runs of the sweep that a run belongs to."""
        look = index.now(self._store)
        names = _sweep_ids(look, next((summary for summary in look.summaries if summary.id == run_id), None))[:_MOST]
        return gr.update(choices=names, value=names) if names else gr.skip()

    def follow(self, link: links.Link, picked: list[str]) -> Any:
        """Choose the runs that a link names."""
        return link["runs"] if link["tab"] == "runs" and link["runs"] else picked

    def detail(self, picked: list[str], before: str) -> Any:
        """Draw the chosen runs anew, where something has changed."""
        runs = _existing(self._store, picked)
        summaries = [_summary(run) for run in runs]
        working = next((state for state in map(job.state, runs) if state.running or state.fault), job.State(False))
        results = {run.id: job.result(run) for run in runs}
        made = [result and result.made for result in results.values()]
        reading = [index.reading(run) for run in runs]
        log_sizes = [run.log_file.stat().st_size if run.log_file.exists() else 0 for run in runs]
        exporting = exports.state(runs[0]) if len(runs) == 1 else job.State(False)
        exported = exports.made(runs[0]) if len(runs) == 1 else []
        pushed = (pushes.state(runs[0]), pushes.pushes(runs[0])) if len(runs) == 1 else ()
        now = repr((summaries, working, made, reading, log_sizes, exporting, exported, pushed))
        if now == before:
            return gr.skip()
        live = len(summaries) == 1 and summaries[0].state in views.LIVE
        return {
            self.detail_seen: now,
            **self.details.updates(runs, summaries),
            **self.details.evaluation_updates(runs, results, working, live),
            **self.actions.updates(index.glance(self._store), runs, summaries, working.running),
            **self.export.updates(None if live or len(runs) != 1 else runs[0], exporting, exported),
        }

    def begin_evaluation(
        self, picked: list[str], rows: int | None, tokens: int | None, data: str | None, base: str | None
    ) -> None:
        """Start the evaluation of the chosen runs."""
        data, base = (data or "").strip(), (base or "").strip()
        try:
            settings = job.Settings(rows or 0, tokens or 0)
            runs = [self._store.get(run_id) for run_id in picked]
            runs.sort(key=Run.is_elsewhere)  # whose rows and base count is the first
            self._store.check_allowed(data, "dataset")
            elsewhere.check_base_allowed(self._store, runs[0], base)
            self._before_start()  # the compare worker's memory
            job.start(runs, settings, data, base)
        except UserError as error:
            actions.warn(error)

    def ask(self, picked: list[str]) -> dict[Any, Any]:
        """Ask before a run is deleted."""
        text = f"Delete the run '{picked[0]}' with its adapter and checkpoints? This cannot be undone."
        if any(run.is_elsewhere() for run in _existing(self._store, picked[:1])):
            text = f"Delete the adapter '{picked[0]}' with all files of its folder? This cannot be undone."
        bar = self.actions
        return {bar.confirm: gr.update(visible=True), bar.question: html.note(text, bad=True), self.doomed: picked[0]}

    def put_aside(self, picked: list[str], asked: str) -> list[Any]:
        """The questions, but for one about the run that is chosen now: its press may have come before this answer."""
        return [gr.skip() if picked[:1] == [asked] else gr.update(visible=False), gr.update(visible=False)]

    def remove(self, run_id: str) -> Any:
        """Delete a run."""
        actions.delete(self._store, run_id)
        return gr.update(visible=False)


def _existing(store: RunStore, ids: list[str]) -> list[Run]:
    runs = []
    for run_id in ids:
        try:
            runs.append(store.get(run_id))
        except UserError:
            continue  # deleted meanwhile
    return runs


def _summary(run: Run) -> Summary:
    """A run as far as it is known at once; how it stands is, also of one whose events have not been read yet."""
    summary = index.summary(run, index.PATIENCE_SECONDS)
    return summary if summary.read else replace(summary, state=run.state())


def _can_be_evaluated(chosen: list[Summary]) -> bool:
    """Up to five adapters of one base, none of them in training."""
    known = [summary for summary in chosen if summary.adapter and (summary.config or summary.elsewhere)]
    ready = [summary for summary in known if summary.state not in views.LIVE]
    return 0 < len(ready) == len(chosen) <= MAX_ADAPTERS and offers.share_a_base(ready)


def _sweep_ids(look: Look, run: Summary | None) -> list[str]:
    """The ids of all runs of the sweep that a run belongs to, in the order they were made."""
    if run is None or run.sweep is None:
        return []
    return [summary.id for summary in reversed(look.summaries) if summary.sweep == run.sweep]


def _settings(run: Run, summary: Summary) -> str:
    """The settings of a run, or what the adapter_config.json of an adapter made elsewhere says, as a table."""
    if summary.elsewhere:
        return html.table(("adapter_config.json", "value"), elsewhere.settings(run.path))
    return html.table(("setting", "value"), views.knobs(summary.config)) if summary.config else ""


def _can_resume(run: Run, summary: Summary) -> bool:
    return summary.read and not summary.elsewhere and summary.state != "finished" and run.last_checkpoint() is not None
