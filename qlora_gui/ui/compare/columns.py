"""The columns of the Compare tab: what each is called, what it answered, and the proof that it is what it says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import PureWindowsPath
from typing import Any

import gradio as gr

from qlora_gui import config as configs
from qlora_gui import hub
from qlora_gui.config import RunConfig
from qlora_gui.data import reasoning
from qlora_gui.errors import UserError
from qlora_gui.export import job
from qlora_gui.inference.client import CompareClient, columns_of
from qlora_gui.inference.protocol import Answer, Load
from qlora_gui.inference.sampling import MAX_ADAPTERS, Decoding
from qlora_gui.references import ModelRef
from qlora_gui.runs import bounded_reading, elsewhere
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import views
from qlora_gui.ui.compare import offers
from qlora_gui.ui.rendering import html
from qlora_gui.ui.runs import index


class View:
    """The components of one column."""

    def __init__(self, number: int):
        with gr.Column(
            visible=number == 0, min_width=280, elem_classes="tight", elem_id=f"column-{number}"
        ) as self.box:
            self.title = gr.HTML(elem_id=f"column-title-{number}")
            self.chat = gr.Chatbot(
                label=f"Answers of column {number + 1}",
                show_label=False,
                height=300,
                sanitize_html=True,
                render_markdown=False,  # an answer is judged as it was written
                latex_delimiters=[],
                buttons=[],
                feedback_options=None,
                layout="bubble",
                placeholder="Answers appear here.",
                elem_id=f"chat-{number}",
            )
            with gr.Accordion("Proof", open=False, elem_id=f"proof-{number}") as self.proof_box:
                self.proof = gr.HTML(NO_PROOF)

    def parts(self) -> list[Any]:
        """All of them."""
        return [self.box, self.title, self.chat, self.proof_box, self.proof]


def draw() -> list[View]:
    """Draw all columns there can be; only those in use are visible."""
    with gr.Row(equal_height=False, elem_id="columns"):
        return [View(number) for number in range(MOST)]


def emptied(shown: Sequence[View], names: Sequence[str], proofs: bool = True) -> dict[Any, Any]:
    """Updates that give one empty column a name, and hide the others; without `proofs` for a blind judge."""
    updates: dict[Any, Any] = {}
    for number, view in enumerate(shown):
        used = number < len(names)
        updates[view.box] = gr.update(visible=used)
        if used:
            updates |= {view.title: title(names[number]), view.chat: [], view.proof: NO_PROOF}
            updates[view.proof_box] = gr.update(visible=proofs)
    return updates


def messages(
    history: Sequence[Mapping[str, str]], answer: str | None = None, prompt: str | None = None, writing: bool = False
) -> list[dict[str, Any]]:
    """A conversation for a Chatbot as it was written, each thought a folded message before its answer.

    `prompt` is what the answer goes on from, as the model read it, None where that is not known; all answers of a
    column go on from one that ends alike. `writing` while more of the answer comes.
    """
    shown: list[dict[str, Any]] = []
    for turn in history:
        role, text = turn["role"], turn["content"]
        shown += _answered(text, prompt) if role == "assistant" else [_message(role, text)]
    return shown + (_answered(answer, prompt, writing) if answer is not None else [])


def _answered(text: str, prompt: str | None, writing: bool = False) -> list[dict[str, Any]]:
    parts = reasoning.parted(text, prompt)
    above = []
    if parts.thought:
        # "done" folds it, also while it is being written; unfolded by hand it stays so
        folded = {"title": parts.title(writing), "status": "done"}
        above = [_message("assistant", parts.thought) | {"metadata": folded}]
        if not parts.ended:
            return above
    return [*above, _message("assistant", parts.answer, empty="…" if writing else "<em>(an empty answer)</em>")]


def _message(role: str, content: str, empty: str = "") -> dict[str, Any]:
    """A Chatbot takes text as HTML, so tags that a model writes are escaped; it strips text that is not in a part."""
    return {"role": role, "content": [{"type": "text", "text": escape(content, quote=False) or empty}]}


def title(name: str, line: str = "") -> str:
    """A column's name, and below it a line of HTML about its last answer."""
    return f'<div class="column-line"><b>{escape(name)}</b><br><span>{line or "no answer yet"}</span></div>'


def progress(answer: Answer) -> str:
    """How far an answer is, as HTML; once it has ended, its length, speed and end."""
    if answer.ended:
        return views.ending(answer)
    return "writing…" if answer.text else "waiting…"


def length(answer: Answer) -> str:
    """An answer's length as HTML, and whether it was cut: what a blind judge may know of it."""
    cut = ' · <span class="limit">cut at the length limit!</span>' if answer.ended == "length" else ""
    return f"{answer.tokens} tokens{cut}"


