"""Intervals, tests and power for paired numbers and for votes: small samples, nothing assumed to be normal."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qlora_gui.errors import UserError

LEVEL = 0.95  # of every interval; tests call significant what is below 1 - LEVEL
_MOST_VOTES = 100_000


@dataclass(frozen=True)
class Paired:
    """Mean of paired differences, its 95% interval, the p-value of "they are as often above zero as below", rows."""

    mean: float
    low: float
    high: float
    p: float
    n: int


def paired(differences: Sequence[float], resamples: int = 9_999, seed: int = 0) -> Paired:
    """Mean of one difference per row (adapter - base), with a bootstrap interval and a sign-flip permutation p-value.

    The interval is bias-corrected and accelerated (BCa: Efron 1987, "Better Bootstrap Confidence Intervals"); where that
    has no value, as in rows that hardly differ, it is the percentile interval. With few rows all sign flips are tried.
    The same seed gives the same result. Raises UserError for fewer than two rows, and for what is no number.
    """
    import numpy as np
    from scipy import stats

    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        raise UserError(f"{len(values)} paired rows are too few for an interval: give at least two.")
    if not np.isfinite(values).all():
        raise UserError(
            "A paired difference is not a number: a loss was NaN or infinite, so nothing can be said about it."
        )
    mean = float(values.mean())
    if np.ptp(values) == 0:  # nothing to resample; scipy's BCa would give NaN
        low = high = mean
    else:
        low, high = _bootstrap(values, resamples, seed)
    flipped = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=resamples, batch=_batch(len(values)), rng=seed
    )
    return Paired(mean, low, high, float(flipped.pvalue), len(values))


def _bootstrap(values: Any, resamples: int, seed: int) -> tuple[float, float]:
    """BCa interval of the mean, else percentile."""
    import numpy as np
    from scipy import stats

    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of BCa about degenerate data: that is what the percentiles are for
            interval = stats.bootstrap(
                (values,),
                np.mean,
                n_resamples=resamples,
                batch=_batch(len(values)),
                confidence_level=LEVEL,
                method=method,
                rng=seed,
            ).confidence_interval
        if math.isfinite(interval.low) and math.isfinite(interval.high):
            break
    return float(interval.low), float(interval.high)


def _batch(rows: int) -> int:
    """Resamples at once, so that a batch stays below 32 MB."""
    return max(1, 4_000_000 // rows)


def holm(ps: Sequence[float]) -> list[float]:
    """p-values corrected for being looked at together (Holm 1979), in the order given."""
    corrected, worst = [0.0] * len(ps), 0.0
    for rank, number in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[number]))
        corrected[number] = worst
    return corrected


def wilson(wins: int, n: int) -> tuple[float, float]:
    """95% interval of a share (Wilson 1927): keeps its promise for few votes and near 0 and 1. All of 0..1 for none."""
    from scipy import stats

    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(wins, n).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p-value of wins against losses, ties left out; 1 when there is neither."""
    from scipy import stats

    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def smallest_significant(n: int) -> int | None:
    """The fewest wins of n votes without ties that the sign test calls significant; None below six votes."""
    from scipy import stats

    wins = int(stats.binom.isf((1 - LEVEL) / 2, n, 0.5)) + 1
    return wins if wins <= n else None


def power_of(n: int, preference: float) -> float:
    """The chance that n votes without ties are significant when `preference` of them go one way in truth. Exact."""
    import numpy as np

    return float(_powers(np.array([n]), preference)[0])


@lru_cache
def votes_needed(preference: float = 0.65, power: float = 0.8) -> int:
    """Votes without ties that show a true preference with this power: the first number from which on all do.

    The power of the exact test is a saw, for one vote more may need one win more. Raises UserError for a preference so
    near to one half that votes would not do.
    """
    import numpy as np

    if not 0 < preference < 1 or not 0 < power < 1:
        raise UserError("A preference and a power lie between 0 and 1.")
    size = 128
    while size <= _MOST_VOTES:
        short = np.flatnonzero(_powers(np.arange(1, size + 1), preference) < power)
        needed = int(short[-1]) + 2 if len(short) else 1
        if needed < 0.9 * size:  # so long without a dip, and there is no later one: the teeth shrink
            return needed
        size *= 2
    raise UserError(f"A preference of {preference:.0%} is too close to one half to be shown by votes.")


def _powers(n: Any, preference: float) -> Any:
    """`power_of` for an array of numbers of votes."""
    from scipy import stats

    wins = stats.binom.isf((1 - LEVEL) / 2, n, 0.5) + 1
    return stats.binom.sf(wins - 1, n, preference) + stats.binom.cdf(n - wins, n, preference)
