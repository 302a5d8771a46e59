"""Statistics against published and hand values, and by simulation: coverage of every interval, and A/A says nothing.

Tolerances of simulated shares are three binomial standard errors of the nominal value at the number of repeats.
"""

import math

import numpy as np
import pytest
from scipy import stats

from qlora_gui.errors import UserError
from qlora_gui.evaluation import stats as statistics
from qlora_gui.evaluation import verdict
from qlora_gui.preferences.bradley_terry import rate
from qlora_gui.preferences.pairwise import more_votes, tally
from qlora_gui.preferences.votes import BAD, TIE, Column, Vote
from tests.factories import BASE, LYNX, OTTER, vote

DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]  # crossed - selfed maize, eighths of an inch


def allowed(repeats: int, share: float = 0.95) -> float:
    """Three standard errors of a simulated share."""
    return 3 * math.sqrt(share * (1 - share) / repeats)


# votes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "wins"), [(6, 6), (10, 9), (15, 12), (20, 15), (30, 21), (50, 33), (100, 61)])
def test_the_fewest_wins_that_are_significant(n: int, wins: int) -> None:
    assert statistics.smallest_significant(n) == wins
    assert statistics.sign_test(wins, n - wins) < 0.05 <= statistics.sign_test(wins - 1, n - wins + 1)


def test_five_votes_show_nothing() -> None:
    assert [statistics.smallest_significant(n) for n in range(6)] == [None] * 6


def test_the_sign_test_is_the_binomial_sum() -> None:
    assert statistics.sign_test(9, 1) == pytest.approx(2 * (1 + 10) / 2**10)
    assert statistics.sign_test(1, 9) == statistics.sign_test(9, 1)
    assert statistics.sign_test(5, 5) == 1 and statistics.sign_test(0, 0) == 1


@pytest.mark.parametrize(("n", "expected"), [(20, 0.25), (50, 0.51), (100, 0.83)])
def test_power_for_a_true_65_percent(n: int, expected: float) -> None:
    assert statistics.power_of(n, 0.65) == pytest.approx(expected, abs=0.005)
    simulated = np.random.default_rng(n).binomial(n, 0.65, 4_000)
    significant = np.mean([statistics.sign_test(int(wins), n - int(wins)) < 0.05 for wins in simulated])
    assert significant == pytest.approx(statistics.power_of(n, 0.65), abs=allowed(4_000, expected))


def test_votes_needed_is_where_the_power_stays() -> None:
    needed = statistics.votes_needed(0.65, 0.8)
    assert needed == 97
    assert statistics.power_of(needed - 1, 0.65) < 0.8
    assert min(statistics.power_of(n, 0.65) for n in range(needed, 4 * needed)) >= 0.8
    assert statistics.votes_needed(0.75, 0.8) < needed < statistics.votes_needed(0.6, 0.8)
    assert statistics.votes_needed(0.35, 0.8) == needed


@pytest.mark.parametrize("wrong", [0.5, 0.501, 0.0, 1.0])
def test_a_preference_that_no_votes_show_is_refused(wrong: float) -> None:
    with pytest.raises(UserError):
        statistics.votes_needed(wrong)


