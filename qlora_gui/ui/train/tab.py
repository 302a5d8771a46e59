"""Train: the form on the left; on the right what it will learn from, or the run that is live."""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from qlora_gui import config as configs
from qlora_gui import hub
from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.system import files
from qlora_gui.ui import actions, findings, links
from qlora_gui.ui.rendering import html
from qlora_gui.ui.streaming import Newest, streams
from qlora_gui.ui.theme import QUIET
from qlora_gui.ui.train import check_panel, form, live, memory_panel, preview, sweep_panel

_FIRST = "demo"
_KEEP_FREE = 1 << 30  # bytes that uploads leave free
_NO_REMARKS = "The settings leave nothing to remark on."
_NO_REMARKS_ON_ROWS = "Settings and rows leave nothing to remark on."


def tab(store: RunStore, link: gr.State, before_start: Callable[[], None]) -> None:
    """Draw the tab and wire it; `before_start` frees what a training run may need."""
    config = configs.resolve(preset=_FIRST)
    first_found = findings.of_form(config, None)
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320, elem_classes="tight"):
            fields = form.build(config, _FIRST)
            sweep_panel.build(fields, store, link, before_start)
            with gr.Column(elem_classes=["startbar", "tight"]):
                status = gr.HTML(elem_id="form-status")
                doctor_line = gr.HTML(findings.brief(first_found), elem_id="doctor-line")
                fit_line = memory_panel.brief()
                with gr.Row(elem_classes="tight", equal_height=True):
                    start = gr.Button("Start training", variant="primary", elem_id="start", scale=3, min_width=150)
                    later = gr.Button("Queue it", elem_id="queue", scale=1, min_width=90)
        with gr.Column(scale=6, min_width=320, elem_classes="tight"):
            with gr.Column(elem_classes="tight") as idle:
                check_panel.build(store, link)
                fit = memory_panel.build(config, fields, fit_line, store)
                gr.HTML('<h3 class="part">What may go wrong</h3>')
                doctor = findings.build("form", "Mend:", first_found, _NO_REMARKS)
                gr.HTML('<h3 class="part">What it will learn from</h3>')
                rows = gr.HTML(elem_id="preview")
            panel = live.panel(store, link, idle, before_start)
            command = gr.Code(
                form.command(config, _FIRST, store),
                language="shell",
                label="The same run without the page",
                interactive=False,
                lines=1,
                wrap_lines=True,
                elem_id="command",
            )
    faults = gr.State({})  # {knob: sentence} as marked now, so that only what changes is drawn again
    newest = gr.State(Newest())
    facts = gr.State({})  # of the rows previewed last, by their preview.key
    seen_rows = gr.State({})  # what was seen of all of them, by the same key
    everything = list(fields.knobs.values())

    def judged(seen: dict[Any, Any]) -> tuple[RunConfig | None, dict[str, str]]:
        good, found = form.judge(fields.values(seen), store)
        told = preview.faulty(seen[seen_rows].get(preview.key(good), {}), good) if good else ""
        return good, found | ({"dataset": told} if told and "dataset" not in found else {})

    def check(seen: dict[Any, Any]) -> dict[Any, Any]:
        good, found = judged(seen)
        updates = _marked(fields, seen[faults], found)
        updates |= {faults: found, status: html.faults(map(form.sentence, found.values()))}
        if good:
            updates[command] = form.command(good, seen[fields.preset], store)
            of_rows = seen[facts].get(preview.key(good))
            said = findings.of_form(good, of_rows)
            updates |= doctor.updates(said, _NO_REMARKS_ON_ROWS if of_rows else _NO_REMARKS)
            updates[doctor_line] = findings.brief(said)
        return updates

    @streams
    def begin(made: Callable[[RunStore, RunConfig], Run], seen: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        good, found = judged(seen)
        if good is None or found:
            yield _refused(found)
            return
        yield {start: gr.update(value="Starting…", interactive=False), status: ""}
        try:
            before_start()
            run = made(store, good)
        except UserError as error:
            yield _refused({form.field_of(error, good): str(error)})
            return
        except Exception:  # a bug: its traceback is for the terminal, and the button for the next try
            yield {start: gr.update(value="Start training", interactive=True)}
            raise
        told = {start: gr.update(value="Start training", interactive=True), link: links.to("train", run.id)}
        yield told | ({fields.knobs["name"]: ""} if good.name else {})

    def _refused(found: dict[str, str]) -> dict[Any, Any]:
        actions.warn(" ".join(map(form.sentence, found.values())))
        updates = fields.marks(found) | {faults: found, status: html.faults(map(form.sentence, found.values()))}
        return updates | {start: gr.update(value="Start training", interactive=True)}

    @streams
    def show_rows(seen: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        good, found = form.judge(fields.values(seen), store)
        asked: Newest = seen[newest]
        if good is None or not found.keys().isdisjoint({"base_model", "dataset"}):
            asked.ask()
            told = [form.sentence(fault) for name, fault in found.items() if name in preview.KNOBS]
            said = html.note("The first rows are shown here when the form is right.", *told, bad=True)
            yield {rows: said, **_at_field(fields, {}, None)}
            return
        key = good.model_dump_json(include=set(preview.KNOBS) | {"eval_fraction"})
        if key == asked.about or any(run.is_locked() for run in store.all()):
            return  # shown or asked for already, or hidden behind a live run that needs the processor more
        wanted, whole = asked.ask(key), False
        try:
            yield from draw_rows(good, wanted)
            whole = True
        finally:
            if not whole and wanted():
                asked.about = ""

    def draw_rows(good: RunConfig, wanted: Callable[[], bool]) -> Iterator[dict[Any, Any]]:
        answer: dict[str, Any] = {}
        known = preview.key(good)
        for body in preview.steps(good, answer.update, wanted):
            if not wanted():
                return
            of_all = answer.get("seen") or {}
            at_field = _at_field(fields, of_all, good) | {seen_rows: {known: of_all}}  # together: Start asks the latter
            yield {rows: body} | (at_field if answer else {})
        if not wanted():
            return
        yield {facts: {known: answer["facts"]} if answer else {}}
        if not answer:
            yield {seen_rows: {}, **_at_field(fields, {}, None)}

    def mend(number: int) -> Any:
        def put(offered: list[dict[str, Any]]) -> dict[Any, Any]:
            knobs = offered[number] if number < len(offered) else {}
            return {fields.knobs[name]: value for name, value in knobs.items()} or gr.skip()

        return put

    def choose(name: str) -> Any:
        return gr.skip() if name == form.OWN else fields.filled(configs.resolve(preset=name), name)

    def follow(link: links.Link) -> dict[Any, Any]:
        run_id = link["runs"][0] if link["tab"] == "train" and link["runs"] else ""
        updates: dict[Any, Any] = {panel.seen: live.UNSEEN}
        if link["tab"] == "train":
            updates[panel.followed] = run_id if link["show"] else ""
        if run_id and link["fill"]:
            try:
                config = store.get(run_id).config().model_copy(update={"name": ""})
                updates |= fields.filled(config, form.preset_of(config))
            except UserError as error:
                actions.warn(error)
        return updates

    checking: dict[str, Any] = {
        "fn": check,
        "inputs": fields.inputs() | {faults, facts, seen_rows},
        "outputs": [*everything, faults, status, command, doctor_line, *doctor.outputs],
    } | QUIET
    previewing: dict[str, Any] = {
        "fn": show_rows,
        "inputs": fields.inputs() | {newest},
        "outputs": [rows, facts, seen_rows, fields.bad_rows, fields.leave_out],
        "trigger_mode": "multiple",  # a newer question ends the older one, which may take minutes
    } | QUIET
    changes = [*(field.change for field in everything), facts.change, seen_rows.change]
    gr.on(changes, trigger_mode="always_last", **checking)
    gr.on(_settled(fields), **previewing)
    fields.preset.input(choose, fields.preset, [fields.preset, *everything], **QUIET).then(**fit.ask).then(
        **fit.look
    ).then(**previewing)
    for number, button in enumerate(doctor.buttons):
        button.click(mend(number), doctor.offered, everything, **QUIET).then(**previewing)
    for button in fit.buttons:
        button.click(**previewing)
    fields.leave_out.click(lambda: True, None, fields.knobs["skip_bad_rows"], **QUIET).then(**previewing)
    fields.upload.upload(_keep, fields.upload, fields.knobs["dataset"], **QUIET).then(**previewing)
    for button, made in ((start, actions.start), (later, actions.enqueue)):
        button.click(
            partial(begin, made),
            fields.inputs() | {seen_rows},
            [*everything, faults, status, start, link],
            concurrency_limit=1,
            trigger_mode="once",
            **QUIET,
        )
    link.change(follow, link, [fields.preset, *everything, panel.followed, panel.seen], **QUIET).then(
        **panel.look
    ).then(**fit.ask).then(**fit.look).then(**previewing)


def _marked(fields: form.Form, before: dict[str, str], found: dict[str, str]) -> dict[Any, Any]:
    """Updates for the fields whose fault came, changed or went."""
    marks = fields.marks(found)
    changed = {name for name in before.keys() | found.keys() if before.get(name) != found.get(name)}
    return {field: marks[field] for name, field in fields.knobs.items() if name in changed}


def _at_field(fields: form.Form, seen: dict[str, Any], config: RunConfig | None) -> dict[Any, Any]:
    """Updates of the place below the data field: the faulty rows, and the press that leaves them out."""
    count = seen.get("skipped", 0)
    caption = "Leave out this row" if count == 1 else f"Leave out these {count:,} rows"
    offer = bool(config and preview.faulty(seen, config))
    return {
        fields.bad_rows: preview.at_field(seen, config) if config else "",
        fields.leave_out: gr.update(value=caption, visible=offer),
    }


def _settled(fields: form.Form) -> list[Any]:
    """The events at which a field of the preview has its value: texts when they are left, the others at once."""
    events = []
    for name in preview.KNOBS:
        field = fields.knobs[name]
        if isinstance(field, (gr.Dropdown, gr.Checkbox)):
            events.append(field.input)
        else:
            events += [field.blur, field.submit]
    return events


def _keep(upload: str) -> Any:
    """Copy an uploaded file to where it stays, so that the run can be resumed later; named by its content."""
    source = Path(upload)
    digest = hashlib.sha256()
    with source.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    kept = hub.private("uploads") / f"{digest.hexdigest()[:12]}-{source.name}"
    part = kept.with_name(kept.name + ".part")
    try:
        if shutil.disk_usage(kept.parent).free < source.stat().st_size + _KEEP_FREE:
            actions.warn(f"The file is not kept, for the disk of '{kept.parent}' is nearly full: free some space.")
            return gr.skip()
        if not kept.is_file():
            shutil.copyfile(source, part)
            files.replace(part, kept)
        kept.touch()  # its age is that of the last time it was brought
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        actions.warn(f"The file cannot be kept in '{kept.parent}': {error.strerror or error}.")
        return gr.skip()
    return str(kept)
