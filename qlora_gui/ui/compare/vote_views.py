"""Pure functions: votes -> HTML, each result with its interval, and A/A and LLM judges apart from people."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from html import escape

import gradio as gr

from qlora_gui.errors import UserError
from qlora_gui.formatting import counted, shares
from qlora_gui.preferences import export, llm_judge
from qlora_gui.preferences.bradley_terry import Rating, rate
from qlora_gui.preferences.pairwise import Tally, tally
from qlora_gui.preferences.votes import HUMAN, Contest, Vote, VoteLog, by_contest
from qlora_gui.ui import actions
from qlora_gui.ui.rendering import html
from qlora_gui.ui.theme import RAW

_SAVE = """(files) => {
  for (const file of JSON.parse(files || '[]')) {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([file.text], {type: file.type}));
    link.download = file.name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
}"""


NO_VOTES = html.empty("No votes on these columns yet. Write prompts below, or add held-out examples, and press Start.")


def by_columns(votes: Sequence[Vote], names: Sequence[str]) -> dict[Contest, list[Vote]]:
    """The contests to show beside these columns: people's on all of them, an LLM's on pairs of them, A/A of their base."""
    contests = by_contest(votes)
    people = {key for key in contests if key.by == HUMAN and not key.aa and _names(key) == sorted(names)}
    bases = {key.base for key in people}
    pairs = {key for key in contests if key.by != HUMAN and key.base in bases and set(_names(key)) <= set(names)}
    aa = {key for key in contests if key.aa and (key.base in bases or not bases)}
    return {key: group for wanted in (people, pairs, aa) for key, group in contests.items() if key in wanted}


def _names(contest: Contest) -> list[str]:
    return sorted(column.name for column in contest.columns)


def results(votes: Sequence[Vote], names: Sequence[str]) -> str:
    """What all votes on these columns say."""
    contests = by_columns(votes, names)
    people = [vote for contest, group in contests.items() if contest.by == HUMAN for vote in group]
    alike = Counter((contest.names, contest.by, contest.aa) for contest in contests)
    return (
        "".join(
            _result(contest, group, people, alike[contest.names, contest.by, contest.aa] > 1)
            for contest, group in contests.items()
        )
        or NO_VOTES
    )


def _result(contest: Contest, votes: Sequence[Vote], people: Sequence[Vote], with_files: bool) -> str:
    title = "A/A: the base against itself" if contest.aa else " against ".join(contest.names)
    agreement = "" if contest.by == HUMAN else _agreement(contest, votes, people)
    of_two = len(contest.columns) == 2
    body = tally_html(tally(votes)) if of_two else rating_html(rate(votes))
    who = "people" if contest.by == HUMAN else contest.by.removeprefix("llm:")
    source = f"votes of {who}"
    if with_files:  # the same names: an adapter was trained anew, or its base is another
        files = [contest.base, *(column.sha256 or "" for column in contest.columns)]
        source += " · files " + ", ".join(file[:8] for file in files if file)
    head = f'<h3 class="part">{escape(title)} <span>· {escape(source)}</span></h3>'
    return f'<section class="votes">{head}{agreement}{body}</section>'


def _agreement(contest: Contest, votes: Sequence[Vote], people: Sequence[Vote]) -> str:
    judged = llm_judge.Judged(len(votes), len(votes), sum(vote.orders_agree is True for vote in votes))
    sentence = (
        f"Both orders agreed on {judged.agreed} of {counted(judged.done, 'pair')} ({judged.agreement:.0%}); "
        "the others count as ties."
    )
    same, both = llm_judge.with_people(people, votes)
    if both:
        sentence += f" Where both it and people preferred one answer, it agreed with them {same} of {both} times."
    return html.hint(sentence)


def tally_html(counts: Tally) -> str:
    """Two columns' votes: the sentence, the interval drawn, the counts."""
    names = counts.contest.names
    share = counts.wins[1] / sum(counts.wins) if sum(counts.wins) else None
    rows = [(name, wins, f"{tokens:.0f}") for name, wins, tokens in zip(names, counts.wins, counts.tokens, strict=True)]
    rows += [("tie", counts.ties, ""), ("all bad", counts.bad, "")]
    drawn = interval(counts.low, counts.high, share, names[0], names[1]) if sum(counts.wins) else ""
    return html.note(counts.sentence) + drawn + html.table(("", "prompts won", "mean tokens"), rows, numbers=(1, 2))


