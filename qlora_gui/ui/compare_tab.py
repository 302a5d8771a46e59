"""Compare: one prompt, answered by the base and up to five adapters at once, each with its proof."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from qlora_gui.compare.settings import MAX_ADAPTERS, Decoding
from qlora_gui.errors import UserError
from qlora_gui.runs import config as configs
from qlora_gui.runs.config import RunConfig
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import actions, asking, columns, form, html, links, offers
from qlora_gui.ui.session import Messages, Session
from qlora_gui.ui.summary import Summary, summaries
from qlora_gui.ui.theme import RAW, TICK_SECONDS

_EMPTY = html.empty("No adapters yet. Train one: on the Train tab the demo is filled in, press Start.")
_SMALL: dict[str, Any] = {"size": "md", "min_width": 76, "scale": 0}


def tab(store: RunStore, link: gr.State, session: Session) -> None:
    """Draw the tab and wire it."""
    empty = gr.HTML(_EMPTY, elem_id="no-adapters")
    with gr.Column(visible=False, elem_classes="tight") as room:
        with gr.Row(equal_height=False):
            base = gr.Dropdown([], label="Base", elem_id="base", scale=2, min_width=240)
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
        not_offered = gr.HTML(elem_id="not-offered")
        shown = columns.build()
        with gr.Column(elem_classes=["startbar", "tight"]):
            status = gr.HTML(elem_id="compare-status")
            prompt = gr.Textbox(
                label="One prompt for all columns (Shift+Enter sends)", lines=2, max_lines=8, elem_id="prompt"
            )
            with gr.Row(elem_classes=["tight", "actions"]):
                send = gr.Button("Send", variant="primary", elem_id="send", **_SMALL)
                stop = gr.Button("Stop", elem_id="stop-answers", interactive=False, **_SMALL)
                retry = gr.Button("Retry", elem_id="retry", **_SMALL)
                clear = gr.Button("Clear", elem_id="clear", **_SMALL)
                example = gr.Button("Held-out example", elem_id="example", **_SMALL)
        reference = gr.HTML(elem_id="reference")
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
    seen, laid, histories, nth = gr.State(""), gr.State(None), gr.State([]), gr.State(0)
    parts = [part for view in shown for part in view.parts()]

    def refresh(before: str, base_now: str | None, picked: list[str]) -> Any:
        found = summaries(store)
        now = _stamp(found)
        if before in ("", now):  # before the first link it is not known what to choose
            return gr.skip()
        return {seen: now} | _choices(found, base_now, picked, none_is_meant=True)

    def _choices(
        found: list[Summary], base_now: str | None, picked: list[str], none_is_meant: bool = False
    ) -> dict[Any, Any]:
        bases = offers.bases(found)
        base_now = base_now if base_now in bases else next(iter(bases), None)
        ids = offers.adapters(found, base_now) if base_now else []
        kept = [run_id for run_id in picked if run_id in ids][:MAX_ADAPTERS]
        why = offers.refused(found, base_now) if base_now else []
        return {
            empty: gr.update(visible=not bases),
            room: gr.update(visible=bool(bases)),
            base: gr.update(choices=bases, value=base_now),
            chosen: gr.update(choices=ids, value=kept if kept or none_is_meant else ids[:1]),
            not_offered: html.listed(f"Not offered with this base ({len(why)})", why),
        }

    def follow(link: links.Link, base_now: str | None, picked: list[str]) -> dict[Any, Any]:
        found = summaries(store)
        asked_for = link["runs"] if link["tab"] == "compare" else []
        config = next((one.config for one in found if one.id in asked_for and one.config and one.adapter), None)
        updates = _choices(found, offers.key(config) if config else base_now, asked_for or picked)
        return {seen: _stamp(found)} | updates

    def change_base(base_now: str) -> dict[Any, Any]:
        return _choices(summaries(store), base_now, [])

    def lay_out_if_new(picked: list[str], laid_now: list[str] | None, system_now: str) -> Any:
        """New choices bring the same value again, also while answers are written: those must stay."""
        return gr.skip() if picked == laid_now else lay_out(picked, system_now)

    def lay_out(picked: list[str], system_now: str) -> dict[Any, Any]:
        """Columns for the chosen adapters, with empty conversations."""
        updates = _emptied(shown, ["base", *picked])
        known = [one.config.system_prompt for one in summaries(store) if one.config and one.id in picked]
        if known and not system_now:
            updates[system] = known[0]
        empties: list[Messages] = [[] for _ in range(len(picked) + 1)]
        return updates | {laid: picked, histories: empties, reference: "", status: ""}

    def asked(given: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        question = (given[prompt] or "").strip()
        if not question:
            yield {status: html.faults(["Write a prompt first"])}
            return
        past = given[histories] or [[] for _ in range(len(given[chosen]) + 1)]
        asked_now = [[*history, {"role": "user", "content": question}] for history in past]
        yield {prompt: ""}
        yield from _answered(given, asked_now)

    def retried(given: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        past = [asking.without_last_answer(history) for history in given[histories]]
        if not past or not past[0]:
            yield {status: html.faults(["There is nothing to retry yet: send a prompt"])}
            return
        seed = fields["seed"]
        if not given[fields["greedy"]]:  # the same seed would give the same answers
            given = given | {seed: (given[seed] or 0) + 1}
            yield {seed: given[seed]}
        yield from _answered(given, past)

    def _marked_busy(busy: bool) -> dict[Any, Any]:
        """While answers come only Stop can be pressed, so that nothing changes under them."""
        others = (send, retry, clear, base, chosen)
        return {stop: gr.update(interactive=busy)} | {one: gr.update(interactive=not busy) for one in others}

    def _answered(given: dict[Any, Any], asked_now: list[Messages]) -> Iterator[dict[Any, Any]]:
        try:
            decoding = configs.checked(Decoding, {name: given[field] for name, field in fields.items()})
            runs = [store.get(run_id) for run_id in given[chosen]]
            config = runs[0].config() if runs else _any_config(store, given[base])
            updates: dict[Any, Any] = {status: html.hint("Asking the compare process…")}
            for view, name, history in zip(shown, ["base", *given[chosen]], asked_now, strict=False):
                updates |= {view.title: columns.title(name, "waiting…"), view.chat: columns.messages(history)}
            yield updates | _marked_busy(True)
            for said in session.load(config, runs):
                yield {status: html.hint(said + "…")}
            yield {status: _busy(store)}
            answers: list[asking.Answer] = []
            for answers in asking.ask(session, asked_now, (given[system] or "").strip(), decoding):
                yield _drawn(shown, session, asked_now, answers, decoding)
            yield {status: "", histories: _with(asked_now, answers)}
        except UserError as error:
            actions.warn(error)
            yield {status: html.faults([str(error)]), prompt: asked_now[0][-1]["content"]}
        yield _marked_busy(False)

    def give_example(number: int, picked: list[str]) -> dict[Any, Any]:
        try:
            pairs = offers.held_out(store.get(picked[0]).config()) if picked else []
        except UserError as error:
            actions.warn(error)
            pairs = []
        if not pairs:
            return {status: html.faults(["The data of the first adapter has no held-out question to offer"])}
        question, answer = pairs[number % len(pairs)]
        told = html.folded("The data's own answer to the held-out example", html.literal(answer))
        return {prompt: question, reference: told, nth: number + 1, status: ""}

    looking: dict[str, Any] = {
        "fn": refresh,
        "inputs": [seen, base, chosen],
        "outputs": [seen, empty, room, base, chosen, not_offered],
    } | RAW
    laying: dict[str, Any] = {"outputs": [*parts, laid, histories, system, reference, status]} | RAW
    answering: dict[str, Any] = {
        "inputs": {base, chosen, prompt, system, histories, *fields.values()},
        "outputs": [*parts, histories, prompt, status, fields["seed"], send, stop, retry, clear, base, chosen],
        "concurrency_id": "compare",
        "concurrency_limit": 1,
        "trigger_mode": "once",
    } | RAW
    gr.Timer(2 * TICK_SECONDS).tick(**looking)
    link.change(follow, [link, base, chosen], looking["outputs"], **RAW)
    base.input(change_base, base, looking["outputs"], **RAW)
    chosen.change(lay_out_if_new, [chosen, laid, system], **laying)
    send.click(asked, **answering)
    prompt.submit(asked, **answering)
    retry.click(retried, **answering)
    stop.click(session.stop, None, None, **RAW)
    clear.click(session.stop, None, None, **RAW).then(lay_out, [chosen, system], **laying)
    unload.click(session.close, None, None, **RAW)
    example.click(give_example, [nth, chosen], [prompt, reference, nth, status], **RAW)


def _stamp(found: list[Summary]) -> str:
    """Changes when what can be offered changes."""
    return repr([(one.id, one.adapter, one.state) for one in found])


def _emptied(shown: list[columns.View], names: list[str]) -> dict[Any, Any]:
    """One empty column a name; the others hidden."""
    updates: dict[Any, Any] = {}
    for number, view in enumerate(shown):
        used = number < len(names)
        updates[view.box] = gr.update(visible=used)
        if used:
            updates |= {view.title: columns.title(names[number]), view.chat: [], view.proof: columns.NO_PROOF}
    return updates


def _drawn(
    shown: list[columns.View],
    session: Session,
    asked_now: list[Messages],
    answers: list[asking.Answer],
    decoding: Decoding,
) -> dict[Any, Any]:
    """Updates for the columns that have changed."""
    updates: dict[Any, Any] = {}
    for view, column, history, answer in zip(shown, session.columns, asked_now, answers, strict=False):
        if answer.fresh:
            updates[view.title] = columns.title(str(column["name"]), answer.line)
            updates[view.chat] = columns.messages(history, answer.text)
        if answer.ended and answer.fresh:
            updates[view.proof] = columns.proof(column, answer.prompt, decoding)
    return updates


def _with(asked_now: list[Messages], answers: list[asking.Answer]) -> list[Messages]:
    """Each column's history with its answer."""
    return [
        [*history, {"role": "assistant", "content": answer.text}]
        for history, answer in zip(asked_now, answers, strict=False)
    ]


def _any_config(store: RunStore, base: str) -> RunConfig:
    """A config that names this base."""
    found = (one.config for one in summaries(store) if one.config and offers.key(one.config) == base)
    config = next(found, None)
    if config is None:
        raise UserError("No run of this base is left: choose another base.")
    return config


def _busy(store: RunStore) -> str:
    """A warning while a run trains on the same machine."""
    live = next((run.id for run in store.all() if run.is_locked()), None)
    return html.hint(f"The run {live} is training: answers are slow, and memory may not do for both.") if live else ""
