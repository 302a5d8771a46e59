"""Blind votes in the Compare tab: shuffled, unnamed columns, a vote by button or key, then the reveal and the tally."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.preferences.votes import BAD, HUMAN, TIE, Choice, VoteLog
from qlora_gui.runs import bounded_reading
from qlora_gui.ui import actions
from qlora_gui.ui.compare import chat, columns, llm_judge_panel, vote_views
from qlora_gui.ui.compare.blind_panel import EXAMPLES, Panel
from qlora_gui.ui.compare.blind_session import Plan, Round, Sitting, as_text, parse
from qlora_gui.ui.compare.columns import Room
from qlora_gui.ui.rendering import html
from qlora_gui.ui.theme import RAW

MOST_PROMPTS = 200
_POLL_SECONDS = 1.0


class Desk:
    """The one sitting of this page's server, and how it is drawn. Like the compare worker it is there for all pages."""

    def __init__(self, room: Room, panel: Panel):
        self.room, self.panel = room, panel
        self.log = VoteLog(room.store.root)
        self.sitting: Sitting | None = None
        self.outputs = [*room.parts(), room.base, room.chosen, room.blind, *panel.drawn()]

    def under_way(self) -> list[str] | None:
        """The adapters of a sitting that is not revealed yet, or None."""
        return None if self.sitting is None or self.sitting.revealed else _ids(self.sitting)

    def drawn(self, picked: list[str]) -> dict[Any, Any]:
        """Updates for everything: the columns as the judge may see them, the buttons, and no tally before the reveal."""
        going = self.under_way() is not None
        panel, room, sitting = self.panel, self.room, self._of(picked)
        updates = columns.emptied(room.shown, [])
        if sitting and sitting.shown:
            updates |= _columns(room, sitting, sitting.shown)
        names = ["base", *picked]
        votes = [] if going else self.log.read()
        voted = [one.vote for one in sitting.voted if one.vote] if sitting and not going else []
        updates |= {choice: gr.update(interactive=not going) for choice in (room.base, room.chosen, room.blind)}
        updates |= self._bar(sitting) | {
            panel.setup: gr.update(visible=not going),
            panel.results: self.tally(picked),
            panel.saving.row: gr.update(visible=bool(vote_views.of_columns(votes, names))),
            panel.rounds: vote_views.rounds(voted),
        }
        return updates

    def tally(self, picked: list[str]) -> str:
        """What all votes on these adapters say; nothing while a judge may not know who is who."""
        return "" if self.under_way() is not None else vote_views.results(self.log.read(), ["base", *picked])

    def news(self, known: Any, picked: list[str], is_blind: bool) -> Any:
        """The stamp of what there is to draw, when it is another than the one that is known."""
        now = _stamp(self._of(picked))
        return now if is_blind and now != known else gr.skip()

    def polled(self, stamp: Any, picked: list[str], is_blind: bool) -> Any:
        """Updates when something is new since the page was drawn: all of it, or only how far the answers are."""
        sitting = self._of(picked)
        now = _stamp(sitting)
        if not is_blind or now == stamp:
            return gr.skip()
        return self._bar(sitting) if stamp and now[:-1] == stamp[:-1] else self.drawn(picked)

    def _of(self, picked: list[str]) -> Sitting | None:
        """The sitting, unless it is over and was about other adapters."""
        one = self.sitting
        return one if one and (not one.revealed or _ids(one) == picked) else None

    def _bar(self, one: Sitting | None) -> dict[Any, Any]:
        panel = self.panel
        updates: dict[Any, Any] = {panel.at: one.current if one else -1, panel.stamp: _stamp(one), panel.status: ""}
        if one is None:
            return updates | {panel.bar: gr.update(visible=False)}
        ready = not one.revealed and bool(one.rounds[one.current].answers)
        for place, button in enumerate(panel.places):
            updates[button] = gr.update(visible=place < one.plan.count and not one.revealed, interactive=ready)
        for button in (panel.tie, panel.bad):
            updates[button] = gr.update(visible=not one.revealed, interactive=ready)
        return updates | {
            # once revealed it sticks to nothing: there is the tally to read
            panel.bar: gr.update(visible=True, elem_classes=["tight"] if one.revealed else ["startbar", "tight"]),
            panel.told: _told(one),
            panel.undo: gr.update(visible=not one.revealed or bool(one.voted), interactive=bool(one.voted)),
            panel.retry: gr.update(visible=not one.revealed and not one.plan.decoding.greedy, interactive=ready),
            panel.reveal: gr.update(visible=not one.revealed),
            panel.go_on: gr.update(visible=bool(one.error) and not one.revealed),
        }


def _ids(one: Sitting) -> list[str]:
    return [run.id for run in one.plan.runs]


def _stamp(one: Sitting | None) -> list[Any]:
    """What the columns show, then the version of everything."""
    if one is None:
        return []
    shown = one.shown
    face = [one.id, one.current, one.revealed, len(one.voted), shown and [shown.retries, bool(shown.answers)]]
    return [*face, one.version]


