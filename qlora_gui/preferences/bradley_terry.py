"""What the votes on three or more columns say: Bradley-Terry strengths, with intervals by bootstrap over prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

from qlora_gui.evaluation import stats
from qlora_gui.evaluation.verdict import NOT_ENOUGH
from qlora_gui.formatting import counted
from qlora_gui.preferences.pairwise import STOPPING, more_votes
from qlora_gui.preferences.votes import BAD, TIE, Column, Vote, by_prompt, contest_of, distinct

RESAMPLES = 1_000
RIDGE = (
    0.1  # of a win, both ways, between every two columns: a resample in which one of them lost everything stays finite
)


@dataclass(frozen=True)
class Pair:
    """Two columns by index: the second's chance to be found better, its 95% interval, and what decided it directly.

    `wins`: prompts at which the first, the second was chosen while both were there. `p` is of the exact sign test on
    them, `p_holm` corrected for all pairs.
    """

    first: int
    second: int
    share: float
    low: float
    high: float
    wins: tuple[int, int]
    p: float
    p_holm: float

    @property
    def winner(self) -> int | None:
        """The column that is preferred, or None: always None while the interval covers one half."""
        if self.p_holm >= 1 - stats.LEVEL or self.low <= 0.5 <= self.high:
            return None
        return self.second if self.low > 0.5 else self.first


@dataclass(frozen=True)
class Rating:
    """Several columns, the base first. `strengths` are log-odds against the base; `tokens` mean lengths."""

    columns: tuple[Column, ...]
    strengths: tuple[float, ...]
    pairs: tuple[Pair, ...]
    votes: int
    prompts: int
    ties: int
    bad: int
    tokens: tuple[float, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, made distinct."""
        return distinct(self.columns)

    def pair(self, first: int, second: int) -> Pair:
        """The pair of two columns, `first` the smaller index."""
        return next(pair for pair in self.pairs if (pair.first, pair.second) == (first, second))

    @property
    def sentence(self) -> str:
        """Which columns are preferred to which, and what more votes would do."""
        names = self.names
        beaten: dict[int, list[str]] = {}
        for pair in self.pairs:
            if pair.winner is not None:
                beaten.setdefault(pair.winner, []).append(names[pair.first + pair.second - pair.winner])
        sentences = [
            f"{names[winner]} is preferred to {', '.join(others)}." for winner, others in sorted(beaten.items())
        ]
        open_pairs = sum(pair.winner is None for pair in self.pairs)
        if not sentences:
            sentences = [f"{NOT_ENOUGH}: no two columns can be told apart by these votes."]
        elif open_pairs:
            sentences.append(f"{counted(open_pairs, 'pair')} of columns cannot be told apart.")
        repeated = f" on {counted(self.prompts, 'prompt')}" if self.votes > self.prompts else ""
        sentences.append(
            f"{counted(self.votes, 'vote')}{repeated}: {counted(self.ties, 'tie')}, {self.bad} all bad. "
            f"Tests are corrected for {counted(len(self.pairs), 'pair')}."
        )
        if open_pairs:
            weakest = min((pair for pair in self.pairs if pair.winner is None), key=lambda pair: sum(pair.wins))
            more = more_votes(sum(weakest.wins), self.prompts)
            if more:
                between = f"{names[weakest.first]} and {names[weakest.second]}"
                sentences.append(f"About {counted(more, 'more vote')} would show a 65/35 preference between {between}.")
        return " ".join([*sentences, STOPPING])


def rate(votes: Sequence[Vote], resamples: int = RESAMPLES, seed: int = 0) -> Rating:
    """Rate all columns that votes name. A best of several is a win over each other column, a tie one half to each.

    "All bad" says nothing of who is better and is only counted. Every prompt weighs the same, however many votes it
    has. So that a clean sweep neither diverges nor claims to be certain, one prompt per column that nobody voted on, won
    by that column, stands among the prompts, also when they are resampled (the "plus four" rule of Agresti and Coull,
    1998, for two columns). Raises ValueError for votes of different bases or judges, A/A votes, and none at all.
    """
    import numpy as np

    if not votes or len({(contest.base, contest.by) for contest in map(contest_of, votes)}) > 1:
        raise ValueError("one base's votes by one judge are rated together")
    if any(vote.aa for vote in votes):
        raise ValueError("votes of an A/A are no votes for anybody")
    columns = _columns(votes)
    prompts = by_prompt(votes)
    count = len(columns)
    played = [wins for wins in (_wins(of_prompt, columns) for of_prompt in prompts) if wins is not None]
    played += [_best(number, range(count), count) for number in range(count)]
    matrices = np.stack(played)  # [prompts, winner, loser]
    strengths = _fit(matrices.sum(axis=0))
    drawn = np.random.default_rng(seed).multinomial(len(played), [1 / len(played)] * len(played), size=resamples)
    resampled = np.stack([_fit(wins) for wins in np.tensordot(drawn, matrices, axes=1)])  # [resamples, columns]
    unsettled = [[vote.choice for vote in of_prompt] for of_prompt in prompts]
    unsettled = [choices for choices in unsettled if not any(isinstance(choice, int) for choice in choices)]
    bad = sum(set(choices) == {BAD} for choices in unsettled)
    return Rating(
        columns=columns,
        strengths=tuple(float(value) for value in strengths - strengths[0]),
        pairs=_pairs(columns, prompts, strengths, resampled),
        votes=len(votes),
        prompts=len(prompts),
        ties=len(unsettled) - bad,
        bad=bad,
        tokens=tuple(_mean_tokens(votes, column) for column in columns),
    )


