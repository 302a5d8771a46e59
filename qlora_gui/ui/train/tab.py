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
_NO_REMARKS = "No problems found in the settings."
_NO_REMARKS_ON_ROWS = "No problems found in settings and data."


class TrainTab:
    """The tab; `before_start` frees what a training run may need."""

    def __init__(self, store: RunStore, link: gr.State, before_start: Callable[[], None]):
        self._store, self._link, self._before_start = store, link, before_start
        config = configs.resolve(preset=_FIRST)
        first_findings = findings.of_form(config, None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320, elem_classes="tight"):
                self.fields = form.Form(config, _FIRST)
                self.sweep = sweep_panel.SweepPanel(self.fields, store, link, before_start)
                with gr.Column(elem_classes=["startbar", "tight"]):
                    self.status = gr.HTML(elem_id="form-status")
                    self.findings_line = gr.HTML(findings.brief(first_findings), elem_id="findings-line")
                    self.brief = memory_panel.BriefVerdict()
                    with gr.Row(elem_classes="tight", equal_height=True):
                        self.start = gr.Button(
                            "Start training", variant="primary", elem_id="start", scale=3, min_width=150
                        )
                        self.later = gr.Button("Queue it", elem_id="queue", scale=1, min_width=90)
            with gr.Column(scale=6, min_width=320, elem_classes="tight"):
                with gr.Column(elem_classes="tight") as idle:
                    self.machine_check = check_panel.CheckPanel(store, link)
                    self.fit = memory_panel.MemoryPanel(config, self.fields, self.brief.line, store)
                    gr.HTML('<h3 class="part">Warnings</h3>')
                    self.findings = findings.FindingsPanel("form", "Fix:", first_findings, _NO_REMARKS)
                    gr.HTML('<h3 class="part">What it will learn from</h3>')
                    self.rows = gr.HTML(elem_id="preview")
                self.live = live.LivePanel(store, link, idle, before_start)
                self.command = gr.Code(
                    form.command(config, _FIRST, store),
                    language="shell",
                    label="Same run from the command line",
                    interactive=False,
                    lines=1,
                    wrap_lines=True,
                    elem_id="command",
                )
        self.faults = gr.State({})  # {knob: sentence} as marked now, so that only what changes is drawn again
        self.newest = gr.State(Newest())
        self.facts = gr.State({})  # of the rows previewed last, by their preview.key
        self.seen_rows = gr.State({})  # what was seen of all of them, by the same key

    def wire(self) -> None:
        """Connect the events."""
        for part in (self.sweep, self.brief, self.machine_check, self.fit, self.live):
            part.wire()
        fields, fit = self.fields, self.fit
        everything = list(fields.knobs.values())
        checking: dict[str, Any] = {
            "fn": self.check,
            "inputs": fields.inputs() | {self.faults, self.facts, self.seen_rows},
            "outputs": [
                *everything,
                self.faults,
                self.status,
                self.command,
                self.findings_line,
                *self.findings.outputs,
            ],
        } | QUIET
        previewing: dict[str, Any] = {
            "fn": self.show_rows,
            "inputs": fields.inputs() | {self.newest},
            "outputs": [self.rows, self.facts, self.seen_rows, fields.bad_rows, fields.leave_out],
            "trigger_mode": "multiple",  # a newer question ends the older one, which may take minutes
        } | QUIET
        changes = [*(field.change for field in everything), self.facts.change, self.seen_rows.change]
        gr.on(changes, trigger_mode="always_last", **checking)
        gr.on(_settled(fields), **previewing)
        chosen = fields.preset.input(self.choose, fields.preset, [fields.preset, *everything], **QUIET)
        chosen.then(**fit.asking).then(**fit.looking).then(**previewing)
        for number, button in enumerate(self.findings.buttons):
            fix = partial(fields.apply, number)
            button.click(fix, self.findings.offered, everything, **QUIET).then(**previewing)
        for button in fit.buttons:
            button.click(**previewing)
        fields.leave_out.click(lambda: True, None, fields.knobs["skip_bad_rows"], **QUIET).then(**previewing)
        fields.upload.upload(_keep, fields.upload, fields.knobs["dataset"], **QUIET).then(**previewing)
        once: dict[str, Any] = {"concurrency_limit": 1, "trigger_mode": "once"} | QUIET
        outputs = [*everything, self.faults, self.status, self.start, self._link]
        for button, made in ((self.start, actions.start), (self.later, actions.enqueue)):
            button.click(partial(self.begin, made), fields.inputs() | {self.seen_rows}, outputs, **once)
        shown = [fields.preset, *everything, self.live.followed, self.live.seen]
        followed = self._link.change(self.follow, self._link, shown, **QUIET)
        followed.then(**self.live.looking).then(**fit.asking).then(**fit.looking).then(**previewing)

    def check(self, seen: dict[Any, Any]) -> dict[Any, Any]:
        """Mark the faults of the form; of a form without any show its command and the findings."""
        config, faults = self._judge(seen)
        updates = _marked(self.fields, seen[self.faults], faults)
        updates |= {self.faults: faults, self.status: _fault_list(faults)}
        if config:
            updates[self.command] = form.command(config, seen[self.fields.preset], self._store)
            of_rows = seen[self.facts].get(preview.key(config))
            remarks = findings.of_form(config, of_rows)
            updates |= self.findings.updates(remarks, _NO_REMARKS_ON_ROWS if of_rows else _NO_REMARKS)
            updates[self.findings_line] = findings.brief(remarks)
        return updates

    def _judge(self, seen: dict[Any, Any]) -> tuple[RunConfig | None, dict[str, str]]:
        config, faults = form.judge(self.fields.values(seen), self._store)
        rows = preview.faulty(seen[self.seen_rows].get(preview.key(config), {}), config) if config else ""
        return config, faults | ({"dataset": rows} if rows and "dataset" not in faults else {})

    @streams
    def begin(self, made: Callable[[RunStore, RunConfig], Run], seen: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        """Make the run of the form, start or queue it, and go to it."""
        config, faults = self._judge(seen)
        if config is None or faults:
            yield self._refused(faults)
            return
        yield {self.start: gr.update(value="Starting…", interactive=False), self.status: ""}
        ready = {self.start: gr.update(value="Start training", interactive=True)}
        try:
            self._before_start()
            run = made(self._store, config)
        except UserError as error:
            yield self._refused({form.field_of(error, config): str(error)})
            return
        except Exception:  # a bug: its traceback is for the terminal, and the button for the next try
            yield ready
            raise
        name = {self.fields.knobs["name"]: ""} if config.name else {}
        yield ready | {self._link: links.to("train", run.id)} | name

    def _refused(self, faults: dict[str, str]) -> dict[Any, Any]:
        actions.warn(" ".join(map(form.sentence, faults.values())))
        updates = self.fields.marks(faults) | {self.faults: faults, self.status: _fault_list(faults)}
        return updates | {self.start: gr.update(value="Start training", interactive=True)}

    @streams
    def show_rows(self, seen: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        """Preview the rows, unless they are shown already."""
        config, faults = form.judge(self.fields.values(seen), self._store)
        asked: Newest = seen[self.newest]
        if config is None or not faults.keys().isdisjoint({"base_model", "dataset"}):
            asked.ask()
            sentences = [form.sentence(fault) for name, fault in faults.items() if name in configs.marked("rows")]
            note = html.note("The first rows appear here once the form is valid.", *sentences, bad=True)
            yield {self.rows: note, **_at_field(self.fields, {}, None)}
            return
        key = config.model_dump_json(include=set(configs.marked("rows")) | {"eval_fraction"})
        if key == asked.about or any(run.is_locked() for run in self._store.all()):
            return  # shown or asked for already, or hidden behind a live run that needs the processor more
        wanted, whole = asked.ask(key), False
        try:
            yield from self._draw_rows(config, wanted)
            whole = True
        finally:
            if not whole and wanted():
                asked.about = ""

    def _draw_rows(self, config: RunConfig, wanted: Callable[[], bool]) -> Iterator[dict[Any, Any]]:
        answer: dict[str, Any] = {}
        known = preview.key(config)
        for body in preview.steps(config, answer.update, wanted):
            if not wanted():
                return
            of_all = answer.get("seen") or {}
            at_field = _at_field(self.fields, of_all, config)
            at_field |= {self.seen_rows: {known: of_all}}  # together: Start asks the latter
            yield {self.rows: body} | (at_field if answer else {})
        if not wanted():
            return
        yield {self.facts: {known: answer["facts"]} if answer else {}}
        if not answer:
            yield {self.seen_rows: {}, **_at_field(self.fields, {}, None)}

    def choose(self, name: str) -> Any:
        """Fill the form from a preset."""
        return gr.skip() if name == form.OWN else self.fields.filled(configs.resolve(preset=name), name)

    def follow(self, link: links.Link) -> dict[Any, Any]:
        """Show the run that a link names, or fill the form with its settings."""
        run_id = link["runs"][0] if link["tab"] == "train" and link["runs"] else ""
        updates: dict[Any, Any] = {self.live.seen: live.UNSEEN}
        if link["tab"] == "train":
            updates[self.live.followed] = run_id if link["show"] else ""
        if run_id and link["fill"]:
            try:
                config = self._store.get(run_id).config().model_copy(update={"name": ""})
                updates |= self.fields.filled(config, form.preset_of(config))
            except UserError as error:
                actions.warn(error)
        return updates


def _fault_list(faults: dict[str, str]) -> str:
    return html.faults(map(form.sentence, faults.values()))


def _marked(fields: form.Form, before: dict[str, str], now: dict[str, str]) -> dict[Any, Any]:
    """Updates for the fields whose fault came, changed or went."""
    marks = fields.marks(now)
    changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
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
    for name in configs.marked("rows"):
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
            actions.warn(f"The file was not kept, because the disk of '{kept.parent}' is nearly full: free some space.")
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