@pytest.mark.parametrize(
    ("wins", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_newcombes_published_intervals(wins: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I, method 3."""
    assert statistics.wilson(wins, n) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize("n", [10, 20, 50, 100])
def test_wilson_covers_what_it_promises(n: int) -> None:
    """Exact coverage, no simulation: summed over all outcomes; 95% on average over shares, never far below."""
    intervals = [statistics.wilson(wins, n) for wins in range(n + 1)]
    coverage = [
        sum(stats.binom.pmf(wins, n, share) for wins, (low, high) in enumerate(intervals) if low <= share <= high)
        for share in np.linspace(0.05, 0.95, 91)
    ]
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.01)
    assert min(coverage) > 0.9


def test_holm_gives_the_textbooks_values_in_the_order_given() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == [1.0, 1.0]
    assert statistics.holm([]) == []


# paired numbers --------------------------------------------------------------------------------------------------------


def test_the_permutation_test_gives_fishers_p_for_darwins_maize() -> None:
    """Fisher, The Design of Experiments, section 21: 863 of 32,768 sign flips reach the sum on either side."""
    found = statistics.paired(DARWIN, resamples=40_000)
    assert found.p == pytest.approx(2 * 863 / 2**15)
    assert found.mean == pytest.approx(314 / 15) and found.n == 15
    assert found.low < found.mean < found.high
    assert statistics.paired([1.0, 2.0, 3.0]).p == 2 / 8


def test_the_same_seed_gives_the_same_interval() -> None:
    assert statistics.paired(DARWIN, resamples=499, seed=3) == statistics.paired(DARWIN, resamples=499, seed=3)
    assert statistics.paired(DARWIN, resamples=499, seed=4) != statistics.paired(DARWIN, resamples=499, seed=3)


def test_differences_of_nothing_are_no_difference() -> None:
    found = statistics.paired([0.0] * 40, resamples=199)
    assert (found.mean, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_rows_that_all_differ_alike_have_no_width_and_a_p_value_of_their_number() -> None:
    found = statistics.paired([-0.5] * 8, resamples=999)
    assert (found.mean, found.low, found.high) == (-0.5, -0.5, -0.5)
    assert found.p == 2 / 2**8
    assert statistics.paired([-0.5, -0.5], resamples=999).p == 0.5


@pytest.mark.parametrize("values", [[0.1, 0.2], [0.0, 1e-9, 0.0], [5.0, 0.0, 0.0, 0.0]])
def test_an_interval_is_always_a_number(values: list[float]) -> None:
    found = statistics.paired(values, resamples=199)
    assert min(values) <= found.low <= found.mean <= found.high <= max(values)
    assert 0 < found.p <= 1


@pytest.mark.parametrize("values", [[], [0.3], [0.1, math.nan, 0.2], [0.1, math.inf]])
def test_what_gives_no_interval_is_a_sentence(values: list[float]) -> None:
    with pytest.raises(UserError):
        statistics.paired(values)


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_the_bootstrap_interval_covers_what_it_promises(shape: str) -> None:
    repeats, covered, dice = 300, 0, np.random.default_rng(0)
    for _ in range(repeats):
        values = dice.normal(0.3, 1.0, 100) if shape == "normal" else dice.gamma(2.0, 0.15, 100)
        found = statistics.paired(values, resamples=499)
        covered += found.low <= 0.3 <= found.high
    assert covered / repeats == pytest.approx(0.95, abs=allowed(repeats))


# the whole path --------------------------------------------------------------------------------------------------------


def judged(dice: np.random.Generator, prompts: int, columns: tuple[Column, ...], strengths: list[float]) -> list[Vote]:
    """Votes as the page makes them: shuffled places, a judge who also likes the first place, some ties and all bad."""
    found = []
    for number in range(prompts):
        order = tuple(int(column) for column in dice.permutation(len(columns)))
        odds = np.exp([strengths[column] for column in order])
        odds[0] *= 1.5  # place
        place = int(dice.choice(len(columns), p=odds / odds.sum()))
        said = dice.choice([order[place], TIE, BAD], p=[0.8, 0.15, 0.05])
        found.append(vote(number, said if said in (TIE, BAD) else int(said), columns, order=order))
    return found


def test_aa_with_two_columns_says_nothing() -> None:
    dice = np.random.default_rng(1)
    found = [tally(judged(dice, int(dice.integers(10, 120)), (BASE, OTTER), [0, 0])) for _ in range(200)]
    assert sum(one.winner is not None for one in found) <= 10
    assert sum(one.low <= 0.5 <= one.high for one in found) / 200 >= 0.95 - allowed(200)


@pytest.mark.slow
def test_aa_with_three_columns_says_nothing_and_its_intervals_cover_one_half() -> None:
    dice = np.random.default_rng(2)
    found = [rate(judged(dice, 40, (BASE, OTTER, LYNX), [0, 0, 0]), resamples=100) for _ in range(200)]
    assert sum(any(pair.winner is not None for pair in one.pairs) for one in found) <= 10
    covered = [pair.low <= 0.5 <= pair.high for one in found for pair in one.pairs]
    assert np.mean(covered) >= 0.95 - allowed(200)


def test_aa_with_losses_says_nothing() -> None:
    """Two adapters that are the base, 100 held-out rows, rounding between them as rough as real losses are."""
    dice, findings = np.random.default_rng(3), 0
    for _ in range(200):
        pairs = [statistics.paired(dice.standard_t(4, 100) * 0.05, resamples=999) for _ in range(2)]
        for one, p_holm in zip(pairs, statistics.holm([one.p for one in pairs]), strict=True):
            loss = {"difference": one.mean, "low": one.low, "high": one.high, "rows": one.n, "p_holm": p_holm}
            findings += verdict.decide({"loss": loss, "texts": None})["kind"] != "unclear"
    assert findings <= 10


@pytest.mark.parametrize(("strengths", "prompts"), [([0.0, 0.8, 0.3], 40), ([0.0, 2.0, 0.0], 25)])
def test_bradley_terry_intervals_cover_the_true_strengths(strengths: list[float], prompts: int) -> None:
    """The best of three is chosen with odds exp(strength), so a pair's share is that of Bradley and Terry."""
    repeats, dice, covered = 80, np.random.default_rng(4), []
    odds = np.exp(strengths)
    for _ in range(repeats):
        chosen = dice.choice(3, prompts, p=odds / odds.sum())
        found = rate([vote(n, int(one), (BASE, OTTER, LYNX)) for n, one in enumerate(chosen)], resamples=250)
        for pair in found.pairs:
            truth = odds[pair.second] / (odds[pair.first] + odds[pair.second])
            covered.append(pair.low <= truth <= pair.high)
    assert np.mean(covered) >= 0.95 - allowed(repeats)


# tally and rating ------------------------------------------------------------------------------------------------------


def test_a_clear_preference_is_said_with_its_figures() -> None:
    found = tally([vote(n, 1 if n < 34 else 0 if n < 45 else TIE if n < 48 else BAD) for n in range(50)])
    assert found.wins == (11, 34) and (found.ties, found.bad) == (3, 2)
    assert (round(found.low, 2), round(found.high, 2)) == (0.61, 0.86)
    assert found.winner == 1
    assert found.sentence.startswith("otter is preferred. otter against base: 34-11 (76%, 95% interval 61% to 86%)")
    assert "3 ties, 2 all bad" in found.sentence and "stopping at the first winner" in found.sentence


def test_the_base_can_win_and_its_figures_are_its_own() -> None:
    found = tally([vote(n, 0 if n < 15 else 1) for n in range(20)])
    assert found.winner == 0 and found.figures.startswith("15-5 (75%, 95% interval 53% to 89%)")


@pytest.mark.parametrize("wins", range(51))
def test_never_a_winner_while_the_interval_covers_one_half(wins: int) -> None:
    found = tally([vote(n, 1 if n < wins else 0) for n in range(50)])
    assert (found.winner is not None) == (wins >= 33 or wins <= 17)
    if found.low <= 0.5 <= found.high:
        assert found.winner is None
    if found.winner is None:
        assert found.sentence.startswith("Not enough evidence")
        assert "Of 50 prompts with a winner, 33 would have to go one way." in found.sentence
        assert "About 47 more votes would show a 65/35 preference" in found.sentence


def test_five_of_five_is_no_winner_though_wilson_leaves_one_half_out() -> None:
    found = tally([vote(n, 1) for n in range(5)])
    assert found.low > 0.5 and found.winner is None and "chance alone may do that" in found.sentence
    assert "Fewer than six prompts with a winner are never enough." in found.sentence


def test_ties_make_more_votes_needed() -> None:
    assert more_votes(10, 20) == 2 * (97 - 10)
    assert more_votes(0, 0) == 97 and more_votes(97, 100) == 0
    enough = tally([vote(n, n % 2) for n in range(120)])
    assert enough.more == 0 and "if there is one, it is smaller" in enough.sentence


def test_votes_on_one_prompt_count_once() -> None:
    found = tally([vote(0, 1) for _ in range(30)] + [vote(1, 0), vote(1, 0), vote(1, 1)])
    assert found.wins == (1, 1) and (found.votes, found.prompts) == (33, 2)
    assert "33 votes on 2 prompts" in found.sentence


def test_only_ties_are_no_winner() -> None:
    found = tally([vote(0, TIE), vote(1, BAD)])
    assert (found.low, found.high, found.p) == (0.0, 1.0, 1.0)
    assert found.sentence == "Not enough evidence: every vote is a tie or all bad; 1 tie, 1 all bad."


def test_an_aa_has_no_winner_but_tells_a_false_alarm() -> None:
    quiet = tally([vote(n, n % 2, (BASE, BASE), aa=True) for n in range(20)])
    assert quiet.winner is None and not quiet.is_clear and "finds nothing, as it must" in quiet.sentence
    loud = tally([vote(n, 1, (BASE, BASE), aa=True) for n in range(20)])
    assert loud.winner is None and loud.is_clear and "difference where there is none" in loud.sentence


def test_the_habit_of_choosing_a_place_is_told() -> None:
    votes = [vote(n, n % 2, order=(0, 1) if n % 2 == 0 else (1, 0)) for n in range(20)]
    found = tally(votes)
    assert found.first_shown == (20, 0) and found.winner is None
    assert "shown first won 20 times, the other 0" in found.sentence


def test_votes_of_several_contests_are_not_counted_together() -> None:
    with pytest.raises(ValueError, match="2 contests"):
        tally([vote(0, 1), vote(1, 1, by="llm:x")])
    with pytest.raises(ValueError, match="rating"):
        tally([vote(0, 1, (BASE, OTTER, LYNX))])
    with pytest.raises(ValueError, match="one base"):
        rate([])
    with pytest.raises(ValueError, match="A/A"):
        rate([vote(0, 1, (BASE, BASE), aa=True)])


def test_bradley_terry_of_three_says_who_is_preferred_to_whom() -> None:
    three = (BASE, OTTER, LYNX)
    votes = [vote(n, 1 if n < 40 else 2 if n < 50 else 0, three) for n in range(60)]
    found = rate([*votes, vote(60, TIE, three), vote(61, BAD, three)])
    assert found.names == ("base", "otter", "lynx") and found.strengths[0] == 0
    assert found.strengths[1] == pytest.approx(math.log(41 / 11), abs=0.1)  # one vote a column more than was given
    assert found.pair(0, 1).winner == 1 and found.pair(1, 2).winner == 1 and found.pair(0, 2).winner is None
    assert (found.ties, found.bad, found.votes) == (1, 1, 62)
    assert (
        "otter is preferred to base, lynx." in found.sentence and "1 pair of columns cannot be told" in found.sentence
    )


def test_a_clean_sweep_stays_finite_and_uncertain() -> None:
    found = rate([vote(n, 1, (BASE, OTTER, LYNX)) for n in range(10)])
    assert all(math.isfinite(strength) for strength in found.strengths)
    pair = found.pair(0, 1)
    assert 0.6 < pair.low < 0.85 and 0.85 < pair.share < pair.high < 1
    assert pair.winner == 1 and found.pair(0, 2).winner is None


def test_all_bad_moves_no_rating() -> None:
    three = (BASE, OTTER, LYNX)
    votes = [vote(n, n % 3, three) for n in range(9)]
    with_bad = rate([*votes, *(vote(n, BAD, three) for n in range(9, 30))])
    assert with_bad.strengths == pytest.approx(rate(votes).strengths) and with_bad.bad == 21


def test_ties_pull_together() -> None:
    three = (BASE, OTTER, LYNX)
    votes = [vote(n, 1, three) for n in range(10)]
    tied = rate([*votes, *(vote(n, TIE, three) for n in range(10, 30))])
    assert 0 < tied.strengths[1] < rate(votes).strengths[1]


def test_contests_of_different_columns_are_rated_together() -> None:
    found = rate([vote(n, 1) for n in range(8)] + [vote(n, 1, (BASE, LYNX)) for n in range(8, 16)])
    assert found.names == ("base", "otter", "lynx")
    assert found.strengths[1] == pytest.approx(found.strengths[2], abs=0.01) and found.strengths[1] > 1
    assert found.pair(1, 2).wins == (0, 0) and found.pair(1, 2).winner is None