def _columns(votes: Sequence[Vote]) -> tuple[Column, ...]:
    """All columns, the base's (it has no checksum) first, else as they came."""
    columns = dict.fromkeys(column for vote in votes for column in vote.columns)
    return tuple(sorted(columns, key=lambda column: column.sha256 is not None))


def _best(winner: int, others: Sequence[int], count: int) -> Any:
    """The wins of one column over others, [count, count]."""
    import numpy as np

    wins = np.zeros((count, count))
    wins[winner, list(others)] = 1.0
    wins[winner, winner] = 0.0
    return wins


def _wins(votes: Sequence[Vote], columns: tuple[Column, ...]) -> Any:
    """Who won over whom on one prompt, the mean of its votes; None when all are "all bad"."""
    per_vote = []
    for vote in votes:
        here = [columns.index(column) for column in vote.columns]
        if isinstance(vote.choice, int):
            per_vote.append(_best(here[vote.choice], here, len(columns)))
        elif vote.choice == TIE:
            per_vote.append(sum(_best(column, here, len(columns)) for column in here) / 2)
    return sum(per_vote) / len(per_vote) if per_vote else None


def _fit(wins: Any) -> Any:
    """Strengths (log-odds, mean zero) from wins [winner, loser], by evalica's Bradley-Terry (Newman 2023, JMLR 24)."""
    import numpy as np
    from evalica import Winner, bradley_terry

    count = len(wins)
    pairs = [(winner, loser) for winner in range(count) for loser in range(count) if winner != loser]
    fitted = bradley_terry(
        [winner for winner, _ in pairs],
        [loser for _, loser in pairs],
        [Winner.X] * len(pairs),
        weights=[float(wins[pair]) + RIDGE for pair in pairs],
        tolerance=1e-6,
        limit=10_000,
    )
    return np.log(fitted.scores.reindex(range(count)).to_numpy())


def _pairs(
    columns: tuple[Column, ...], prompts: Sequence[Sequence[Vote]], strengths: Any, resampled: Any
) -> tuple[Pair, ...]:
    import numpy as np

    compared = []
    for first, second in combinations(range(len(columns)), 2):
        apart = 1 / (1 + np.exp(resampled[:, first] - resampled[:, second]))
        low, high = np.quantile(apart, [(1 - stats.LEVEL) / 2, (1 + stats.LEVEL) / 2])
        share = 1 / (1 + np.exp(strengths[first] - strengths[second]))
        wins = _direct(prompts, columns[first], columns[second])
        compared.append((first, second, float(share), float(low), float(high), wins, stats.sign_test(*wins)))
    corrected = stats.holm([p for *_, p in compared])
    return tuple(Pair(*values, p_holm) for values, p_holm in zip(compared, corrected, strict=True))


def _direct(prompts: Sequence[Sequence[Vote]], first: Column, second: Column) -> tuple[int, int]:
    """Prompts at which the first, the second column was chosen, by the majority of votes, while both were shown."""
    won = [0, 0]
    for votes in prompts:
        chosen = [
            vote.columns[vote.choice]
            for vote in votes
            if isinstance(vote.choice, int) and first in vote.columns and second in vote.columns
        ]
        ahead = chosen.count(second) - chosen.count(first)
        if ahead:
            won[ahead > 0] += 1
    return won[0], won[1]


def _mean_tokens(votes: Sequence[Vote], column: Column) -> float:
    return fmean(vote.tokens[vote.columns.index(column)] for vote in votes if column in vote.columns)
