"""Compare: base and up to five adapters side by side, in a chat or judged blind, each with its proof."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from qlora_gui.inference.sampling import MAX_ADAPTERS, Decoding
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import links
from qlora_gui.ui.compare import blind, blind_panel, chat, columns, offers
from qlora_gui.ui.compare.columns import Room
from qlora_gui.ui.compare.session import Session
from qlora_gui.ui.rendering import html
from qlora_gui.ui.runs import index
from qlora_gui.ui.runs.summary import Summary
from qlora_gui.ui.theme import RAW, TICK_SECONDS
from qlora_gui.ui.train import form

_EMPTY = html.empty("No adapters yet. Train one: on the Train tab the demo is filled in, press Start.")


def tab(store: RunStore, link: gr.State, session: Session) -> None:
    """Draw the tab and wire it."""
    empty = gr.HTML(_EMPTY, elem_id="no-adapters")
    with gr.Column(visible=False, elem_classes="tight") as everything:
        with gr.Row(equal_height=False):
            base = gr.Dropdown(
                [],
                label="Base",
                info="Not where its adapters say? Type its hub id or folder.",
                allow_custom_value=True,
                elem_id="base",
                scale=2,
                min_width=240,
            )
            chosen = gr.Dropdown(
                [],
                value=[],
                multiselect=True,
                max_choices=MAX_ADAPTERS,
                label=f"Adapters (up to {MAX_ADAPTERS} of this base)",
                elem_id="adapters",
                scale=3,
                min_width=280,
            )
            switch = gr.Checkbox(
                label="Blind", info="Vote before you know who is who.", elem_id="blind", scale=1, min_width=170
            )
        not_offered = gr.HTML(elem_id="not-offered")
        shown = columns.build()
        bar = chat.build()
        panel = blind_panel.build()
        with gr.Accordion("Settings", open=False, elem_id="decoding"):
            system = gr.Textbox(
                label="System prompt", info="Put before every conversation.", lines=2, elem_id="compare-system"
            )
            with gr.Row(equal_height=False):
                fields = {
                    name: form.component(name, field, field.default, "decoding")
                    for name, field in Decoding.model_fields.items()
                }
            unload = gr.Button("Free the memory of the compare worker", size="sm", elem_id="unload")
    room = Room(store, session, base, chosen, switch, system, fields, shown)
    seen, laid = gr.State(""), gr.State(None)

    def refresh(before: str, base_now: str | None, picked: list[str]) -> Any:
        found = index.glance(store).found
        now = _stamp(found)
        if before in ("", now):  # before the first link it is not known what to choose
            return gr.skip()
        return {seen: now} | _choices(found, base_now, picked, none_is_meant=True)

    def _choices(
        found: Sequence[Summary],
        base_now: str | None,
        picked: list[str],
        none_is_meant: bool = False,
        typed: bool = False,
    ) -> dict[Any, Any]:
        bases = offers.bases(found)
        base_now = (base_now or "").strip()
        typed = typed or any(one.id in picked for one in found)  # and not the base of runs that are gone
        if not base_now or (base_now not in bases and not typed):
            base_now = next(iter(bases), None)
        ids = offers.adapters(found, base_now) if base_now else []
        kept = [run_id for run_id in picked if run_id in ids][:MAX_ADAPTERS]
        why = offers.refused(found, base_now) if base_now else []
        return {
            empty: gr.update(visible=not bases),
            everything: gr.update(visible=bool(bases)),
            base: gr.update(choices=bases, value=base_now),
            chosen: gr.update(choices=ids, value=kept if kept or none_is_meant else ids[:1]),
            not_offered: html.listed(f"Not offered with this base ({len(why)})", why),
        }

    def follow(link: links.Link, base_now: str | None, picked: list[str]) -> dict[Any, Any]:
        """What a link asks for; but votes that are being given go on, also after a reload."""
        found = index.now(store).found
        asked_for = link["runs"] if link["tab"] == "compare" else []
        under_way = desk.under_way()
        asked_for = under_way if under_way is not None else asked_for
        config = next((one.config for one in found if one.id in asked_for and one.config and one.adapter), None)
        updates = _choices(found, offers.key(config) if config else base_now, asked_for or picked)
        return {seen: _stamp(found)} | updates | ({switch: True} if under_way is not None else {})

    def change_base(base_now: str) -> dict[Any, Any]:
        return _choices(index.now(store).found, base_now, [], typed=True)

    def lay_out_if_new(picked: list[str], laid_now: list[str] | None, system_now: str, is_blind: bool) -> Any:
        """New choices bring the same value again, also while answers are written: those must stay."""
        return gr.skip() if picked == laid_now else lay_out(picked, system_now, is_blind)

    def lay_out(picked: list[str], system_now: str, is_blind: bool) -> dict[Any, Any]:
        """Columns for the chosen adapters: empty conversations, or what the blind judge is to see."""
        updates: dict[Any, Any] = {bar.box: gr.update(visible=not is_blind), panel.box: gr.update(visible=is_blind)}
        known = [one.config.system_prompt for one in index.now(store).found if one.config and one.id in picked]
        if known and not system_now:
            updates[system] = known[0]
        if is_blind:
            updates |= desk.drawn(picked)
        else:
            updates |= columns.emptied(shown, ["base", *picked]) | {panel.bar: gr.update(visible=False)}
        return updates | {laid: picked} | bar.emptied(len(picked) + 1)

    looking: dict[str, Any] = {
        "fn": refresh,
        "inputs": [seen, base, chosen],
        "outputs": [seen, empty, everything, base, chosen, not_offered],
    } | RAW
    desk = blind.wire(room, panel)
    laying: dict[str, Any] = {
        "inputs": [chosen, system, switch],
        "outputs": list(dict.fromkeys([bar.box, panel.box, laid, system, *bar.kept(), *room.parts(), *desk.outputs])),
    } | RAW
    gr.Timer(2 * TICK_SECONDS).tick(**looking)
    link.change(follow, [link, base, chosen], [*looking["outputs"], switch], **RAW)
    link.change(None, None, None, js=blind_panel.KEYS, **RAW)
    base.input(change_base, base, looking["outputs"], **RAW)
    chosen.change(lay_out_if_new, **laying | {"inputs": [chosen, laid, system, switch]})
    switch.change(lay_out, **laying)
    chat.wire(room, bar)
    bar.clear.click(lay_out, **laying)
    unload.click(session.close, None, None, **RAW)


def _stamp(found: Sequence[Summary]) -> str:
    """Changes when what can be offered changes."""
    return repr([(one.id, one.adapter, one.state) for one in found])