def proof(column: Mapping[str, Any], prompt: str, decoding: Decoding) -> str:
    """What a column is: everything the worker says of it, the prompt as the model read it, how it was decoded."""
    rows = [(_TITLES.get(name, name.replace("_", " ")), _plain(value)) for name, value in column.items()]
    settings = "greedy" if decoding.greedy else f"temperature {decoding.temperature:g}, top-p {decoding.top_p:g}"
    settings += f", at most {decoding.max_new_tokens} tokens"
    noise = "the same random numbers for all" if decoding.same_dice else "its own random numbers"
    settings += "" if decoding.greedy else f", seed {decoding.seed}, {noise}"
    rows.append(("decoding", settings))
    literal = html.hint("The prompt as the model read it:") + html.literal(prompt) if prompt else ""
    return '<div class="proof">' + html.table((), rows) + literal + "</div>"


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@dataclass
class Room:
    """The store of runs, the compare worker, and the components that chat and blind votes both read or draw."""

    store: RunStore
    client: CompareClient
    base: gr.Dropdown
    chosen: gr.Dropdown
    whole: gr.Dropdown
    blind: gr.Checkbox
    system: gr.Textbox
    fields: dict[str, Any]  # of Decoding
    shown: list[View]

    def inputs(self) -> set[Any]:
        """What a listener takes to see the choices and settings, as one dict by component."""
        return {self.base, self.chosen, self.whole, self.system, *self.fields.values()}

    def parts(self) -> list[Any]:
        """The components of all columns."""
        return [part for view in self.shown for part in view.parts()]

    def decoding(self, given: Mapping[Any, Any]) -> Decoding:
        """The settings. Raises UserError for one that is out of bounds."""
        return configs.checked(Decoding, {name: given[field] for name, field in self.fields.items()})

    def asked(self, given: Mapping[Any, Any]) -> tuple[RunConfig, list[Run]]:
        """A config that names the base, and the chosen runs. Raises UserError when one is gone.

        A base that nothing names was typed: it is taken in place of the one that the runs name.
        """
        runs = [self.store.get(run_id) for run_id in given[self.chosen]]
        base = (given[self.base] or "").strip()
        own = [run.config() for run in runs if not run.is_elsewhere()]
        if own and offers.key(own[0]) == base:
            return own[0], runs
        named = offers.configs(index.now(self.store).summaries).get(base)
        if named is not None and not own:
            self.store.check_allowed(
                named.base_model
            )  # perhaps an adapter from elsewhere says so, which is not trusted
            return named, runs
        if not runs:
            raise UserError("No run of this base is left: choose another base.")
        if not base:
            raise UserError("None of these adapters says what its base is: type a hub id or a folder into Base.")
        self.store.check_allowed(base)
        ModelRef.find(base).check()
        kind = own[0] if own else RunConfig()
        return kind.model_copy(update={"base_model": base, "revision": ""}), runs

    def load(self, given: Mapping[Any, Any]) -> Load:
        """What the chat asks: base, adapters and, where one is named, a whole model. Raises UserError."""
        load = columns_of(*self.asked(given))
        named = (given[self.whole] or "").strip()
        if not named:
            return load
        if len(load.adapters) >= MAX_ADAPTERS:
            raise UserError(f"There are {MAX_ADAPTERS} columns beside the base already: leave an adapter out.")
        self.store.check_allowed(named)
        path = hub.local(named)
        if path is None or not elsewhere.is_whole(path):
            raise UserError(f"'{named}' is no folder of a whole model: name one that has a config.json and weights.")
        return replace(load, adapters=(*load.adapters, str(path.absolute())))

    def merged(self, picked: Sequence[str]) -> list[job.Made]:
        """The merged models that were exported from the chosen runs."""
        runs = [self.store.get(run_id) for run_id in picked if self.store.is_taken(run_id)]
        return [made for run in runs for made in job.made(run) if elsewhere.is_whole(made.folder)]

    def held_out(self, picked: Sequence[str]) -> list[tuple[str, str]]:
        """Held-out questions of the first run among the chosen, with the data's own answers. Raises UserError."""
        runs = [self.store.get(run_id) for run_id in picked]
        config = next((run.config() for run in runs if not run.is_elsewhere()), None)
        return bounded_reading.held_out(config) if config else []


def names(picked: Sequence[str], whole: str | None) -> list[str]:
    """The names of the columns in the chat: the base's first, a whole model's last."""
    return ["base", *picked, *([PureWindowsPath(whole.strip()).name] if whole and whole.strip() else [])][:MOST]


MOST = MAX_ADAPTERS + 1
NO_PROOF = html.hint("Shown with the first answer.")
_TITLES = {
    "name": "column",
    "base": "base",
    "base_model": "base",
    "adapter": "adapter folder",
    "sha256": "adapter checksum (SHA-256)",
    "checksum": "adapter checksum",
    "template": "chat template (digest)",
    "self_test": "self-test",
}
