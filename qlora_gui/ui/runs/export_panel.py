"""Take along: a finished run's model as a merged folder or a GGUF file, and whether it is still the one that was evaluated."""

from collections.abc import Callable
from typing import Any, get_args

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.export import job
from qlora_gui.export.job import Settings
from qlora_gui.formatting import amount
from qlora_gui.runs import elsewhere
from qlora_gui.runs.child_job import State
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import actions
from qlora_gui.ui.rendering import html
from qlora_gui.ui.runs import hub_panel
from qlora_gui.ui.theme import RAW

_KINDS = [
    ("Merged model, for transformers and vLLM", "merged"),
    ("GGUF file, for Ollama, LM Studio and llama.cpp", "gguf"),
    ("Adapter alone as a GGUF file", "gguf-lora"),
]
_ONTO = [("the base's own weights", "base"), ("the 4-bit weights that were trained on", "trained")]
_WHY = (
    "The base's own weights are the more precise ones, but the adapter was trained on their 4-bit values: merged onto those, it "
    "is exactly the model that was evaluated. Either way both models then read the same held-out rows, and you see the difference."
)


class ExportPanel:
    """The section at a run that has an adapter."""

    def __init__(self, store: RunStore, before_start: Callable[[], None]):
        self._store, self._before_start = store, before_start
        with gr.Accordion("Take along", open=False, visible=False, elem_id="export") as self.box:
            with gr.Row():
                self.kind = gr.Dropdown(_KINDS, value="merged", label="As", elem_id="export-kind", min_width=300)
                self.dtype = gr.Dropdown(
                    list(get_args(job.Dtype)), value="bf16", label="Numbers", elem_id="export-dtype"
                )
                self.type = gr.Dropdown(
                    list(get_args(job.Type)), value="f16", label="Numbers", elem_id="export-type", visible=False
                )
                self.onto = gr.Dropdown(_ONTO, value="base", label="Merge onto", elem_id="export-onto")
                self.base = gr.Textbox(
                    label="Base",
                    placeholder="the one that it names",
                    elem_id="export-base",
                    max_lines=1,
                    min_width=220,
                )
            gr.HTML(html.hint(_WHY))
            self.begin = gr.Button(
                "Export", variant="primary", elem_id="export-start", size="sm", scale=0, min_width=110
            )
            self.status = gr.HTML(elem_id="export-status")
            self.hub = hub_panel.HubPanel(store)

    @property
    def outputs(self) -> list[Any]:
        """What `updates` may change."""
        return [self.box, self.begin, self.status, *self.hub.outputs]

    def updates(self, run: Run | None, working: State, made: list[job.Made]) -> dict[Any, Any]:
        """Show what can be exported of the one chosen run, and what was."""
        if run is None or not run.has_adapter():
            nothing = dict.fromkeys(self.hub.outputs, gr.skip())
            return {self.box: gr.update(visible=False), self.begin: gr.skip(), self.status: "", **nothing}
        return {
            self.box: gr.update(visible=True),
            self.begin: gr.update(interactive=not working.running),
            self.status: status(working, made),
            **self.hub.updates(run, made),
        }

    def wire(self, chosen: Any, detailing: dict[str, Any], changed: Any) -> None:
        """Connect the events; `changed` is the last of those that follow another choice."""
        self.kind.change(self.choose, self.kind, [self.dtype, self.type, self.onto], **RAW)
        asked = [chosen, self.kind, self.dtype, self.type, self.onto, self.base]
        self.begin.click(self.start, asked, None, **RAW).then(**detailing)
        self.hub.wire(chosen, detailing, changed)

    def choose(self, kind: str) -> list[Any]:
        """Show the choices that a kind has."""
        return [
            gr.update(visible=kind == "merged"),
            gr.update(visible=kind == "gguf"),
            gr.update(visible=kind != "gguf-lora"),
        ]

    def start(self, picked: list[str], kind: Any, dtype: Any, number: Any, onto: Any, base: str | None) -> None:
        """Begin the export of the chosen run."""
        try:
            run = self._store.get(picked[0])
            settings = Settings(kind=kind, dtype=dtype, onto=onto, type=number)
            base = (base or "").strip()
            elsewhere.check_base_allowed(self._store, run, base)
            target = job.folder_of(run, settings)
            if target.exists():
                raise UserError(f"The folder '{target}' is there already: delete it first.")
            self._before_start()  # the compare worker's memory
            job.start(run, settings, base)
        except UserError as error:
            actions.warn(error)


def status(working: State, made: list[job.Made]) -> str:
    """The export that runs or failed, and those that are there."""
    text = ""
    if working.fault:
        text = html.note(f"Not exported: {working.fault}", bad=True)
    elif working.running:
        text = html.hint(f"Exporting: {working.text}") + html.bar(working.share)
    return text + "".join(map(_made, made))


def _made(one: job.Made) -> str:
    return (
        f'<div class="note{" bad" if one.worse else " good"}"><p>{html.escaped(one.proof)}</p>'
        f'<p class="hint">{amount(one.bytes)} · <code>{html.escaped(str(one.folder))}</code></p></div>'
    )
