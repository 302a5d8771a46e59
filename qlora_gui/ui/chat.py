"""Chat in the Compare tab: one prompt, answered by all columns at once, each answer streaming and named."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_gui.compare.settings import Decoding
from qlora_gui.errors import UserError
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import actions, asking, columns, html, offers
from qlora_gui.ui.room import Room
from qlora_gui.ui.session import Messages, Session
from qlora_gui.ui.theme import RAW

SMALL: dict[str, Any] = {"size": "md", "min_width": 76, "scale": 0}


@dataclass
class Bar:
    """The components below the columns, and what the chat remembers."""

    box: gr.Column
    status: gr.HTML
    prompt: gr.Textbox
    send: gr.Button
    stop: gr.Button
    retry: gr.Button
    clear: gr.Button
    example: gr.Button
    reference: gr.HTML
    histories: gr.State
    nth: gr.State

    def emptied(self, count: int) -> dict[Any, Any]:
        """Updates for so many empty conversations."""
        empties: list[Messages] = [[] for _ in range(count)]
        return {self.histories: empties, self.reference: "", self.status: ""}

    def kept(self) -> list[Any]:
        """The components of `emptied`."""
        return [self.histories, self.reference, self.status]


def build() -> Bar:
    """Draw the bar. It sticks to the bottom of what it lies in, so it lies beside the columns and in no box of its own."""
    with gr.Column(elem_classes=["startbar", "tight"]) as box:
        status = gr.HTML(elem_id="compare-status")
        prompt = gr.Textbox(
            label="One prompt for all columns (Shift+Enter sends)", lines=2, max_lines=8, elem_id="prompt"
        )
        with gr.Row(elem_classes=["tight", "actions"]):
            send = gr.Button("Send", variant="primary", elem_id="send", **SMALL)
            stop = gr.Button("Stop", elem_id="stop-answers", interactive=False, **SMALL)
            retry = gr.Button("Retry", elem_id="retry", **SMALL)
            clear = gr.Button("Clear", elem_id="clear", **SMALL)
            example = gr.Button("Held-out example", elem_id="example", **SMALL)
    reference = gr.HTML(elem_id="reference")
    return Bar(box, status, prompt, send, stop, retry, clear, example, reference, gr.State([]), gr.State(0))


def wire(room: Room, bar: Bar) -> None:
    """Wire the bar's buttons, but for Clear, which lays the columns out anew."""
    store, session, fields = room.store, room.session, room.fields

    def asked(given: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        question = (given[bar.prompt] or "").strip()
        if not question:
            yield {bar.status: html.faults(["Write a prompt first"])}
            return
        past = given[bar.histories] or [[] for _ in range(len(given[room.chosen]) + 1)]
        asked_now = [[*history, {"role": "user", "content": question}] for history in past]
        yield {bar.prompt: ""}
        yield from _answered(given, asked_now)

    def retried(given: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        past = [asking.without_last_answer(history) for history in given[bar.histories]]
        if not past or not past[0]:
            yield {bar.status: html.faults(["There is nothing to retry yet: send a prompt"])}
            return
        seed = fields["seed"]
        if not given[fields["greedy"]]:  # the same seed would give the same answers
            given = given | {seed: (given[seed] or 0) + 1}
            yield {seed: given[seed]}
        yield from _answered(given, past)

    def _marked_busy(busy: bool) -> dict[Any, Any]:
        """While answers come only Stop can be pressed, so that nothing changes under them."""
        others = (bar.send, bar.retry, bar.clear, room.base, room.chosen, room.blind)
        return {bar.stop: gr.update(interactive=busy)} | {one: gr.update(interactive=not busy) for one in others}

    def _answered(given: dict[Any, Any], asked_now: list[Messages]) -> Iterator[dict[Any, Any]]:
        try:
            decoding = room.decoding(given)
            config, runs = room.asked(given)
            updates: dict[Any, Any] = {bar.status: html.hint("Asking the compare process…")}
            for view, name, history in zip(room.shown, ["base", *given[room.chosen]], asked_now, strict=False):
                updates |= {view.title: columns.title(name, "waiting…"), view.chat: columns.messages(history)}
            yield updates | _marked_busy(True)
            with session.turn:
                for said in session.load(config, runs):
                    yield {bar.status: html.hint(said + "…")}
                yield {bar.status: busy(store)}
                answers: list[asking.Answer] = []
                for answers in asking.ask(session, asked_now, (given[room.system] or "").strip(), decoding):
                    yield _drawn(room.shown, session, asked_now, answers, decoding)
            yield {bar.status: "", bar.histories: _with(asked_now, answers)}
        except UserError as error:
            actions.warn(error)
            yield {bar.status: html.faults([str(error)]), bar.prompt: asked_now[0][-1]["content"]}
        yield _marked_busy(False)

    def give_example(number: int, picked: list[str]) -> dict[Any, Any]:
        try:
            pairs = offers.held_out(store.get(picked[0]).config()) if picked else []
        except UserError as error:
            actions.warn(error)
            pairs = []
        if not pairs:
            return {bar.status: html.faults(["The data of the first adapter has no held-out question to offer"])}
        question, answer = pairs[number % len(pairs)]
        told = html.folded("The data's own answer to the held-out example", html.literal(answer))
        return {bar.prompt: question, bar.reference: told, bar.nth: number + 1, bar.status: ""}

    choices = [room.base, room.chosen, room.blind]
    buttons = [bar.send, bar.stop, bar.retry, bar.clear]
    answering: dict[str, Any] = {
        "inputs": room.inputs() | {bar.prompt, bar.histories},
        "outputs": [*room.parts(), bar.histories, bar.prompt, bar.status, fields["seed"], *buttons, *choices],
        "concurrency_id": "compare",
        "concurrency_limit": 1,
        "trigger_mode": "once",
    } | RAW
    bar.send.click(asked, **answering)
    bar.prompt.submit(asked, **answering)
    bar.retry.click(retried, **answering)
    bar.stop.click(session.stop, None, None, **RAW)
    bar.example.click(give_example, [bar.nth, room.chosen], [bar.prompt, bar.reference, bar.nth, bar.status], **RAW)


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


def busy(store: RunStore) -> str:
    """A warning while a run trains on the same machine."""
    live = next((run.id for run in store.all() if run.is_locked()), None)
    return html.hint(f"The run {live} is training: answers are slow, and memory may not do for both.") if live else ""
