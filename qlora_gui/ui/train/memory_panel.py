"""Will it fit: the memory of the run in the form, live, and the changes that would make it smaller, each one press."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from qlora_gui import hardware
from qlora_gui.config import RunConfig, marked
from qlora_gui.errors import UserError
from qlora_gui.memory import advice, budget, known_models, run_time, simulated_step
from qlora_gui.memory.estimate import MemoryPlan, plan
from qlora_gui.memory.model_shape import Shape
from qlora_gui.runs import gpus
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import memory_views
from qlora_gui.ui.rendering import html
from qlora_gui.ui.streaming import Newest, streams
from qlora_gui.ui.theme import QUIET
from qlora_gui.ui.train import form

_HERE = "this one"
_TO_PANEL = "() => { document.getElementById('fit')?.scrollIntoView({behavior: 'smooth'}); }"
_OPENINGS = 2
_ROUGH = "A rough estimate: the formula does not cover this kind of base."
_SIMULATING = f"{_ROUGH} Simulating a step, which takes a few seconds."
_SIMULATED = "From a simulated step, because the formula does not cover this kind of base; not a measurement."


class BriefVerdict:
    """The verdict in short, for narrow screens, where the panel lies below the form."""

    def __init__(self) -> None:
        with gr.Row(elem_id="fit-brief", elem_classes="tight", equal_height=False):
            self.line = gr.HTML(elem_id="fit-line")
            self.details = gr.Button("Details", size="sm", scale=0, min_width=80, elem_id="fit-details")

    def wire(self) -> None:
        """Connect the button."""
        self.details.click(None, None, None, js=_TO_PANEL, **QUIET)


class Shapes:
    """Shapes of bases. The hub is asked only on purpose, for it may take seconds; its answer is kept."""

    def __init__(self) -> None:
        self._asked: dict[tuple[str, str], Shape | str] = {}

    def ask(self, config: RunConfig) -> None:
        """Look a base up, on the hub where it is not known here."""
        try:
            answer: Shape | str = known_models.find(config)
        except UserError as error:
            answer = str(error)
        self._asked[config.base_model, config.revision] = answer

    def get(self, config: RunConfig) -> Shape:
        """The shape, without asking the hub. Raises UserError where there is none or nobody has asked yet."""
        try:
            return known_models.find(config, ask=False)
        except UserError:
            answer = self._asked.get((config.base_model, config.revision))
            if answer is None:
                raise
        if isinstance(answer, str):
            raise UserError(answer)
        return answer


@dataclass
class _Drawn:
    """All that one plan puts on the page."""

    body: str
    line: str
    table: str = ""
    title: str = "Ways to save memory"
    opened: bool = False
    unsure: bool = False  # the closed form does not know this architecture: a simulation does
    hint: str = ""
    offers: tuple[memory_views.Offer, ...] = ()

    def button(self, number: int) -> dict[str, Any]:
        """Caption and visibility of one of the buttons."""
        if number >= len(self.offers):
            return {"value": "", "visible": False}
        return {"value": memory_views.caption(self.offers[number], self.opened), "visible": True}


class MemoryPanel:
    """The panel of a form; `line` is where the verdict stands once more, in short.

    `asking` and `looking` are listeners for others: the one may ask the hub for the base, the other plans anew.
    """

    def __init__(self, first: RunConfig, fields: form.Form, line: gr.HTML, store: RunStore):
        self._fields, self._line, self._store, self._shapes = fields, line, store, Shapes()
        drawn = _look(first, _HERE, self._shapes)
        line.value = drawn.line
        with gr.Column(elem_id="fit", elem_classes="tight"):
            with gr.Row(elem_classes=["tight", "fit-head"], equal_height=False):
                gr.HTML('<h3 class="part">Will it fit</h3>')
                self.target = gr.Dropdown(
                    list(budget.targets()),
                    value=_HERE,
                    label="On a card of",
                    elem_id="fit-target",
                    scale=0,
                    min_width=150,
                    container=False,
                    filterable=False,
                )
            self.body = gr.HTML(drawn.body, elem_id="fit-body")
            there = bool(drawn.table)
            with gr.Accordion("Memory breakdown", open=False, visible=there, elem_id="fit-table") as self.causes:
                self.table = gr.HTML(drawn.table)
            with gr.Accordion(drawn.title, open=drawn.opened, visible=there, elem_id="fit-changes") as self.box:
                self.buttons = [
                    gr.Button(**drawn.button(number), size="sm", elem_id=f"fit-change-{number}", elem_classes="change")
                    for number in range(memory_views.MOST_CHANGES)
                ]  # each puts a change into the form
                self.hint = gr.HTML(drawn.hint)
        self.offered = gr.State([offer.knobs for offer in drawn.offers])
        self.opened = gr.State(_OPENINGS * drawn.opened)  # how often it was asked to stand open
        self.newest = gr.State(Newest())
        self.asking, self.looking = self._listeners()

    def _listeners(self) -> tuple[dict[str, Any], dict[str, Any]]:
        shared: dict[str, Any] = {"trigger_mode": "always_last"} | QUIET
        asking = {"fn": self.ask, "inputs": self._fields.inputs()} | shared
        outputs = [self.body, self._line, self.causes, self.table, self.box, self.hint]
        outputs += [*self.buttons, self.offered, self.opened]
        inputs = self._fields.inputs() | {self.target, self.opened, self.newest}
        return asking, {"fn": self.look, "inputs": inputs, "outputs": outputs} | shared

    def wire(self) -> None:
        """Connect the events."""
        everything = list(self._fields.knobs.values())
        gr.on([*(field.change for field in everything), self.target.input], **self.looking)
        texts = [self._fields.knobs[name] for name in marked("hub")]
        # The look comes after the answer and reads the form anew: what was typed meanwhile neither hides it nor is hidden.
        left = [event for text in texts for event in (text.blur, text.submit)]
        gr.on(left, **self.asking).then(**self.looking)
        for number, button in enumerate(self.buttons):
            button.click(partial(self._fields.apply, number), self.offered, everything, **QUIET)

    def ask(self, seen: dict[Any, Any]) -> None:
        """Look the base up, on the hub where it is not known here."""
        config, _ = form.judge(self._fields.values(seen), self._store)
        if config is not None:
            self._shapes.ask(config)

    @streams
    def look(self, seen: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        """Plan the run in the form: by the formula, with fresh figures of this machine, by a simulated step."""
        wanted = seen[self.newest].ask()
        config, _ = form.judge(self._fields.values(seen), self._store)
        if config is None:  # half-typed: the last figures stay where they are, and pale
            yield {part: gr.update(elem_classes=["stale"]) for part in (self.body, self._line)}
            return
        target, opened = seen[self.target], seen[self.opened]
        drawn = _look(config, target, self._shapes)
        if wanted():
            yield self._shown(drawn, opened)
        here = target == _HERE
        if here and wanted() and (not hardware.settled() or (hardware.is_stale() and not _trains(self._store))):
            hardware.settle(fresh=not _trains(self._store))
            drawn = _look(config, target, self._shapes)
            if wanted():
                yield self._shown(drawn, opened)
        if drawn.unsure and wanted():
            simulated = _look(config, target, self._shapes, simulate=True)
            if wanted():
                yield self._shown(simulated, _OPENINGS * drawn.opened)

    def _shown(self, drawn: _Drawn, openings: int) -> dict[Any, Any]:
        updates: dict[Any, Any] = {
            self.body: gr.update(value=drawn.body, elem_classes=[]),
            self._line: gr.update(value=drawn.line, elem_classes=[]),
            self.table: drawn.table,
            self.hint: drawn.hint,
            self.offered: [offer.knobs for offer in drawn.offers],
            self.opened: min(openings + 1, _OPENINGS) if drawn.opened else 0,
        }
        there = bool(drawn.table)
        # When the verdict changes, else it stays as the person has folded it. Opening is asked for twice, for where two figures
        # come within a moment, as after a preset was chosen, a browser may keep what it was in between.
        changes = openings < _OPENINGS if drawn.opened else openings > 0
        folding = {"open": drawn.opened} if changes else {}
        updates[self.box] = gr.update(label=drawn.title, visible=there, **folding)
        updates[self.causes] = gr.update(visible=there)
        return updates | {button: gr.update(**drawn.button(number)) for number, button in enumerate(self.buttons)}


def _time(config: RunConfig, shape: Shape, planned: MemoryPlan) -> str:
    """How long the run takes, where the check has measured this device."""
    takes = run_time.estimate(config, shape, planned)
    return html.hint(f"{takes}. An estimate, from this device's speed as measured by the check." if takes else "")


def _trains(store: RunStore) -> bool:
    return any(run.is_locked() for run in store.all())


def _doubts(config: RunConfig) -> str:
    """What is wrong with this machine's GPU, what does not work on it, or that nobody knows yet."""
    if not hardware.settled():
        return html.hint("Asking torch which devices it sees; until it answers, this is what nvidia-smi lists.")
    if config.gpu == gpus.CPU:
        return ""
    trouble, remark = hardware.trouble(), hardware.remark()
    return html.note(trouble, bad=True) * bool(trouble) + html.hint(remark) * bool(remark)


