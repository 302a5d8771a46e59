"""Chat in the Compare tab: one prompt, answered by all columns at once, each answer streaming and named.

Three listeners, one after the other: the question is laid out, its answers stream, what is left is drawn. While answers
stream there are eight updates per second, and Gradio builds every output anew that an update leaves out; so that
listener has few outputs, and gives all of them a value each time.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from qlora_gui.data import prompts
from qlora_gui.data.tokenization import with_system
from qlora_gui.errors import UserError
from qlora_gui.inference import protocol
from qlora_gui.inference.protocol import Answer, Conversation
from qlora_gui.inference.sampling import Decoding
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import actions
from qlora_gui.ui.compare import columns
from qlora_gui.ui.compare.columns import Room
from qlora_gui.ui.rendering import html
from qlora_gui.ui.streaming import streams
from qlora_gui.ui.theme import RAW

_REDRAW_SECONDS = 0.12
SMALL: dict[str, Any] = {"size": "md", "min_width": 76, "scale": 0}


@dataclass(frozen=True)
class Question:
    """What is asked: a conversation for each column, by name, and how it is to be answered."""

    names: list[str]
    histories: list[Conversation]
    load: protocol.Load
    system: str
    decoding: Decoding


@dataclass(frozen=True)
class Answered:
    """What came of a question: its conversations with the answers, and by place the proofs of those that ended."""

    histories: list[Conversation]
    proofs: dict[int, str]


class ChatBar:
    """The components below the columns, and what the chat remembers.

    The bar sticks to the bottom of what it lies in, so it lies beside the columns and in no box of its own.
    """

    def __init__(self) -> None:
        with gr.Column(elem_classes=["startbar", "tight"]) as self.box:
            self.status = gr.HTML(elem_id="compare-status")
            self.prompt = gr.Textbox(
                label="One prompt for all columns (Shift+Enter sends)", lines=2, max_lines=8, elem_id="prompt"
            )
            with gr.Row(elem_classes=["tight", "actions"]):
                self.send = gr.Button("Send", variant="primary", elem_id="send", **SMALL)
                self.stop = gr.Button("Stop", elem_id="stop-answers", interactive=False, **SMALL)
                self.retry = gr.Button("Retry", elem_id="retry", **SMALL)
                self.clear = gr.Button("Clear", elem_id="clear", **SMALL)
                self.example = gr.Button("Held-out example", elem_id="example", **SMALL)
        self.reference = gr.HTML(elem_id="reference")
        self.histories = gr.State([])
        self.nth = gr.State(0)  # held-out examples that were given
        self.asked = gr.State(None)  # a Question while it is being answered
        self.answered = gr.State(None)  # Answered, or None when that failed
        self.turn = gr.State(0)  # counts questions

    def emptied(self, count: int) -> dict[Any, Any]:
        """Updates for so many empty conversations."""
        empties: list[Conversation] = [[] for _ in range(count)]
        return {self.histories: empties, self.reference: "", self.status: ""}

    def emptied_parts(self) -> list[Any]:
        """The components of `emptied`."""
        return [self.histories, self.reference, self.status]


class Chat:
    """What the bar's buttons do, but for Clear, which lays the columns out anew."""

    def __init__(self, room: Room, bar: ChatBar):
        self.room, self.bar = room, bar

    def ask(self, given: dict[Any, Any]) -> Any:
        """Lay the prompt out as the next question."""
        bar = self.bar
        question = (given[bar.prompt] or "").strip()
        if not question:
            return {bar.status: html.faults(["Write a prompt first"])}
        past = given[bar.histories] or [[] for _ in self._names(given)]
        return self._begin(given, [[*history, {"role": "user", "content": question}] for history in past])

    def retry(self, given: dict[Any, Any]) -> Any:
        """Ask the last question again; where answers are sampled, with the next seed."""
        past = [prompts.up_to_last_question(history) for history in given[self.bar.histories]]
        if not past or not past[0]:
            return {self.bar.status: html.faults(["There is nothing to retry yet: send a prompt"])}
        seed = self.room.fields["seed"]
        if given[self.room.fields["greedy"]]:
            return self._begin(given, past)
        given = given | {seed: (given[seed] or 0) + 1}  # the same seed would give the same answers
        return {seed: given[seed]} | self._begin(given, past)

    def _begin(self, given: dict[Any, Any], histories: list[Conversation]) -> dict[Any, Any]:
        """Updates that lay a question out and have it answered; but one at a time."""
        room, bar = self.room, self.bar
        if given[bar.asked]:
            return {bar.status: gr.skip()}
        try:
            decoding = room.decoding(given)
            load = room.load(given)
        except UserError as error:
            actions.warn(error)
            return {bar.status: html.faults([str(error)])}
        names = self._names(given)
        question = Question(names, histories, load, (given[room.system] or "").strip(), decoding)
        updates = dict(zip(_lines(room), _written(room, question, []), strict=True))
        updates |= {bar.asked: question, bar.answered: None, bar.turn: given[bar.turn] + 1, bar.prompt: ""}
        others = room.client.is_busy
        status = "The compare process is answering another question first…" if others else "Asking the compare process…"
        return updates | {bar.status: html.hint(status)} | self._mark_busy(True)

    def _names(self, given: dict[Any, Any]) -> list[str]:
        return columns.names(given[self.room.chosen], given[self.room.whole])

    @streams
    def stream(self, question: Question) -> Iterator[list[Any]]:
        """Status, Stop, then titles and conversations of all columns; at last what came of it."""
        room = self.room
        answers: list[Answer] = []
        proofs: list[dict[str, Any]] = []

        def drawn(status: str, answers: list[Answer], result: Answered | None = None) -> list[Any]:
            return [status, gr.update(interactive=True), *_written(room, question, answers), result]

        try:
            conversations = [with_system(history, question.system) for history in question.histories]
            with closing(room.client.ask(question.load, conversations, question.decoding)) as events:
                for event in events:
                    if isinstance(event, protocol.Stage):
                        yield drawn(html.hint(event.text + "…"), answers)
                    elif isinstance(event, protocol.Loaded):
                        proofs = event.columns
                        break
                warning = busy(room.store)
                for answers in protocol.growing(events, len(conversations), _REDRAW_SECONDS):
                    yield drawn(warning, answers)
            yield drawn("", answers, _result(question, proofs, answers))
        except UserError as error:
            actions.warn(error)
            yield drawn(html.faults([str(error)]), answers)

    def finish(self, question: Question, result: Answered | None) -> dict[Any, Any]:
        """What is left to draw once the answers have ended."""
        bar = self.bar
        updates = self._mark_busy(False) | {bar.asked: None}
        if result is None:  # the question comes back, to be sent again
            return updates | {bar.prompt: question.histories[0][-1]["content"]}
        proofs = {self.room.shown[place].proof: proof for place, proof in result.proofs.items()}
        return updates | proofs | {bar.histories: result.histories}

    def _mark_busy(self, busy: bool) -> dict[Any, Any]:
        """While answers come only Stop can be pressed, once they do, so that nothing changes under them."""
        room, bar = self.room, self.bar
        others = (bar.send, bar.retry, bar.clear, room.base, room.chosen, room.whole, room.blind)
        return {bar.stop: gr.update(interactive=False)} | {part: gr.update(interactive=not busy) for part in others}

    def give_example(self, number: int, picked: list[str]) -> dict[Any, Any]:
        """The next held-out question as the prompt, and the data's answer to it."""
        bar = self.bar
        try:
            pairs = self.room.held_out(picked)
        except UserError as error:
            actions.warn(error)
            pairs = []
        if not pairs:
            return {bar.status: html.faults(["The first adapter's data has no held-out question"])}
        question, answer = pairs[number % len(pairs)]
        reference = html.folded("The data's own answer to the held-out example", html.literal(answer))
        return {bar.prompt: question, bar.reference: reference, bar.nth: number + 1, bar.status: ""}

    def wire(self) -> None:
        """Connect the events."""
        room, bar = self.room, self.bar
        choices = [room.base, room.chosen, room.whole, room.blind]
        buttons = [bar.send, bar.stop, bar.retry, bar.clear]
        asked: dict[str, Any] = {
            "inputs": room.inputs() | {bar.prompt, bar.histories, bar.asked, bar.turn},
            "outputs": [
                *(bar.asked, bar.answered, bar.turn, bar.prompt, bar.status, room.fields["seed"]),
                *(*_lines(room), *buttons, *choices),
            ],
            "trigger_mode": "once",
        } | RAW
        ask = self.ask  # one object: Gradio lets listeners of the same function take turns
        bar.send.click(ask, **asked)
        bar.prompt.submit(ask, **asked)
        bar.retry.click(self.retry, **asked)
        bar.turn.change(
            self.stream,
            bar.asked,
            [bar.status, bar.stop, *_lines(room), bar.answered],
            concurrency_id="compare",
            concurrency_limit=1,
            **RAW,
        ).then(
            self.finish,
            [bar.asked, bar.answered],
            [bar.asked, bar.histories, bar.prompt, *(view.proof for view in room.shown), *buttons, *choices],
            **RAW,
        )
        bar.stop.click(room.client.stop, None, None, **RAW)
        example = [bar.prompt, bar.reference, bar.nth, bar.status]
        bar.example.click(self.give_example, [bar.nth, room.chosen], example, **RAW)


def _lines(room: Room) -> list[Any]:
    """The components of all columns that change while answers are written."""
    return [*(view.title for view in room.shown), *(view.chat for view in room.shown)]


def _written(room: Room, question: Question, answers: list[Answer]) -> list[Any]:
    """The values of `_lines`: what is written so far, nothing in the columns that are not in use."""
    lines: list[str] = []
    texts: list[list[dict[str, Any]]] = []
    for place in range(len(room.shown)):
        if place < len(question.names):
            answer = answers[place] if answers else Answer()
            lines.append(columns.title(question.names[place], columns.progress(answer)))
            written = (answer.text, answer.prompt or None, not answer.ended) if answers else ()
            texts.append(columns.messages(question.histories[place], *written))
        else:
            lines.append("")
            texts.append([])
    return [*lines, *texts]


def _result(question: Question, proofs: list[dict[str, Any]], answers: list[Answer]) -> Answered:
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
    return (
        html.hint(f"The run {live} is training: answers will be slow, and memory may not be enough for both.")
        if live
        else ""
    )
