"""What the doctor found, as HTML, and a button for each change that mends something."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from qlora_gui import diagnostics
from qlora_gui.config import RunConfig
from qlora_gui.diagnostics import Finding
from qlora_gui.errors import UserError
from qlora_gui.memory import known_models
from qlora_gui.runs.events import Event
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import actions
from qlora_gui.ui.rendering import html
from qlora_gui.ui.theme import QUIET
from qlora_gui.ui.train import form

MOST_BUTTONS = 4
_WORDS = {"bad": "✕ Breaks the run", "warn": "⚠ Warning", "note": "Note"}


@dataclass
class Panel:
    """The drawn place; `outputs` are what `updates` may change."""

    told: gr.HTML
    buttons: list[gr.Button]
    offered: gr.State  # the knobs of each button
    verb: str

    @property
    def outputs(self) -> list[Any]:
        return [self.told, *self.buttons, self.offered]

    def updates(self, found: Sequence[Finding], otherwise: str = "", offer: bool = True) -> dict[Any, Any]:
        """Show findings, or `otherwise` where there are none, and if asked their changes."""
        changes = mends(found) if offer else []
        updates: dict[Any, Any] = {self.told: told(found) or html.hint(otherwise), self.offered: changes}
        return updates | {
            button: gr.update(**_button(changes, number, self.verb)) for number, button in enumerate(self.buttons)
        }


def build(prefix: str, verb: str, found: Sequence[Finding] = (), otherwise: str = "") -> Panel:
    """Draw the place. `prefix` begins the ids on the page, `verb` the captions of the buttons."""
    changes = mends(found)
    body = gr.HTML(told(found) or html.hint(otherwise), elem_id=f"{prefix}-doctor")
    buttons = [
        gr.Button(**_button(changes, number, verb), size="sm", elem_id=f"{prefix}-mend-{number}", elem_classes="change")
        for number in range(MOST_BUTTONS)
    ]
    return Panel(body, buttons, gr.State(changes), verb)


def _button(changes: Sequence[Mapping[str, Any]], number: int, verb: str) -> dict[str, Any]:
    there = number < len(changes)
    return {"value": f"{verb} {words(changes[number])}" if there else "", "visible": there}


def mends(found: Sequence[Finding]) -> list[dict[str, Any]]:
    """The changes to offer, those of the worst findings first, none twice."""
    changes: list[dict[str, Any]] = []
    for finding in found:
        if finding.knobs and finding.knobs not in changes:
            changes.append(finding.knobs)
    return changes[:MOST_BUTTONS]


def words(knobs: Mapping[str, Any]) -> str:
    """{"use_rslora": True, "alpha": 8.0} -> `Use rsLoRA → yes · Alpha → 8`."""
    parts = []
    for name, value in knobs.items():
        plain = ("yes" if value else "no") if isinstance(value, bool) else value
        parts.append(f"{form.label(name)} → {f'{plain:g}' if isinstance(plain, float) else plain}")
    return " · ".join(parts)


def told(found: Sequence[Finding]) -> str:
    """Findings as boxes: level, name and evidence in the open; why, remedy and source to unfold. "" for none."""
    return "".join(map(_box, found))


def _box(finding: Finding) -> str:
    name = finding.check.replace("_", " ").replace("eos", "EOS").replace("bos", "BOS").replace("lora", "LoRA")
    style = {"bad": " bad", "warn": " warn", "note": ""}[finding.level]
    return (
        f'<details class="note finding{style}"><summary><b>{_WORDS[finding.level]} · {escape(name)}</b> '
        f"{escape(finding.evidence)}</summary><p>{escape(finding.why)}</p>"
        f'<p><b>Remedy:</b> {escape(finding.mend)}</p><p class="hint">Source: {escape(finding.source)}.</p></details>'
    )


def brief(found: Sequence[Finding]) -> str:
    """One line for narrow screens, where findings lie below the form; "" where none of them is a warning."""
    count = sum(finding.level != "note" for finding in found)
    if not count:
        return ""
    said = f"⚠ {count} warning{'s' if count > 1 else ''}: see what may go wrong"
    return f'<p class="hint"><a href="#form-doctor">{said}</a></p>'


def of_form(config: RunConfig, facts: Mapping[str, Any] | None) -> list[Finding]:
    """What is found about the run in the form; asks no hub."""
    try:
        shape = known_models.find(config, ask=False)
    except UserError:
        shape = None
    return diagnostics.before(config, shape, facts)


def of_run(run: Run, events: Sequence[Event]) -> list[Finding]:
    """What is found in a run's events; nothing of a run whose run.json is damaged."""
    try:
        return diagnostics.during(run.config(), events)
    except UserError:
        return []


def train_again(
    panel: Panel, store: RunStore, link: gr.State, before_start: Callable[[], None], which: gr.State | gr.Dropdown
) -> None:
    """Wire the buttons: train the run named by `which` (an id, or a list of one) again with the change, and go to it."""
    for number, button in enumerate(panel.buttons):

        def press(named: str | list[str], offered: list[dict[str, Any]], number: int = number) -> Any:
            run_id = named if isinstance(named, str) else named[0]
            return actions.again(store, before_start, run_id, offered[number])

        button.click(press, [which, panel.offered], link, concurrency_limit=1, trigger_mode="once", **QUIET)


def after_run(run: Run, evaluation: Mapping[str, Any] | None) -> list[Finding]:
    """What is found in a run that ended and, if there is one, in its evaluation; nothing where run.json is damaged."""
    try:
        return diagnostics.after(run.config(), run.events()[0], evaluation)
    except UserError:
        return []
