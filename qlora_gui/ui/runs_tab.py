"""Runs: all of them in a table; one opened, or several against each other."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from qlora_gui.compare.settings import MAX_ADAPTERS
from qlora_gui.errors import UserError
from qlora_gui.judge import job
from qlora_gui.runs import queue
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import actions, disk, evidence, findings, fit_views, html, links, offers, retry, several, views
from qlora_gui.ui.summary import COLUMNS, KINDS, Summary, summaries, summary
from qlora_gui.ui.theme import RAW, TICK_SECONDS

_EMPTY = html.empty("No runs yet. Open Train and press Start: the demo is filled in already.")
_CHOOSE = html.hint("Choose one run to open it, or several to see their curves and how they differ.")
_MOST = 24
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 110, "scale": 0}


def tab(store: RunStore, link: gr.State, before_start: Callable[[], None]) -> None:
    """Draw the tab and wire it; `before_start` frees what a training run may need."""
    empty = gr.HTML(_EMPTY, elem_id="no-runs")
    table = gr.Dataframe(
        headers=list(COLUMNS),
        datatype=list(KINDS),
        interactive=False,
        label="All runs (press a heading to sort, a row to choose it)",
        elem_id="runs-table",
        max_height=330,
        buttons=[],
        visible=False,
    )
    chosen = gr.Dropdown(
        [], value=[], multiselect=True, max_choices=_MOST, label="Chosen runs", elem_id="chosen", visible=False
    )
    with gr.Row(elem_classes=["tight", "actions"], visible=False, elem_id="run-actions") as buttons:
        show = gr.Button("Open in Train", **_SMALL)
        whole = gr.Button("The whole sweep", elem_id="whole-sweep", **_SMALL)
        stop = gr.Button("Stop and save", variant="stop", **_SMALL)
        earlier = gr.Button("Earlier", elem_id="earlier", **_SMALL)
        later = gr.Button("Later", elem_id="later", **_SMALL)
        leave = gr.Button("Leave the queue", elem_id="leave", **_SMALL)
        resume = gr.Button("Resume", **_SMALL)
        again = gr.Button("Train again with changes", elem_id="again", **_SMALL)
        evaluate = gr.Button("Evaluate", elem_id="evaluate", **_SMALL)
        compare = gr.Button("Compare the answers", variant="primary", **_SMALL)
        delete = gr.Button("Delete…", elem_id="delete", **_SMALL)
    with gr.Accordion("What Evaluate measures", open=False, visible=False, elem_id="evaluate-how") as how, gr.Row():
        rows = gr.Number(
            job.STANDARD.rows, precision=0, label="Rows", info="At most so many held-out rows.", elem_id="evaluate-rows"
        )
        tokens = gr.Number(
            job.STANDARD.max_new_tokens,
            precision=0,
            label="Max new tokens",
            info="Longest answer, in tokens; 0 measures losses only.",
            elem_id="evaluate-tokens",
        )
    with gr.Row(elem_classes=["tight", "actions"], visible=False, elem_id="confirm") as confirm:
        question = gr.HTML(elem_id="question")
        sure = gr.Button("Delete for good", variant="stop", elem_id="sure", **_SMALL)
        keep = gr.Button("Keep it", **_SMALL)
    told, judged = gr.HTML(elem_id="runs-told"), gr.HTML(elem_id="runs-judged")
    doctor = findings.build("runs", "Train again:")
    again_with = retry.build(store, link, before_start, "runs")
    data, plots = gr.HTML(), gr.HTML(elem_id="runs-plots")
    with gr.Column(visible=False, elem_classes="tight") as more:
        with gr.Accordion("Numbers", open=False):
            numbers = gr.HTML()
        with gr.Accordion("Settings", open=False):
            settings = gr.HTML()
        with gr.Accordion("End of the log", open=False):
            log = gr.HTML()
    disk.build()
    body = [told, judged, data, plots, more, numbers, settings, log, *again_with.outputs, *doctor.outputs]
    seen, detail_seen = gr.State(""), gr.State("")
    doomed = gr.State("")

    def refresh(before: str, picked: list[str]) -> Any:
        found = summaries(store)
        if any(one.place for one in found):
            queue.ensure_starter(store)
        now = repr([(one.id, one.row()) for one in found])
        if now == before:
            return gr.skip()
        ids = [one.id for one in found]
        some = bool(found)
        kept = [run_id for run_id in picked if run_id in ids] or (ids[:1] if not before else [])
        return {
            seen: now,
            empty: gr.update(visible=not some),
            table: gr.update(value=[one.row() for one in found], visible=some),
            chosen: gr.update(choices=ids, value=kept, visible=some),
        }

    def detail(picked: list[str], before: str) -> Any:
        runs = _found(store, picked)
        all_told = [summary(run) for run in runs]
        working = next((state for state in map(job.state, runs) if state.running or state.fault), job.State(False))
        found = {run.id: job.result(run) for run in runs}
        made = [one and one["made"] for one in found.values()]
        now = repr(
            (all_told, working, made, [run.log_file.stat().st_size if run.log_file.exists() else 0 for run in runs])
        )
        if now == before:
            return gr.skip()
        one = all_told[0] if len(all_told) == 1 else None
        live = one is not None and one.state in views.LIVE
        waits = one is not None and one.state == "queued"
        can_resume = one is not None and not live and not waits and one.state != "finished" and one.checkpoint
        return {
            detail_seen: now,
            **_body(runs, all_told),
            **_judgement(runs, found, working, live),
            evaluate: gr.update(visible=_can_be_evaluated(all_told), interactive=not working.running),
            how: gr.update(visible=_can_be_evaluated(all_told)),
            buttons: gr.update(visible=bool(all_told)),
            show: gr.update(visible=one is not None),
            whole: gr.update(visible=one is not None and len(_of_its_sweep(store, runs[0])) > 1),
            stop: gr.update(visible=live),
            **{button: gr.update(visible=waits) for button in (earlier, later, leave)},
            resume: gr.update(visible=can_resume),
            again: gr.update(visible=bool(one and one.config)),
            compare: gr.update(visible=any(run.adapter for run in all_told)),
            delete: gr.update(visible=one is not None and not live),
        }

    def _body(runs: list[Run], all_told: list[Summary]) -> dict[Any, Any]:
        if len(runs) != 1:
            shown = several.told(runs, all_told) if runs else _CHOOSE if store.all() else ""
            hidden = gr.update(visible=False)
            return {told: "", data: "", plots: shown, more: hidden, again_with.box: hidden}
        run, one = runs[0], all_told[0]
        events, _ = run.events()
        can_resume = one.checkpoint and one.state != "finished"
        over = views.outcome(one.state, events, run.log_tail(1), can_resume, one.adapter)
        doing = html.hint(views.stage(one.state, events)) if one.state in views.LIVE else over
        return {
            told: views.headline(run.id, one.state, events) + doing + fit_views.told(events) + views.tiles(events),
            **again_with.updates(run.id, one.state, events),
            data: views.data_told(events),
            plots: views.curves(events) + evidence.timeline(events),
            more: gr.update(visible=True),
            numbers: views.numbers(events),
            settings: html.table(("setting", "value"), views.knobs(one.config)) if one.config else "",
            log: html.log(run.log_tail(60)),
        }

    def _judgement(
        runs: list[Run], found: dict[str, dict[str, Any] | None], working: job.State, live: bool
    ) -> dict[Any, Any]:
        if len(runs) != 1:
            return {judged: evidence.working(working) + evidence.several(found), **doctor.updates([])}
        one = found[runs[0].id]
        remarks = findings.after_run(runs[0], one)
        head = '<h3 class="part">What the doctor says</h3>' if remarks else ""
        body = evidence.working(working) + (evidence.told(one) if one else "") + head
        return {judged: body, **doctor.updates(remarks, offer=not live)}

    def begin_evaluation(picked: list[str], rows: int | None, tokens: int | None) -> None:
        try:
            settings = job.Settings(rows or 0, tokens or 0)
            before_start()  # the compare worker's memory
            job.start([store.get(run_id) for run_id in picked], settings)
        except UserError as error:
            actions.warn(error)

    def toggle(picked: list[str], event: gr.SelectData) -> list[str]:
        run_id = str(event.row_value[0])
        return [one for one in picked if one != run_id] if run_id in picked else [*picked, run_id][-_MOST:]

    def ask(picked: list[str]) -> dict[Any, Any]:
        said = f"Delete the run '{picked[0]}' with its adapter and checkpoints? This cannot be undone."
        return {confirm: gr.update(visible=True), question: html.note(said, bad=True), doomed: picked[0]}

    def remove(run_id: str) -> Any:
        actions.delete(store, run_id)
        return gr.update(visible=False)

    def follow(link: links.Link, picked: list[str]) -> Any:
        return link["runs"] if link["tab"] == "runs" and link["runs"] else picked

    refreshing: dict[str, Any] = {
        "fn": refresh,
        "inputs": [seen, chosen],
        "outputs": [seen, empty, table, chosen],
    } | RAW
    detailing: dict[str, Any] = {
        "fn": detail,
        "inputs": [chosen, detail_seen],
        "outputs": [
            *body,
            detail_seen,
            buttons,
            show,
            whole,
            stop,
            earlier,
            later,
            leave,
            resume,
            again,
            evaluate,
            how,
            compare,
            delete,
        ],
    } | RAW
    timed = refreshing | {"fn": lambda before, picked: refresh(before, picked) if before else gr.skip()}
    gr.Timer(2 * TICK_SECONDS).tick(**timed).then(**detailing)
    link.change(**refreshing).then(follow, [link, chosen], chosen, **RAW).then(**detailing)
    findings.train_again(doctor, store, link, before_start, chosen)
    table.select(toggle, chosen, chosen, **RAW)
    chosen.change(**detailing).then(lambda: gr.update(visible=False), None, confirm, **RAW)
    show.click(lambda picked: links.to("train", picked[0]), chosen, link, **RAW)
    whole.click(lambda picked: _of_its_sweep(store, store.get(picked[0]))[:_MOST], chosen, chosen, **RAW)
    again.click(lambda picked: links.to("train", picked[0], show=False, fill=True), chosen, link, **RAW)
    compare.click(lambda picked: links.to("compare", *picked), chosen, link, **RAW)
    evaluate.click(begin_evaluation, [chosen, rows, tokens], None, **RAW).then(**detailing)
    stop.click(lambda picked: actions.stop(store, picked[0]), chosen, None, **RAW).then(**detailing)
    resume.click(lambda picked: actions.resume(store, picked[0]), chosen, None, **RAW).then(**detailing)
    for button, by in ((earlier, -1), (later, 1)):
        button.click(lambda picked, by=by: actions.move(store, picked[0], by), chosen, None, **RAW).then(**refreshing)
    leave.click(lambda picked: actions.leave_queue(store, picked[0]), chosen, None, **RAW).then(**refreshing)
    delete.click(ask, chosen, [confirm, question, doomed], **RAW)
    keep.click(lambda: gr.update(visible=False), None, confirm, **RAW)
    sure.click(remove, doomed, confirm, **RAW).then(**refreshing)


def _found(store: RunStore, ids: list[str]) -> list[Run]:
    runs = []
    for run_id in ids:
        try:
            runs.append(store.get(run_id))
        except UserError:
            continue  # deleted meanwhile
    return runs


def _can_be_evaluated(chosen: list[Summary]) -> bool:
    """Up to five adapters of one base, none of them in training."""
    ready = [one for one in chosen if one.adapter and one.config and one.state not in views.LIVE]
    return (
        0 < len(ready) == len(chosen) <= MAX_ADAPTERS
        and len({offers.key(one.config) for one in ready if one.config}) == 1
    )


def _of_its_sweep(store: RunStore, run: Run) -> list[str]:
    """The ids of all runs of the sweep that a run belongs to, in the order they were made."""
    found = run.sweep()
    return [one.id for one in reversed(store.all()) if one.sweep() == found] if found else []
