"""Chat in the Compare tab: one prompt, answered by all columns at once, each answer streaming and named.

Three listeners, one after the other: the question is laid out, its answers stream, what is left is drawn. While answers
stream there are eight updates a second, and Gradio builds every output anew that an update leaves out; so that listener
has few outputs, and gives all of them a value each time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.inference.sampling import Decoding
from qlora_gui.runs import bounded_reading
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import actions
from qlora_gui.ui.compare import asking, columns
from qlora_gui.ui.compare.columns import Room
from qlora_gui.ui.compare.session import Messages
from qlora_gui.ui.rendering import html
from qlora_gui.ui.streaming import streams
from qlora_gui.ui.theme import RAW

SMALL: dict[str, Any] = {"size": "md", "min_width": 76, "scale": 0}


@dataclass(frozen=True)
class Question:
    """What is asked: a conversation for each column, by name, and how it is to be answered."""

    names: list[str]
    histories: list[Messages]
    base: RunConfig
    runs: list[Run]
    system: str
    decoding: Decoding


@dataclass(frozen=True)
class Answered:
    """What came of a question: its conversations with the answers, and by place the proofs of those that ended."""

    histories: list[Messages]
    proofs: dict[int, str]


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
    asked: gr.State  # a Question while it is being answered
    answered: gr.State  # Answered, or None when that failed
    turn: gr.State  # counts questions

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
    states = gr.State([]), gr.State(0), gr.State(None), gr.State(None), gr.State(0)
    return Bar(box, status, prompt, send, stop, retry, clear, example, reference, *states)


def wire(room: Room, bar: Bar) -> None:
    """Wire the bar's buttons, but for Clear, which lays the columns out anew."""
    store, session, fields = room.store, room.session, room.fields

    def ask(given: dict[Any, Any]) -> Any:
        question = (given[bar.prompt] or "").strip()
        if not question:
            return {bar.status: html.faults(["Write a prompt first"])}
        past = given[bar.histories] or [[] for _ in range(len(given[room.chosen]) + 1)]
        return _begun(given, [[*history, {"role": "user", "content": question}] for history in past])

    def retry(given: dict[Any, Any]) -> Any:
        past = [asking.without_last_answer(history) for history in given[bar.histories]]
        if not past or not past[0]:
            return {bar.status: html.faults(["There is nothing to retry yet: send a prompt"])}
        seed = fields["seed"]
        if given[fields["greedy"]]:
            return _begun(given, past)
        given = given | {seed: (given[seed] or 0) + 1}  # the same seed would give the same answers
        return {seed: given[seed]} | _begun(given, past)

    def _begun(given: dict[Any, Any], histories: list[Messages]) -> dict[Any, Any]:
        """Updates that lay a question out and have it answered; but one at a time."""
        if given[bar.asked]:
            return {bar.status: gr.skip()}
        try:
            decoding = room.decoding(given)
            base, runs = room.asked(given)
        except UserError as error:
            actions.warn(error)
            return {bar.status: html.faults([str(error)])}
        names = ["base", *given[room.chosen]]
        question = Question(names, histories, base, runs, (given[room.system] or "").strip(), decoding)
        updates = dict(zip(_lines(room), _written(room, question, []), strict=True))
        updates |= {bar.asked: question, bar.answered: None, bar.turn: given[bar.turn] + 1, bar.prompt: ""}
        others = session.turn.locked()
        said = "The compare process answers another question first…" if others else "Asking the compare process…"
        return updates | {bar.status: html.hint(said)} | _marked_busy(True)

    @streams
    def stream(question: Question) -> Iterator[list[Any]]:
        """Status, Stop, then titles and conversations of all columns; at last what came of it."""
        answers: list[asking.Answer] = []

        def drawn(status: str, answers: list[asking.Answer], came: Answered | None = None) -> list[Any]:
            return [status, gr.update(interactive=True), *_written(room, question, answers), came]

        try:
            with session.turn:
                for said in session.load(question.base, question.runs):
                    yield drawn(html.hint(said + "…"), answers)
                told = busy(store)
                for answers in asking.ask(session, question.histories, question.system, question.decoding):
                    yield drawn(told, answers)
                proofs = session.columns
            yield drawn("", answers, _came(question, proofs, answers))
        except UserError as error:
            actions.warn(error)
            yield drawn(html.faults([str(error)]), answers)

    def finish(question: Question, came: Answered | None) -> dict[Any, Any]:
        updates = _marked_busy(False) | {bar.asked: None}
        if came is None:  # the question comes back, to be sent again
            return updates | {bar.prompt: question.histories[0][-1]["content"]}
        proofs = {room.shown[place].proof: proof for place, proof in came.proofs.items()}
        return updates | proofs | {bar.histories: came.histories}

    def _marked_busy(busy: bool) -> dict[Any, Any]:
        """While answers come only Stop can be pressed, once they do, so that nothing changes under them."""
        others = (bar.send, bar.retry, bar.clear, room.base, room.chosen, room.blind)
        return {bar.stop: gr.update(interactive=False)} | {one: gr.update(interactive=not busy) for one in others}

    def give_example(number: int, picked: list[str]) -> dict[Any, Any]:
        try:
            pairs = bounded_reading.held_out(store.get(picked[0]).config()) if picked else []
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
    asked: dict[str, Any] = {
        "inputs": room.inputs() | {bar.prompt, bar.histories, bar.asked, bar.turn},
        "outputs": [
            *(bar.asked, bar.answered, bar.turn, bar.prompt, bar.status, fields["seed"]),
            *(*_lines(room), *buttons, *choices),
        ],
        "trigger_mode": "once",
    } | RAW
    bar.send.click(ask, **asked)
    bar.prompt.submit(ask, **asked)
    bar.retry.click(retry, **asked)
    bar.turn.change(
        stream,
        bar.asked,
        [bar.status, bar.stop, *_lines(room), bar.answered],
        concurrency_id="compare",
        concurrency_limit=1,
        **RAW,
    ).then(
        finish,
        [bar.asked, bar.answered],
        [bar.asked, bar.histories, bar.prompt, *(view.proof for view in room.shown), *buttons, *choices],
        **RAW,
    )
    bar.stop.click(session.stop, None, None, **RAW)
    bar.example.click(give_example, [bar.nth, room.chosen], [bar.prompt, bar.reference, bar.nth, bar.status], **RAW)