def _look(config: RunConfig, target: str, shapes: Shapes, simulate: bool = False) -> _Drawn:
    """Plan a run, if asked by a simulated step, which takes seconds. A base that cannot be planned for is a sentence."""
    card = budget.targets(config.gpu)[target]
    try:
        shape = shapes.get(config)
        if simulate and shape.rough:
            shape = known_models.find(config, count=True)
        planned = plan(config, shape, card)
        changes = advice.changes(config, shape, card)
    except UserError as error:
        return _Drawn(memory_views.unknown(str(error)), html.hint("No estimate of the memory for this base."))
    unsure = simulated_step.wanted(planned, shape)
    source = _SIMULATING if unsure else ""
    if simulate:
        try:
            config_json = known_models.config_json(config)
            planned, source = simulated_step.refined(planned, config, shape, config_json), _SIMULATED
        except UserError as error:
            source = f"{_ROUGH} {error}"
    doubts = _doubts(config) if target == _HERE else ""
    opened = planned.verdict != "fits"
    offers = memory_views.offers([change.as_dict() for change in changes])
    return _Drawn(
        body=memory_views.panel(planned, source) + _time(config, shape, planned) + doubts,
        line=memory_views.line(planned),
        table=memory_views.table(planned),
        title="How to make it fit" if opened else "Ways to save memory",
        opened=opened,
        unsure=unsure,
        hint=html.hint(advice.RANK_AND_BIAS if offers else "No change of settings makes this run smaller."),
        offers=tuple(offers),
    )
