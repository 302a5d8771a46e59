"""Blind votes in the Compare tab: shuffled, unnamed columns, a vote by button or key, then the reveal and the tally."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.preferences.blind_session import BlindSession, Plan, Trial, as_text, parse
from qlora_gui.preferences.votes import BAD, HUMAN, TIE, Choice, VoteLog
from qlora_gui.ui import actions
from qlora_gui.ui.compare import chat, columns, vote_views
from qlora_gui.ui.compare.blind_panel import EXAMPLES, BlindPanel
from qlora_gui.ui.compare.columns import Room
from qlora_gui.ui.rendering import html
from qlora_gui.ui.theme import RAW

MOST_PROMPTS = 200
_POLL_SECONDS = 1.0


class BlindVoting:
    """The one blind session of this page's server, shared by all pages like the compare worker, and how it is drawn."""

    def __init__(self, room: Room, panel: BlindPanel, log: VoteLog):
        self.room, self.panel, self.log = room, panel, log
        self.session: BlindSession | None = None
        self.outputs = [*room.parts(), room.base, room.chosen, room.blind, *panel.drawn()]

    def under_way(self) -> list[str] | None:
        """The adapters of a session that is not revealed yet, or None."""
        return None if self.session is None or self.session.revealed else _ids(self.session)

    def drawn(self, picked: list[str]) -> dict[Any, Any]:
        """Updates for everything: the columns as the judge may see them, the buttons, and no tally before the reveal."""
        going = self.under_way() is not None
        panel, room, session = self.panel, self.room, self._find_session(picked)
        updates = columns.emptied(room.shown, [])
        if session and session.shown:
            updates |= _columns(room, session, session.shown)
        names = ["base", *picked]
        votes = [] if going else self.log.read()
        voted = [trial.vote for trial in session.voted if trial.vote] if session and not going else []
        updates |= {choice: gr.update(interactive=not going) for choice in (room.base, room.chosen, room.blind)}
        updates |= self._bar(session) | {
            panel.setup: gr.update(visible=not going),
            panel.results: self.tally(picked),
            panel.saving.row: gr.update(visible=bool(vote_views.by_columns(votes, names))),
            panel.trials: vote_views.trials(voted),
        }
        return updates

    def tally(self, picked: list[str]) -> str:
        """What all votes on these adapters say; nothing while a judge may not know who is who."""
        return "" if self.under_way() is not None else vote_views.results(self.log.read(), ["base", *picked])

    def news(self, known: Any, picked: list[str], is_blind: bool) -> Any:
        """The stamp of what there is to draw, when it is another than the one that is known."""
        now = _stamp(self._find_session(picked))
        return now if is_blind and now != known else gr.skip()

    def polled(self, stamp: Any, picked: list[str], is_blind: bool) -> Any:
        """Updates when something is new since the page was drawn: all of it, or only how far the answers are."""
        session = self._find_session(picked)
        now = _stamp(session)
        if not is_blind or now == stamp:
            return gr.skip()
        return self._bar(session) if stamp and now[:-1] == stamp[:-1] else self.drawn(picked)

    def _find_session(self, picked: list[str]) -> BlindSession | None:
        """The session, unless it is over and was about other adapters."""
        session = self.session
        return session if session and (not session.revealed or _ids(session) == picked) else None

    def _bar(self, session: BlindSession | None) -> dict[Any, Any]:
        panel = self.panel
        updates: dict[Any, Any] = {panel.stamp: _stamp(session), panel.status: ""}
        updates[panel.at] = session.current if session else -1
        if session is None:
            return updates | {panel.bar: gr.update(visible=False)}
        ready = not session.revealed and bool(session.trials[session.current].answers)
        for place, button in enumerate(panel.places):
            updates[button] = gr.update(visible=place < session.plan.count and not session.revealed, interactive=ready)
        for button in (panel.tie, panel.bad):
            updates[button] = gr.update(visible=not session.revealed, interactive=ready)
        return updates | {
            # once revealed it sticks to nothing: there is the tally to read
            panel.bar: gr.update(visible=True, elem_classes=["tight"] if session.revealed else ["startbar", "tight"]),
            panel.progress: _progress(session),
            panel.undo: gr.update(visible=not session.revealed or bool(session.voted), interactive=bool(session.voted)),
            panel.retry: gr.update(
                visible=not session.revealed and not session.plan.decoding.greedy, interactive=ready
            ),
            panel.reveal: gr.update(visible=not session.revealed),
            panel.go_on: gr.update(visible=bool(session.error) and not session.revealed),
        }

    def start(self, given: Mapping[Any, Any]) -> dict[Any, Any]:
        """Begin a session on the prompts."""
        panel, room = self.panel, self.room
        prompts, picked, aa = parse(given[panel.prompts] or ""), given[room.chosen], given[panel.aa]
        try:
            if not prompts:
                raise UserError("Write a prompt first, or add held-out examples.")
            if len(prompts) > MOST_PROMPTS:
                raise UserError(f"{len(prompts)} prompts are too many for one session: give {MOST_PROMPTS} at most.")
            if not picked and not aa:
                raise UserError("Choose an adapter to judge against the base, or A/A to test the judge.")
            base, runs = room.asked(given)
            plan = Plan(base, runs, prompts, (given[room.system] or "").strip(), room.decoding(given), aa)
        except UserError as error:
            return {panel.status: html.faults([str(error)])}
        if self.under_way() is None:
            self.session = BlindSession(room.client, self.log, plan)
        return self.drawn(picked) | {panel.status: chat.busy(room.store), panel.prompts: ""}

    def act(self, what: str, at: int, picked: list[str], choice: Choice = TIE) -> dict[Any, Any]:
        """What a button does to the session; `at` is the trial that the page showed."""
        session = self.session
        if session is None:
            return self.drawn(picked)
        try:
            if what == "vote":
                session.vote(at, choice)
            elif what == "retry":
                session.retry(at)
            else:
                {"undo": session.undo, "reveal": session.reveal, "go_on": session.write_on}[what]()
        except UserError as error:
            actions.warn(error)
        return self.drawn(picked)

    def add_examples(self, text: str, picked: list[str]) -> dict[Any, Any]:
        """Held-out questions that are neither in the list nor judged with these columns."""
        panel = self.panel
        try:
            pairs = self.room.held_out(picked)
        except UserError as error:
            actions.warn(error)
            pairs = []
        known = vote_views.by_columns(self.log.read(), ["base", *picked])
        there = parse(text or "")
        judged = {vote.prompt for contest, votes in known.items() for vote in votes if contest.by == HUMAN}
        fresh = [question for question, _ in pairs if question not in judged and question not in there]
        if not fresh:
            sentence = "The first adapter's data has no more held-out questions"
            return {panel.status: html.faults([sentence])}
        return {panel.prompts: as_text([*there, *fresh[:EXAMPLES]]), panel.status: ""}

    def wire(self) -> None:
        """Connect the events."""
        panel, room = self.panel, self.room
        drawing: dict[str, Any] = {"outputs": [*self.outputs, panel.prompts]} | RAW
        panel.start.click(self.start, room.inputs() | {panel.prompts, panel.aa}, **drawing, trigger_mode="once")
        panel.held_out.click(self.add_examples, [panel.prompts, room.chosen], [panel.prompts, panel.status], **RAW)
        places: list[tuple[gr.Button, Choice]] = [*((button, place) for place, button in enumerate(panel.places))]
        for button, choice in [*places, (panel.tie, TIE), (panel.bad, BAD)]:
            button.click(partial(self.act, "vote", choice=choice), [panel.at, room.chosen], **drawing)
        for button, what in (
            (panel.undo, "undo"),
            (panel.retry, "retry"),
            (panel.reveal, "reveal"),
            (panel.go_on, "go_on"),
        ):
            button.click(partial(self.act, what), [panel.at, room.chosen], **drawing)
        # A tick touches no component that is seen: each would be built anew, every second.
        gr.Timer(_POLL_SECONDS).tick(self.news, [panel.news, room.chosen, room.blind], panel.news, **RAW)
        panel.news.change(self.polled, [panel.stamp, room.chosen, room.blind], **drawing)
        panel.saving.wire(room.chosen)
        panel.judge.wire(room.chosen, panel.results, self.tally)