def _lines(room: Room) -> list[Any]:
    """The components of all columns that change while answers are written."""
    return [*(view.title for view in room.shown), *(view.chat for view in room.shown)]


def _written(room: Room, question: Question, answers: list[asking.Answer]) -> list[Any]:
    """The values of `_lines`: what is written so far, nothing in the columns that are not in use."""
    lines: list[str] = []
    texts: list[list[dict[str, Any]]] = []
    for place in range(len(room.shown)):
        if place < len(question.names):
            answer = answers[place] if answers else asking.Answer()
            lines.append(columns.title(question.names[place], answer.line))
            said = (answer.text, answer.prompt or None, not answer.ended) if answers else ()
            texts.append(columns.messages(question.histories[place], *said))
        else:
            lines.append("")
            texts.append([])
    return [*lines, *texts]


def _came(question: Question, proofs: list[dict[str, Any]], answers: list[asking.Answer]) -> Answered:
    """What the answers make of a question; `proofs` says of each column what it is."""
    histories = [
        [*history, {"role": "assistant", "content": answer.text}]
        for history, answer in zip(question.histories, answers, strict=False)
    ]
    ended = {
        place: columns.proof(column, answer.prompt, question.decoding)
        for place, (column, answer) in enumerate(zip(proofs, answers, strict=False))
        if answer.ended
    }
    return Answered(histories, ended)


def busy(store: RunStore) -> str:
    """A warning while a run trains on the same machine."""
    live = next((run.id for run in store.all() if run.is_locked()), None)
    return html.hint(f"The run {live} is training: answers are slow, and memory may not do for both.") if live else ""
