"""Compare: base and up to five adapters side by side, in a chat or judged blind, each with its proof."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from qlora_gui.inference.client import CompareClient
from qlora_gui.inference.sampling import MAX_ADAPTERS, Decoding
from qlora_gui.preferences.votes import VoteLog
from qlora_gui.runs.store import RunStore
from qlora_gui.serving.server import Endpoint
from qlora_gui.ui import links
from qlora_gui.ui.bring import BringPanel
from qlora_gui.ui.compare import blind, blind_panel, chat, columns, endpoint_panel, offers
from qlora_gui.ui.compare.columns import Room
from qlora_gui.ui.rendering import html
from qlora_gui.ui.runs import index
from qlora_gui.ui.runs.summary import Summary
from qlora_gui.ui.theme import RAW, TICK_SECONDS
from qlora_gui.ui.train import form

_EMPTY = html.empty(
    "No adapters yet. Train one: on the Train tab the demo is filled in, press Start. Or add one below that was made elsewhere."
)


class CompareTab:
    """The tab's components, and what happens when they are used."""

    def __init__(self, store: RunStore, client: CompareClient, endpoint: Endpoint):
        self.store, self.client = store, client
        self.log = VoteLog(store.root)
        self.empty = gr.HTML(_EMPTY, elem_id="no-adapters")
        with gr.Column(visible=False, elem_classes="tight") as self.everything:
            with gr.Row(equal_height=False):
                self._draw_choices()
            self.not_offered = gr.HTML(elem_id="not-offered")
            self.shown = columns.draw()
            self.bar = chat.ChatBar()
            self.panel = blind_panel.BlindPanel(self.log, store.has_guests)
            with gr.Accordion("Settings", open=False, elem_id="decoding"):
                self._draw_settings()
            self.for_programs = endpoint_panel.EndpointPanel(endpoint, store.has_guests)
        self.bring = BringPanel(store, "compare")
        choices = (self.base, self.chosen, self.whole, self.switch)
        self.room = Room(store, client, *choices, self.system, self.fields, self.shown)
        self.seen, self.laid = gr.State(""), gr.State(None)
        self.chat = chat.Chat(self.room, self.bar)
        self.blind = blind.BlindVoting(self.room, self.panel, self.log)

    def _draw_choices(self) -> None:
        self.base = gr.Dropdown(
            [],
            label="Base",
            info="Not where its adapters say it is? Type its hub id or folder.",
            allow_custom_value=True,
            elem_id="base",
            scale=2,
            min_width=240,
        )
        self.chosen = gr.Dropdown(
            [],
            value=[],
            multiselect=True,
            max_choices=MAX_ADAPTERS,
            label=f"Adapters (up to {MAX_ADAPTERS} of this base)",
            elem_id="adapters",
            scale=3,
            min_width=280,
        )
        self.whole = gr.Dropdown(
            [],
            label="Whole model",
            info="One more column: a merged export of these runs, or a folder.",
            allow_custom_value=True,
            elem_id="whole-model",
            scale=2,
            min_width=240,
        )
        self.switch = gr.Checkbox(
            label="Blind", info="Vote without seeing the names.", elem_id="blind", scale=1, min_width=170
        )

    def _draw_settings(self) -> None:
        self.system = gr.Textbox(
            label="System prompt", info="Put before every conversation.", lines=2, elem_id="compare-system"
        )
        with gr.Row(equal_height=False):
            self.fields = {
                name: form.component(name, field, field.default, "decoding")
                for name, field in Decoding.model_fields.items()
            }
        self.unload = gr.Button("Unload the model", size="sm", elem_id="unload")

    def refresh(self, before: str, base: str | None, picked: list[str]) -> Any:
        """Updates when what can be offered has changed."""
        runs = index.glance(self.store).summaries
        now = _stamp(runs)
        if before in ("", now):  # before the first link it is not known what to choose
            return gr.skip()
        updates = self._choices(runs, base, picked, none_is_meant=True)
        for part, before_it in ((self.base, (base or "").strip() or None), (self.chosen, picked)):
            if updates[part]["value"] == before_it:
                del updates[part]["value"]  # so that what is typed or chosen meanwhile stays
        return {self.seen: now} | updates

    def _choices(
        self,
        runs: Sequence[Summary],
        base: str | None,
        picked: list[str],
        none_is_meant: bool = False,
        typed: bool = False,
    ) -> dict[Any, Any]:
        bases, usable = offers.bases(runs), any(run.adapter for run in runs)
        base = (base or "").strip()
        typed = typed or any(run.id in picked for run in runs)  # and not the base of runs that are gone
        if not base or (base not in bases and not typed):
            base = next(iter(bases), None)
        ids = offers.adapters(runs, base or "")
        still_offered = [run_id for run_id in picked if run_id in ids][:MAX_ADAPTERS]
        reasons = offers.refused(runs, base) if base else []
        return {
            self.empty: gr.update(visible=not usable),
            self.everything: gr.update(visible=usable),
            self.base: gr.update(choices=bases, value=base),
            self.chosen: gr.update(choices=ids, value=still_offered if still_offered or none_is_meant else ids[:1]),
            self.not_offered: html.listed(f"Hidden with this base ({len(reasons)})", reasons),
        }

    def follow(self, link: links.Link, base: str | None, picked: list[str]) -> dict[Any, Any]:
        """What a link asks for; but votes that are being given go on, also after a reload."""
        runs = index.now(self.store).summaries
        asked_for = link["runs"] if link["tab"] == "compare" else []
        under_way = self.blind.under_way()
        asked_for = under_way if under_way is not None else asked_for
        asked_base = offers.base_of([run for run in runs if run.id in asked_for], runs)
        updates = self._choices(runs, asked_base or base, asked_for or picked)
        return {self.seen: _stamp(runs)} | updates | ({self.switch: True} if under_way is not None else {})

    def change_base(self, base: str) -> dict[Any, Any]:
        """The adapters of a base that was chosen or typed."""
        return self._choices(index.now(self.store).summaries, base, [], typed=True)

    def lay_out_if_new(
        self, picked: list[str], whole: str | None, system: str, is_blind: bool, laid: list[str] | None
    ) -> Any:
        """New choices bring the same value again, also while answers are written: those must stay."""
        return gr.skip() if [*picked, whole or ""] == laid else self.lay_out(picked, whole, system, is_blind)

    def lay_out(self, picked: list[str], whole: str | None, system: str, is_blind: bool) -> dict[Any, Any]:
        """Columns for the chosen adapters: empty conversations, or what the blind judge is to see."""
        bar, panel = self.bar, self.panel
        updates: dict[Any, Any] = {bar.box: gr.update(visible=not is_blind), panel.box: gr.update(visible=is_blind)}
        runs = index.now(self.store).summaries
        prompts = [run.config.system_prompt for run in runs if run.config and run.id in picked]
        if prompts and not system:
            updates[self.system] = prompts[0]
        names = columns.names(picked, whole)
        if is_blind:
            updates |= self.blind.drawn(picked)
        else:
            updates |= columns.emptied(self.shown, names) | {panel.bar: gr.update(visible=False)}
        offered = [(made.folder.name, str(made.folder)) for made in self.room.merged(picked)]
        updates[self.whole] = gr.update(choices=offered, visible=not is_blind)
        return updates | {self.laid: [*picked, whole or ""]} | bar.emptied(len(names))

    def wire(self, link: gr.State) -> None:
        """Connect the events."""
        bar, panel = self.bar, self.panel
        refreshing: dict[str, Any] = {
            "fn": self.refresh,
            "inputs": [self.seen, self.base, self.chosen],
            "outputs": [self.seen, self.empty, self.everything, self.base, self.chosen, self.not_offered],
        } | RAW
        self.blind.wire()
        self.bring.wire(link, self.chosen)
        laid_out = [bar.box, panel.box, self.laid, self.system, self.whole, *bar.emptied_parts(), *self.room.parts()]
        laying: dict[str, Any] = {
            "inputs": [self.chosen, self.whole, self.system, self.switch],
            "outputs": list(dict.fromkeys([*laid_out, *self.blind.outputs])),
        } | RAW
        gr.Timer(2 * TICK_SECONDS).tick(**refreshing)
        link.change(self.follow, [link, self.base, self.chosen], [*refreshing["outputs"], self.switch], **RAW)
        link.change(None, None, None, js=blind_panel.KEYS, **RAW)
        self.base.input(self.change_base, self.base, refreshing["outputs"], **RAW)
        lay_out_if_new = self.lay_out_if_new
        for choice in (self.chosen, self.whole):
            choice.change(lay_out_if_new, **laying | {"inputs": [*laying["inputs"], self.laid]})
        lay_out = self.lay_out  # one object: Gradio lets listeners of the same function take turns
        self.switch.change(lay_out, **laying)
        self.chat.wire()
        self.for_programs.wire(self.room, link)
        bar.clear.click(lay_out, **laying)
        self.unload.click(self.client.close, None, None, **RAW)


def _stamp(runs: Sequence[Summary]) -> str:
    """Changes when what can be offered changes."""
    return repr([(run.id, run.adapter, run.state) for run in runs])
