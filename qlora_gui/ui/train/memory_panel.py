"""Will it fit: the memory of the run in the form, live, and the changes that would make it smaller, each one press."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_gui import hardware
from qlora_gui.config import RunConfig
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
_ASKED_BY = ("base_model", "revision")
_ROUGH = "A rough estimate: its formula does not know this kind of base."
_SIMULATING = f"{_ROUGH} Simulating a step, which takes some seconds."
_SIMULATED = "From a simulated step, since the formula does not know this kind of base; not a measurement."


@dataclass
class Panel:
    """What others need: `ask` may ask the hub for the base, `look` plans anew; `buttons` each put a change into the form."""

    ask: dict[str, Any]
    look: dict[str, Any]
    buttons: list[gr.Button]


def brief() -> gr.HTML:
    """Draw the place of the verdict in short, for narrow screens, where the panel lies below the form."""
    with gr.Row(elem_id="fit-brief", elem_classes="tight", equal_height=False):
        line = gr.HTML(elem_id="fit-line")
        details = gr.Button("Details", size="sm", scale=0, min_width=80, elem_id="fit-details")
    details.click(None, None, None, js=_TO_PANEL, **QUIET)
    return line


class Shapes:
    """Shapes of bases. The hub is asked only on purpose, for it may take seconds; what it said is kept."""

    def __init__(self) -> None:
        self._asked: dict[tuple[str, str], Shape | str] = {}

    def ask(self, config: RunConfig) -> None:
        """Look a base up, on the hub where it is not known here."""
        try:
            found: Shape | str = known_models.find(config)
        except UserError as error:
            found = str(error)
        self._asked[config.base_model, config.revision] = found

    def get(self, config: RunConfig) -> Shape:
        """The shape, without asking the hub. Raises UserError where there is none or nobody has asked yet."""
        try:
            return known_models.find(config, ask=False)
        except UserError:
            found = self._asked.get((config.base_model, config.revision))
            if found is None:
                raise
        if isinstance(found, str):
            raise UserError(found)
        return found


def build(first: RunConfig, fields: form.Form, line: gr.HTML, store: RunStore) -> Panel:
    """Draw the panel and wire it to the form; `line` is where the verdict stands once more, in short."""
    shapes = Shapes()
    drawn = _look(first, _HERE, shapes)
    line.value = drawn.line
    with gr.Column(elem_id="fit", elem_classes="tight"):
        with gr.Row(elem_classes=["tight", "fit-head"], equal_height=False):
            gr.HTML('<h3 class="part">Will it fit</h3>')
            target = gr.Dropdown(
                list(budget.targets()),
                value=_HERE,
                label="On a card of",
                elem_id="fit-target",
                scale=0,
                min_width=150,
                container=False,
                filterable=False,
            )
        body = gr.HTML(drawn.body, elem_id="fit-body")
        with gr.Accordion("Memory by cause", open=False, visible=bool(drawn.table), elem_id="fit-table") as causes:
            table = gr.HTML(drawn.table)
        with gr.Accordion(drawn.title, open=drawn.opened, visible=bool(drawn.table), elem_id="fit-changes") as box:
            buttons = [
                gr.Button(**drawn.button(number), size="sm", elem_id=f"fit-change-{number}", elem_classes="change")
                for number in range(memory_views.MOST_CHANGES)
            ]
            told = gr.HTML(drawn.told)
    offered = gr.State([offer.knobs for offer in drawn.offers])
    opened, newest = gr.State(drawn.opened), gr.State(Newest())
    outputs = [body, line, causes, table, box, told, *buttons, offered, opened]

    def ask(seen: dict[Any, Any]) -> None:
        config, _ = form.judge(fields.values(seen), store)
        if config is not None:
            shapes.ask(config)

    @streams
    def look(seen: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        wanted = seen[newest].ask()
        config, _ = form.judge(fields.values(seen), store)
        if config is None:  # half-typed: the last figures stay where they are, and pale
            yield {body: gr.update(elem_classes=["stale"]), line: gr.update(elem_classes=["stale"])}
            return
        drawn = _look(config, seen[target], shapes)
        if wanted():
            yield shown(drawn, seen[opened])
        here = seen[target] == _HERE
        if here and wanted() and (not hardware.settled() or (hardware.is_stale() and not _trains(store))):
            hardware.settle(fresh=not _trains(store))
            drawn = _look(config, seen[target], shapes)
            if wanted():
                yield shown(drawn, seen[opened])
        if drawn.unsure and wanted():
            simulated = _look(config, seen[target], shapes, simulate=True)
            if wanted():
                yield shown(simulated, drawn.opened)

    def shown(drawn: _Drawn, was_opened: bool) -> dict[Any, Any]:
        updates: dict[Any, Any] = {
            body: gr.update(value=drawn.body, elem_classes=[]),
            line: gr.update(value=drawn.line, elem_classes=[]),
            table: drawn.table,
            told: drawn.told,
            offered: [offer.knobs for offer in drawn.offers],
            opened: drawn.opened,
        }
        there = bool(drawn.table)
        folding = {"open": drawn.opened} if drawn.opened != was_opened else {}  # else as the person has folded it
        updates[box] = gr.update(label=drawn.title, visible=there, **folding)
        updates[causes] = gr.update(visible=there)
        return updates | {button: gr.update(**drawn.button(number)) for number, button in enumerate(buttons)}

    def take(number: int) -> Any:
        def put(offered: list[dict[str, Any]]) -> dict[Any, Any]:
            knobs = offered[number] if number < len(offered) else {}
            return {fields.knobs[name]: value for name, value in knobs.items()} or gr.skip()

        return put

    everything = list(fields.knobs.values())
    looking: dict[str, Any] = {
        "fn": look,
        "inputs": fields.inputs() | {target, opened, newest},
        "outputs": outputs,
        "trigger_mode": "always_last",
    } | QUIET
    asking: dict[str, Any] = {"fn": ask, "inputs": fields.inputs(), "trigger_mode": "always_last"} | QUIET
    gr.on([*(field.change for field in everything), target.input], **looking)
    texts = [fields.knobs[name] for name in _ASKED_BY]
    # The look comes after the answer and reads the form anew: what was typed meanwhile neither hides it nor is hidden.
    gr.on([event for text in texts for event in (text.blur, text.submit)], **asking).then(**looking)
    for number, button in enumerate(buttons):
        button.click(take(number), offered, everything, **QUIET)
    return Panel(asking, looking, buttons)


def _time(config: RunConfig, shape: Shape, found: MemoryPlan) -> str:
    """How long the run takes, where the check has measured this device."""
    takes = run_time.estimate(config, shape, found)
    return html.hint(f"{takes}. An estimate, from this device's speed as the check measured it." if takes else "")


def _trains(store: RunStore) -> bool:
    return any(run.is_locked() for run in store.all())


def _doubts(config: RunConfig) -> str:
    """What is wrong with this machine's GPU, what does not work on it, or that nobody knows yet."""
    if not hardware.settled():
        return html.hint("Torch is being asked which devices it sees; until then this is what nvidia-smi lists.")
    if config.gpu == gpus.CPU:
        return ""
    trouble, remark = hardware.trouble(), hardware.remark()
    return html.note(trouble, bad=True) * bool(trouble) + html.hint(remark) * bool(remark)