def rating_html(rating: Rating) -> str:
    """Several columns' votes: the sentence, each adapter's chance against the base, the strengths."""
    names, drawn, rows = rating.names, "", []
    for number, name in enumerate(names):
        chance, spread, best = "", "", ""
        if number:
            pair = rating.pair(0, number)
            drawn += interval(pair.low, pair.high, pair.share, names[0], name)
            chance, spread = f"{pair.share:.0%}", shares(pair.low, pair.high)
            best = f"{pair.wins[1]}-{pair.wins[0]}"
        rows.append((name, f"{rating.strengths[number]:+.2f}", chance, spread, best, f"{rating.tokens[number]:.0f}"))
    head = ("", "strength (log-odds)", "beats the base", "95% interval", "chosen against base", "mean tokens")
    return html.note(rating.sentence) + drawn + html.table(head, rows, numbers=range(1, 6))


def interval(low: float, high: float, share: float | None, left: str, right: str) -> str:
    """An interval of a share between 0 (all for the left) and 1 (all for the right), with one half marked."""
    label = f"{right} against {left}: 95% interval {shares(low, high)}"
    dot = "" if share is None else f'<b style="left:{100 * share:.1f}%"></b>'
    bar = f'<i style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
    return (
        f'<div class="interval" role="img" aria-label="{escape(label)}"><span>{escape(left)}</span>'
        f"<div><u></u>{bar}{dot}</div><span>{escape(right)}</span></div>"
    )


def trials(votes: Sequence[Vote]) -> str:
    """The votes of one blind session, newest last: prompt, choice, lengths by column."""
    if not votes:
        return ""
    rows = []
    for number, vote in enumerate(votes, 1):
        names = [column.name for column in vote.columns]
        chosen = (
            names[vote.choice] if isinstance(vote.choice, int) else {"bad": "all bad"}.get(vote.choice, vote.choice)
        )
        place = vote.order.index(vote.choice) + 1 if isinstance(vote.choice, int) else ""
        lengths = ", ".join(f"{name} {tokens}" for name, tokens in zip(names, vote.tokens, strict=True))
        rows.append((number, vote.prompt, chosen, place, lengths, f"{vote.seconds:.0f} s", vote.retries))
    head = ("", "prompt", "your choice", "answer", "tokens", "looked", "retries")
    return html.folded(f"The {counted(len(votes), 'vote')} of this session", html.table(head, rows, numbers=(0, 3, 6)))


class SaveButtons:
    """The two buttons, and the hidden field that carries what they made to the browser."""

    def __init__(self, log: VoteLog):
        self.log = log
        with gr.Row(visible=False, elem_classes=["tight", "actions"]) as self.row:
            self.as_json = gr.Button("Save for LLM Comparator (JSON)", size="sm", elem_id="save-json")
            self.as_csv = gr.Button("Save votes (CSV)", size="sm", elem_id="save-csv")
        self.files = gr.Textbox(visible=False)

    def votes(self, picked: list[str]) -> list[Vote]:
        """The votes that are shown beside these adapters."""
        shown = by_columns(self.log.read(), ["base", *picked])
        return [vote for group in shown.values() for vote in group]

    def save_json(self, picked: list[str]) -> str:
        """The files for the LLM Comparator, as JSON for the browser."""
        try:
            return json.dumps(comparator_files([vote for vote in self.votes(picked) if vote.by == HUMAN]))
        except UserError as error:
            actions.warn(error)
            return ""

    def save_csv(self, picked: list[str]) -> str:
        """The votes as one CSV file, as JSON for the browser."""
        votes = self.votes(picked)
        if not votes:
            actions.warn("There are no votes on these columns to save: judge some prompts first.")
            return ""
        return json.dumps([{"name": "votes.csv", "type": "text/csv", "text": export.as_csv(votes)}])

    def wire(self, chosen: gr.Dropdown) -> None:
        """Connect the events."""
        for button, save in ((self.as_json, self.save_json), (self.as_csv, self.save_csv)):
            button.click(save, chosen, self.files, **RAW).then(None, self.files, None, js=_SAVE, **RAW)


def comparator_files(votes: list[Vote]) -> list[dict[str, str]]:
    """One file for every adapter that was voted on against the base. Raises UserError when there is none."""
    pairs = dict.fromkeys((vote.columns[0], other) for vote in votes if not vote.aa for other in vote.columns[1:])
    if not pairs:
        raise UserError("There are no votes on these columns to save: judge some prompts first.")
    return [
        {
            "name": re.sub(r"[^\w.-]+", "-", f"{adapter.name}-against-{base.name}.json"),
            "type": "application/json",
            "text": export.as_json(votes, adapter, base),
        }
        for base, adapter in pairs
    ]
