"""Runs: all of them in a table; one opened, or several against each other."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.evaluation import job
from qlora_gui.inference.sampling import MAX_ADAPTERS
from qlora_gui.runs import queue
from qlora_gui.runs.events import tail
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import actions, evaluation_views, findings, links, memory_views, views
from qlora_gui.ui.compare import offers
from qlora_gui.ui.rendering import html
from qlora_gui.ui.runs import cache, comparison, index, resuming
from qlora_gui.ui.runs import table as runs_table
from qlora_gui.ui.runs.index import Look
from qlora_gui.ui.runs.summary import Summary
from qlora_gui.ui.theme import RAW, TICK_SECONDS
from qlora_gui.ui.train import retry

_EMPTY = html.empty("No runs yet. Open Train and press Start: the demo is filled in already.")
_CHOOSE = html.hint("Choose one run to open it, or several to see their curves and how they differ.")
_MOST = 24
_SMALL: dict[str, Any] = {"size": "sm", "min_width": 110, "scale": 0}


def tab(store: RunStore, link: gr.State, before_start: Callable[[], None]) -> None:
    """Draw the tab and wire it; `before_start` frees what a training run may need."""
    empty = gr.HTML(_EMPTY, elem_id="no-runs")
    find = gr.Textbox(
        label="Find runs",
        info="Words of any column, like: qwen failed",
        elem_id="runs-find",
        visible=False,
        max_lines=1,
    )
    table = gr.HTML(elem_id="runs-table", max_height=330, js_on_load=runs_table.PRESSED)
    more_rows = gr.Button(f"Show {runs_table.PAGE} more", elem_id="runs-more", visible=False, **_SMALL)
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
    asking = resuming.build("runs")
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
    cache.build(store)
    body = [told, judged, data, plots, more, numbers, settings, log, *again_with.outputs, *doctor.outputs]
    seen, detail_seen = gr.State(""), gr.State("")
    order = gr.State(runs_table.NEWEST_FIRST)
    doomed = gr.State("")
    most = gr.State(runs_table.PAGE)
    looks: list[Any] = [chosen, order, find, most]

    def refresh(
        before: str, picked: list[str], by: runs_table.Order, sought: str | None, rows: int, look: Look | None = None
    ) -> Any:
        look = look or index.now(store)
        if any(one.place for one in look.found):
            queue.ensure_starter(store)
        if look.version == before:
            return gr.skip()
        ids = {one.id for one in look.found}
        kept = [run_id for run_id in picked if run_id in ids] or ([look.found[0].id] if ids and not before else [])
        return {
            seen: look.version,
            empty: gr.update(visible=not ids),
            chosen: gr.update(value=kept, visible=bool(ids)),
            find: gr.update(visible=len(ids) > runs_table.PAGE),
        } | listed(look, kept, by, sought, rows)

    def listed(look: Look, picked: list[str], by: runs_table.Order, sought: str | None, rows: int) -> dict[Any, Any]:
        """The table, and what can be chosen by name: what the table shows, and what is chosen."""
        shown = runs_table.ordered(runs_table.matching(look.found, sought), by)
        names = dict.fromkeys([*picked, *(one.id for one in shown[:rows])])
        choices = gr.update(choices=list(names), value=picked, visible=bool(look.found))
        return {
            table: runs_table.drawn(look.found, by, picked, sought, rows),
            chosen: choices,
            more_rows: gr.update(visible=len(shown) > rows),
        }

    def redraw(picked: list[str], by: runs_table.Order, sought: str | None, rows: int) -> dict[Any, Any]:
        return listed(index.glance(store), picked, by, sought, rows)

    def detail(picked: list[str], before: str) -> Any:
        runs = _found(store, picked)
        all_told = [_summary(run) for run in runs]
        working = next((state for state in map(job.state, runs) if state.running or state.fault), job.State(False))
        found = {run.id: job.result(run) for run in runs}
        made = [one and one["made"] for one in found.values()]
        reading = [index.reading(run) for run in runs]
        now = repr(
            (
                all_told,
                working,
                made,
                reading,
                [run.log_file.stat().st_size if run.log_file.exists() else 0 for run in runs],
            )
        )
        if now == before:
            return gr.skip()
        one = all_told[0] if len(all_told) == 1 else None
        live = one is not None and one.state in views.LIVE
        waits = one is not None and one.state == "queued"
        can_resume = one is not None and not live and not waits and _can_resume(runs[0], one)
        return {
            detail_seen: now,
            **_body(runs, all_told),
            **_judgement(runs, found, working, live),
            evaluate: gr.update(visible=_can_be_evaluated(all_told), interactive=not working.running),
            how: gr.update(visible=_can_be_evaluated(all_told)),
            buttons: gr.update(visible=bool(all_told)),
            show: gr.update(visible=one is not None),
            whole: gr.update(visible=one is not None and len(_of_its_sweep(index.glance(store), one)) > 1),
            stop: gr.update(visible=live),
            **{button: gr.update(visible=waits) for button in (earlier, later, leave)},
            resume: gr.update(visible=can_resume),
            again: gr.update(visible=bool(one and one.config)),
            compare: gr.update(visible=any(run.adapter for run in all_told)),
            delete: gr.update(visible=one is not None and not live),
        }

    def _body(runs: list[Run], all_told: list[Summary]) -> dict[Any, Any]:
        if len(runs) != 1:
            shown = comparison.told(runs, all_told) if runs else _CHOOSE if index.glance(store).found else ""
            hidden = gr.update(visible=False)
            return {told: "", data: "", plots: shown, more: hidden, again_with.box: hidden}
        run, one = runs[0], all_told[0]
        reading = index.reading(run)
        events = tail(run.events_file) if reading else run.events()[0]
        can_resume = _can_resume(run, one)
        over = views.outcome(one.state, events, run.log_tail(1), can_resume, one.adapter, run.is_held_back())
        doing = html.hint(views.stage(one.state, events)) if one.state in views.LIVE else over
        return {
            told: views.headline(run.id, one.state, events)
            + doing
            + html.hint(reading)
            + memory_views.told(events)
            + views.notes(events)
            + views.not_all_told(events)
            + views.tiles(events),
            **again_with.updates(run.id, one.state, events),
            data: views.data_told(events),
            plots: views.curves(events) + evaluation_views.timeline(events),
            more: gr.update(visible=True),
            numbers: views.numbers(events),
            settings: html.table(("setting", "value"), views.knobs(one.config)) if one.config else "",
            log: html.log(run.log_tail(60)),
        }

    def _judgement(
        runs: list[Run], found: dict[str, dict[str, Any] | None], working: job.State, live: bool
    ) -> dict[Any, Any]:
        if len(runs) != 1:
            return {judged: evaluation_views.working(working) + evaluation_views.several(found), **doctor.updates([])}
        one = found[runs[0].id]
        remarks = [] if index.reading(runs[0]) else findings.after_run(runs[0], one)
        head = '<h3 class="part">What the doctor says</h3>' if remarks else ""
        body = evaluation_views.working(working) + (evaluation_views.told(one) if one else "") + head
        return {judged: body, **doctor.updates(remarks, offer=not live)}

    def begin_evaluation(picked: list[str], rows: int | None, tokens: int | None) -> None:
        try:
            settings = job.Settings(rows or 0, tokens or 0)
            before_start()  # the compare worker's memory
            job.start([store.get(run_id) for run_id in picked], settings)
        except UserError as error:
            actions.warn(error)

    def sort(
        picked: list[str], by: runs_table.Order, sought: str | None, rows: int, event: gr.EventData
    ) -> dict[Any, Any]:
        now = runs_table.pressed(by, event.column)
        return {order: now} | redraw(picked, now, sought, rows)

    def show_more(picked: list[str], by: runs_table.Order, sought: str | None, rows: int) -> dict[Any, Any]:
        return {most: rows + runs_table.PAGE} | redraw(picked, by, sought, rows + runs_table.PAGE)

    def whole_sweep(run_id: str) -> Any:
        look = index.now(store)
        names = _of_its_sweep(look, next((one for one in look.found if one.id == run_id), None))[:_MOST]
        return gr.update(choices=names, value=names) if names else gr.skip()

    def toggle(picked: list[str], event: gr.EventData) -> list[str]:
        run_id = str(event.run)
        return [one for one in picked if one != run_id] if run_id in picked else [*picked, run_id][-_MOST:]

    def ask(picked: list[str]) -> dict[Any, Any]:
        said = f"Delete the run '{picked[0]}' with its adapter and checkpoints? This cannot be undone."
        return {confirm: gr.update(visible=True), question: html.note(said, bad=True), doomed: picked[0]}

    def put_aside(picked: list[str], asked: str) -> list[Any]:
        """The questions, but for one about the run that is chosen now: its press may have come before this answer."""
        return [gr.skip() if picked[:1] == [asked] else gr.update(visible=False), gr.update(visible=False)]

    def remove(run_id: str) -> Any:
        actions.delete(store, run_id)
        return gr.update(visible=False)

    def follow(link: links.Link, picked: list[str]) -> Any:
        return link["runs"] if link["tab"] == "runs" and link["runs"] else picked

    drawn_anew: list[Any] = [table, chosen, more_rows]
    refreshing: dict[str, Any] = {
        "fn": refresh,
        "inputs": [seen, *looks],
        "outputs": [seen, empty, find, *drawn_anew],
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

    def tick(before: str, picked: list[str], by: runs_table.Order, sought: str | None, rows: int) -> Any:
        """As `refresh`, with a look that other pages share; before the first link it is not known what to choose."""
        return refresh(before, picked, by, sought, rows, index.glance(store)) if before else gr.skip()

    timed = refreshing | {"fn": tick}
    gr.Timer(2 * TICK_SECONDS).tick(**timed).then(**detailing)
    link.change(**refreshing).then(follow, [link, chosen], chosen, **RAW).then(**detailing)
    findings.train_again(doctor, store, link, before_start, chosen)
    # "once", which is Gradio's own, drops a press that comes while the answer to the one before is still under way.
    table.sort(sort, looks, [order, *drawn_anew], trigger_mode="multiple", **RAW)
    table.select(toggle, chosen, chosen, trigger_mode="multiple", **RAW)
    chosen.change(lambda *looks: redraw(*looks)[table], looks, table, **RAW)
    find.change(redraw, looks, drawn_anew, trigger_mode="always_last", **RAW)
    more_rows.click(show_more, looks, [most, *drawn_anew], **RAW)
    chosen.change(**detailing)
    chosen.change(put_aside, [chosen, doomed], [confirm, asking.box], **RAW)
    show.click(lambda picked: links.to("train", picked[0]), chosen, link, **RAW)
    whole.click(lambda picked: whole_sweep(picked[0]), chosen, chosen, **RAW)
    again.click(lambda picked: links.to("train", picked[0], show=False, fill=True), chosen, link, **RAW)
    compare.click(lambda picked: links.to("compare", *picked), chosen, link, **RAW)
    evaluate.click(begin_evaluation, [chosen, rows, tokens], None, **RAW).then(**detailing)
    stop.click(lambda picked: actions.stop(store, picked[0]), chosen, None, **RAW).then(**detailing)
    resuming.wire(asking, store, resume, chosen, detailing, RAW)
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


def _summary(run: Run) -> Summary:
    """A run as far as it is known at once; how it stands is, also of one whose events have not been read yet."""
    one = index.summary(run, index.PATIENCE_SECONDS)
    return one if one.read else replace(one, state=run.state())


def _can_be_evaluated(chosen: list[Summary]) -> bool:
    """Up to five adapters of one base, none of them in training."""
    ready = [one for one in chosen if one.adapter and one.config and one.state not in views.LIVE]
    return (
        0 < len(ready) == len(chosen) <= MAX_ADAPTERS
        and len({offers.key(one.config) for one in ready if one.config}) == 1
    )


def _of_its_sweep(look: Look, run: Summary | None) -> list[str]:
    """The ids of all runs of the sweep that a run belongs to, in the order they were made."""
    if run is None or run.sweep is None:
        return []
    return [one.id for one in reversed(look.found) if one.sweep == run.sweep]


def _can_resume(run: Run, one: Summary) -> bool:
    return one.read and one.state != "finished" and run.last_checkpoint() is not None
