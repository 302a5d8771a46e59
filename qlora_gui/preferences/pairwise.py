"""What the votes on two columns say: wins, ties, an interval, a test, and a sentence that claims no more than they show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from qlora_gui.evaluation import stats
from qlora_gui.evaluation.verdict import NOT_ENOUGH
from qlora_gui.formatting import counted, shares
from qlora_gui.preferences.votes import BAD, TIE, Contest, Vote, by_contest, by_prompt

STOPPING = (
    "Decide on the number of votes beforehand: looking after every vote and stopping at the first winner "
    "finds one where there is none."
)
_PREFERENCE = 0.65
_ENOUGH_TO_KNOW_TIES = 5


@dataclass(frozen=True)
class Tally:
    """Two columns' votes, a prompt counted once: by the majority of its votes where it has several.

    `wins` by column. `low` and `high` bound the share of prompts, ties left out, that the second column wins (Wilson,
    95%); `p` is of the exact sign test. `more` is about how many votes would show a 65/35 preference (0 when there were
    enough). `tokens` are mean lengths by column. `first_shown`: wins of the answer at the first place, and at the second.
    """

    contest: Contest
    votes: int
    prompts: int
    wins: tuple[int, int]
    ties: int
    bad: int
    low: float
    high: float
    p: float
    more: int
    tokens: tuple[float, float]
    first_shown: tuple[int, int]

    @property
    def is_clear(self) -> bool:
        """Whether the votes tell the columns apart. For an A/A that is a false alarm."""
        return (self.low > 0.5 or self.high < 0.5) and self.p < 1 - stats.LEVEL

    @property
    def winner(self) -> int | None:
        """The column that is preferred, or None: always None while the interval covers one half, and in an A/A."""
        return self.leading if self.is_clear and not self.contest.aa else None

    @property
    def leading(self) -> int:
        """The column with more wins; the second when they are even."""
        return 0 if self.wins[0] > self.wins[1] else 1

    @property
    def figures(self) -> str:
        """`34-11 (76%, 95% interval 61% to 86%)`, of the column that leads."""
        lead = self.leading
        low, high = (self.low, self.high) if lead else (1 - self.high, 1 - self.low)
        won, lost = self.wins[lead], self.wins[1 - lead]
        share = f"{won / (won + lost):.0%}, " if won + lost else ""
        return f"{won}-{lost} ({share}95% interval {shares(low, high)})"

    @property
    def sentence(self) -> str:
        """The result in words, with what more votes would do and what spoils them."""
        names, lead = self.contest.names, self.leading
        if not self.votes:
            return "No votes yet."
        if self.contest.aa:
            return f"{self._aa()}{self._aside()}"
        if not sum(self.wins):
            return f"{NOT_ENOUGH}: every vote is a tie or all bad{self._aside()}"
        figures = f"{names[lead]} against {names[1 - lead]}: {self.figures}, exact sign test p = {self.p:.2g}"
        if self.winner is not None:
            return f"{names[self.winner]} is preferred. {figures}{self._aside()} {STOPPING}"
        why = "covers one half" if self.low <= 0.5 <= self.high else "leaves one half out, but chance alone may do that"
        return f"{NOT_ENOUGH}: the interval {why}. {figures}{self._aside()} {self._more()} {STOPPING}"

    def _aa(self) -> str:
        figures = f"{self.figures}, exact sign test p = {self.p:.2g}"
        if self.is_clear:
            return f"A/A, the base against itself, found a difference where there is none, as 1 in 20 do by chance: {figures}"
        return f"A/A, the base against itself, finds nothing, as it must: {figures}"

    def _aside(self) -> str:
        """Ties, all bad, repeated prompts and the habit of choosing a place; ends the sentence."""
        text = f"; {counted(self.ties, 'tie')}, {self.bad} all bad"
        if self.votes > self.prompts:
            text += f"; {self.votes} votes on {self.prompts} prompts, each prompt counted once"
        first, second = self.first_shown
        if stats.sign_test(first, second) < 1 - stats.LEVEL:
            text += (
                f"; the answer shown first won {first} times, the other {second}: the position seems to sway this judge"
            )
        return text + "."

    def _more(self) -> str:
        decided = sum(self.wins)
        least = stats.smallest_significant(decided)
        text = f"Of {decided} prompts with a winner, {least} would have to go one way."
        if least is None:
            text = "Fewer than six prompts with a winner are never enough."
        if self.more:
            return f"{text} About {counted(self.more, 'more vote')} would show a 65/35 preference."
        chance = stats.power_of(decided, _PREFERENCE)
        return f"{text} This many votes show a 65/35 preference with a chance of {chance:.0%}: if there is one, it is smaller."


def tally(votes: Sequence[Vote]) -> Tally:
    """Count the votes of one contest between two columns. Raises ValueError for votes of several contests or columns."""
    contest = only_contest(votes)
    if len(contest.columns) != 2:
        raise ValueError(f"{len(contest.columns)} columns: see rating.py")
    prompts = by_prompt(votes)
    outcomes = [_outcome(of_prompt) for of_prompt in prompts]
    wins = (outcomes.count("first"), outcomes.count("second"))
    low, high = stats.wilson(wins[1], sum(wins))
    by_place = [vote.order.index(vote.choice) for vote in votes if isinstance(vote.choice, int)]
    return Tally(
        contest=contest,
        votes=len(votes),
        prompts=len(prompts),
        wins=wins,
        ties=outcomes.count(TIE),
        bad=outcomes.count(BAD),
        low=low,
        high=high,
        p=stats.sign_test(*wins),
        more=more_votes(sum(wins), len(prompts)),
        tokens=(fmean(vote.tokens[0] for vote in votes), fmean(vote.tokens[1] for vote in votes)),
        first_shown=(by_place.count(0), by_place.count(1)),
    )


def only_contest(votes: Sequence[Vote]) -> Contest:
    """The contest of votes that all belong to one. Raises ValueError when they do not."""
    contests = list(by_contest(votes))
    if len(contests) != 1:
        raise ValueError(f"votes of {len(contests)} contests cannot be counted together")
    return contests[0]


def _outcome(votes: Sequence[Vote]) -> str:
    """What the votes on one prompt say of two columns: "first", "second", "tie", or "bad" when all votes say so."""
    first, second = (sum(vote.choice == column for vote in votes) for column in (0, 1))
    if first != second:
        return "first" if first > second else "second"
    return BAD if all(vote.choice == BAD for vote in votes) else TIE


def more_votes(decided: int, prompts: int, preference: float = _PREFERENCE) -> int:
    """About how many more votes would show a preference, with a power of 80%, if as many are ties as until now."""
    missing = stats.votes_needed(preference) - decided
    share = decided / prompts if prompts >= _ENOUGH_TO_KNOW_TIES and decided else 1.0
    return max(0, math.ceil(missing / share))
