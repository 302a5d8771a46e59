"""Findings as HTML, with a button for each change that fixes something."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from qlora_gui import diagnostics
from qlora_gui.config import RunConfig
from qlora_gui.diagnostics import Finding
from qlora_gui.errors import UserError
from qlora_gui.evaluation.results import Evaluation
from qlora_gui.formatting import setting
from qlora_gui.memory import budget, known_models
from qlora_gui.memory.estimate import plan
from qlora_gui.runs.history import RunHistory
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import actions
from qlora_gui.ui.rendering import html
from qlora_gui.ui.theme import QUIET
from qlora_gui.ui.train import form

MOST_BUTTONS = 4
_WORDS = {"bad": "✕ Breaks the run", "warn": "⚠ Warning", "note": "Note"}


class FindingsPanel:
    """The place; `prefix` begins the ids on the page, `verb` the captions of the buttons."""

    def __init__(self, prefix: str, verb: str, findings: Sequence[Finding] = (), otherwise: str = ""):
        self._verb = verb
        changes = fixes(findings)
        self.boxes = gr.HTML(render(findings) or html.hint(otherwise), elem_id=f"{prefix}-findings")
        self.buttons = [
            gr.Button(
                **_button(changes, number, verb), size="sm", elem_id=f"{prefix}-fix-{number}", elem_classes="change"
            )
            for number in range(MOST_BUTTONS)
        ]
        self.offered = gr.State(changes)  # the knobs of each button

    @property
    def outputs(self) -> list[Any]:
        """What `updates` may change."""
        return [self.boxes, *self.buttons, self.offered]

    def updates(self, findings: Sequence[Finding], otherwise: str = "", offer: bool = True) -> dict[Any, Any]:
        """Show findings, or `otherwise` where there are none, and if asked their changes."""
        changes = fixes(findings) if offer else []
        updates: dict[Any, Any] = {self.boxes: render(findings) or html.hint(otherwise), self.offered: changes}
        return updates | {
            button: gr.update(**_button(changes, number, self._verb)) for number, button in enumerate(self.buttons)
        }

    def wire_train_again(
        self, store: RunStore, link: gr.State, before_start: Callable[[], None], which: gr.State | gr.Dropdown
    ) -> None:
        """Let a button train the run named by `which` (an id, or a list of one) again with its change, and go to it."""

        def press(number: int, named: str | list[str], offered: list[dict[str, Any]]) -> Any:
            run_id = named if isinstance(named, str) else named[0]
            return actions.again(store, before_start, run_id, offered[number])

        once: dict[str, Any] = {"concurrency_limit": 1, "trigger_mode": "once"} | QUIET
        for number, button in enumerate(self.buttons):
            button.click(partial(press, number), [which, self.offered], link, **once)


def _button(changes: Sequence[Mapping[str, Any]], number: int, verb: str) -> dict[str, Any]:
    there = number < len(changes)
    return {"value": f"{verb} {words(changes[number])}" if there else "", "visible": there}


def fixes(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """The changes to offer, those of the worst findings first, none twice."""
    changes: list[dict[str, Any]] = []
    for finding in findings:
        if finding.knobs and finding.knobs not in changes:
            changes.append(finding.knobs)
    return changes[:MOST_BUTTONS]


def words(knobs: Mapping[str, Any]) -> str:
    """{"use_rslora": True, "alpha": 8.0} -> `Use rsLoRA → yes · Alpha → 8`."""
    return " · ".join(f"{form.label(name)} → {setting(value)}" for name, value in knobs.items())


def render(findings: Sequence[Finding]) -> str:
    """Findings as boxes: level, name and evidence in the open; why, fix and source to unfold. "" for none."""
    return "".join(map(_box, findings))


def _box(finding: Finding) -> str:
    name = finding.check.replace("_", " ").replace("eos", "EOS").replace("bos", "BOS").replace("lora", "LoRA")
    style = {"bad": " bad", "warn": " warn", "note": ""}[finding.level]
    return (
        f'<details class="note finding{style}"><summary><b>{_WORDS[finding.level]} · {escape(name)}</b> '
        f"{escape(finding.evidence)}</summary><p>{escape(finding.why)}</p>"
        f'<p><b>Fix:</b> {escape(finding.fix)}</p><p class="hint">Source: {escape(finding.source)}.</p></details>'
    )


def brief(findings: Sequence[Finding]) -> str:
    """One line for narrow screens, where findings lie below the form; "" where none of them is a warning."""
    count = sum(finding.level != "note" for finding in findings)
    if not count:
        return ""
    text = f"⚠ {count} warning{'s' if count > 1 else ''}: see Warnings"
    return f'<p class="hint"><a href="#form-findings">{text}</a></p>'


def of_form(config: RunConfig, facts: Mapping[str, Any] | None) -> list[Finding]:
    """The findings on the run in the form; asks no hub."""
    shape = memory = None
    with contextlib.suppress(UserError):
        shape = known_models.find(config, ask=False)
        memory = plan(config, shape, budget.here(config.gpu))
    return diagnostics.before(config, shape, facts, memory)


def of_run(run: Run, history: RunHistory) -> list[Finding]:
    """The findings on a run's events; nothing of a run whose run.json is damaged."""
    try:
        return diagnostics.during(run.config(), history)
    except UserError:
        return []


def after_run(run: Run, evaluation: Evaluation | None) -> list[Finding]:
    """The findings on a run that ended and, if there is one, in its evaluation; nothing where run.json is damaged."""
    try:
        return diagnostics.after(run.config(), run.history(), evaluation.parts() if evaluation else None)
    except UserError:
        return []