def _told(one: Sitting) -> str:
    """Where the judge is, and how far the answers are."""
    if one.revealed:
        last = one.shown
        prompt = f" The columns show the last one, prompt {one.rounds.index(last) + 1}." if last else ""
        return html.hint(f"Revealed: {len(one.voted)} of {len(one.rounds)} prompts have a vote.{prompt}")
    words = [f"Prompt {one.current + 1} of {len(one.rounds)}"]
    if 0 < one.written < len(one.rounds):
        words.append(f"{one.written} answered so far")
    if one.rounds[one.current].retries:
        words.append(f"retry {one.rounds[one.current].retries}")
    if one.rounds[one.current].answers:
        words.append("Which answer is best? Press its number, T or B.")
    elif not one.error:
        words.append(f"{one.status or 'Answers are being written'}…")
    if one.plan.aa and one.plan.decoding.greedy:
        words.append("Decoding is greedy, so both answers are the same text: sample, to test your judgement")
    return html.hint(" · ".join(words)) + (html.faults([one.error]) if one.error else "")


def _columns(room: Room, sitting: Sitting, one: Round) -> dict[Any, Any]:
    """The columns of a round at their places; names and proofs only when they are revealed."""
    names = [f"Answer {place + 1}" for place in range(sitting.plan.count)]
    updates = columns.emptied(room.shown, names, proofs=sitting.revealed)
    for place, column in enumerate(one.order):
        view = room.shown[place]
        updates[view.chat] = columns.messages(one.messages)
        updates[view.title] = columns.title(names[place], "being written…")
        if not one.answers:
            continue
        answer = one.answers[column]
        updates[view.chat] = columns.messages(one.messages, answer.text, answer.prompt or None)
        if sitting.revealed:
            mine = " · your choice" if one.vote and one.vote.choice == column else ""
            updates[view.title] = columns.title(f"{names[place]}: {sitting.proofs[column]['name']}{mine}", answer.line)
            updates[view.proof] = columns.proof(sitting.proofs[column], answer.prompt, sitting.decoding(one, column))
        else:
            updates[view.title] = columns.title(names[place], columns.length(answer.tokens, answer.reason))
    return updates


def wire(room: Room, panel: Panel) -> Desk:
    """Wire the panel's buttons; gives what draws it."""
    desk = Desk(room, panel)

    def start(given: Mapping[Any, Any]) -> dict[Any, Any]:
        prompts, picked, aa = parse(given[panel.prompts] or ""), given[room.chosen], given[panel.aa]
        try:
            if not prompts:
                raise UserError("Write a prompt first, or add held-out examples.")
            if len(prompts) > MOST_PROMPTS:
                raise UserError(f"{len(prompts)} prompts are too many for one sitting: give {MOST_PROMPTS} at most.")
            if not picked and not aa:
                raise UserError("Choose an adapter to judge against the base, or A/A to test the judge.")
            base, runs = room.asked(given)
            plan = Plan(base, runs, prompts, (given[room.system] or "").strip(), room.decoding(given), aa)
        except UserError as error:
            return {panel.status: html.faults([str(error)])}
        if desk.under_way() is None:
            desk.sitting = Sitting(room.session, desk.log, plan)
        return desk.drawn(picked) | {panel.status: chat.busy(room.store), panel.prompts: ""}

    def act(what: str, at: int, picked: list[str], said: Choice = TIE) -> dict[Any, Any]:
        sitting = desk.sitting
        if sitting is None:
            return desk.drawn(picked)
        try:
            if what == "vote":
                sitting.vote(at, said)
            elif what == "retry":
                sitting.retry(at)
            else:
                {"undo": sitting.undo, "reveal": sitting.reveal, "go_on": sitting.write_on}[what]()
        except UserError as error:
            actions.warn(error)
        return desk.drawn(picked)

    def add_examples(text: str, picked: list[str]) -> dict[Any, Any]:
        """Held-out questions that are neither in the list nor judged with these columns."""
        try:
            pairs = bounded_reading.held_out(room.store.get(picked[0]).config()) if picked else []
        except UserError as error:
            actions.warn(error)
            pairs = []
        known = vote_views.of_columns(desk.log.read(), ["base", *picked])
        there = parse(text or "")
        judged = {vote.prompt for contest, votes in known.items() for vote in votes if contest.by == HUMAN}
        fresh = [question for question, _ in pairs if question not in judged and question not in there]
        if not fresh:
            return {
                panel.status: html.faults(["The data of the first adapter has no more held-out questions to offer"])
            }
        return {panel.prompts: as_text([*there, *fresh[:EXAMPLES]]), panel.status: ""}

    drawing: dict[str, Any] = {"outputs": [*desk.outputs, panel.prompts]} | RAW
    inputs = room.inputs() | {panel.prompts, panel.aa}
    panel.start.click(start, inputs, **drawing, trigger_mode="once")
    panel.held_out.click(add_examples, [panel.prompts, room.chosen], [panel.prompts, panel.status], **RAW)
    said: list[tuple[gr.Button, Choice]] = [*((button, place) for place, button in enumerate(panel.places))]
    for button, choice in [*said, (panel.tie, TIE), (panel.bad, BAD)]:
        button.click(partial(act, "vote", said=choice), [panel.at, room.chosen], **drawing)
    for button, what in (
        (panel.undo, "undo"),
        (panel.retry, "retry"),
        (panel.reveal, "reveal"),
        (panel.go_on, "go_on"),
    ):
        button.click(partial(act, what), [panel.at, room.chosen], **drawing)
    # A tick touches no component that is seen: each would be built anew, every second.
    gr.Timer(_POLL_SECONDS).tick(desk.news, [panel.news, room.chosen, room.blind], panel.news, **RAW)
    panel.news.change(desk.polled, [panel.stamp, room.chosen, room.blind], **drawing)
    vote_views.wire(panel.saving, desk.log, room.chosen)
    pinned = room.store.has_guests
    llm_judge_panel.wire(panel.judge, desk.log, room.chosen, panel.results, desk.tally, pinned)
    return desk