def _ids(session: BlindSession) -> list[str]:
    return [run.id for run in session.plan.runs]


def _stamp(session: BlindSession | None) -> list[Any]:
    """What the columns show, then the version of everything."""
    if session is None:
        return []
    trial = session.shown
    shown = trial and [trial.retries, bool(trial.answers)]
    return [session.id, session.current, session.revealed, len(session.voted), shown, session.version]


def _progress(session: BlindSession) -> str:
    """Where the judge is, and how far the answers are."""
    if session.revealed:
        last = session.shown
        prompt = f" The columns show the last one, prompt {session.trials.index(last) + 1}." if last else ""
        return html.hint(f"Revealed: {len(session.voted)} of {len(session.trials)} prompts have a vote.{prompt}")
    words = [f"Prompt {session.current + 1} of {len(session.trials)}"]
    if 0 < session.written < len(session.trials):
        words.append(f"{session.written} answered so far")
    trial = session.trials[session.current]
    if trial.retries:
        words.append(f"retry {trial.retries}")
    if trial.answers:
        words.append("Which answer is best? Press its number, T or B.")
    elif not session.error:
        words.append(f"{session.status or 'Answers are being written'}…")
    if session.plan.aa and session.plan.decoding.greedy:
        words.append("Decoding is greedy, so both answers are the same text: turn on sampling to test your judgement")
    return html.hint(" · ".join(words)) + (html.faults([session.error]) if session.error else "")


def _columns(room: Room, session: BlindSession, trial: Trial) -> dict[Any, Any]:
    """The columns of a trial at their places; names and proofs only when they are revealed."""
    names = [f"Answer {place + 1}" for place in range(session.plan.count)]
    updates = columns.emptied(room.shown, names, proofs=session.revealed)
    for place, column in enumerate(trial.order):
        view = room.shown[place]
        updates[view.chat] = columns.messages(trial.messages)
        updates[view.title] = columns.title(names[place], "being written…")
        if not trial.answers:
            continue
        answer = trial.answers[column]
        updates[view.chat] = columns.messages(trial.messages, answer.text, answer.prompt or None)
        if session.revealed:
            mine = " · your choice" if trial.vote and trial.vote.choice == column else ""
            updates[view.title] = columns.title(
                f"{names[place]}: {session.proofs[column]['name']}{mine}", columns.progress(answer)
            )
            updates[view.proof] = columns.proof(session.proofs[column], answer.prompt, session.decoding(trial, column))
        else:
            updates[view.title] = columns.title(names[place], columns.length(answer))
    return updates