@dataclass
class _Drawn:
    """All that one plan puts on the page."""

    body: str
    line: str
    table: str = ""
    title: str = "Changes that make it smaller"
    opened: bool = False
    unsure: bool = False  # the closed form does not know this architecture: a simulation does
    told: str = ""
    offers: tuple[memory_views.Offer, ...] = ()

    def button(self, number: int) -> dict[str, Any]:
        """Caption and visibility of one of the buttons."""
        if number >= len(self.offers):
            return {"value": "", "visible": False}
        return {"value": memory_views.caption(self.offers[number], self.opened), "visible": True}


def _look(config: RunConfig, target: str, shapes: Shapes, simulate: bool = False) -> _Drawn:
    """Plan a run, if asked by a simulated step, which takes seconds. A base that cannot be planned for is a sentence."""
    card = budget.targets(config.gpu)[target]
    try:
        shape = shapes.get(config)
        if simulate and shape.rough:
            shape = known_models.find(config, count=True)
        found = plan(config, shape, card)
        changes = advice.changes(config, shape, card)
    except UserError as error:
        return _Drawn(memory_views.unknown(str(error)), html.hint("No estimate of the memory for this base."))
    unsure = simulated_step.wanted(found, shape)
    source = _SIMULATING if unsure else ""
    if simulate:
        try:
            found, source = simulated_step.refined(found, config, shape, known_models.config_json(config)), _SIMULATED
        except UserError as error:
            source = f"{_ROUGH} {error}"
    doubts = _doubts(config) if target == _HERE else ""
    opened = found.verdict != "fits"
    offers = memory_views.offers([change.as_dict() for change in changes])
    return _Drawn(
        body=memory_views.panel(found, source) + _time(config, shape, found) + doubts,
        line=memory_views.line(found),
        table=memory_views.table(found),
        title="What would make it fit" if opened else "Changes that make it smaller",
        opened=opened,
        unsure=unsure,
        told=html.hint(advice.RANK_AND_BIAS if offers else "No change of a setting makes this run smaller."),
        offers=tuple(offers),
    )
