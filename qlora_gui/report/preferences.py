"""What votes say of the experiments: who is preferred, and where the votes do not show it."""

from collections.abc import Iterator

from qlora_gui.evaluation.verdict import NOT_ENOUGH
from qlora_gui.formatting import counted, interval
from qlora_gui.preferences.bradley_terry import Pair, Rating
from qlora_gui.preferences.pairwise import STOPPING, Tally
from qlora_gui.preferences.votes import Column
from qlora_gui.report.facts import Facts, Observation
from qlora_gui.report.text import and_, begun, called
from qlora_gui.report.votes import Field, is_base, judge


def observations(facts: Facts) -> Iterator[Observation]:
    """Every pair that was voted on: who is preferred, where the votes show it."""
    for tally in facts.ballots.pairs:
        if tally.contest.aa:
            yield Observation("The votes on the base against itself (A/A):", result(tally))
        elif sum(tally.wins):
            yield _of_two(facts, tally)
        else:
            yield Observation(
                f"{NOT_ENOUGH}: every vote on {and_(tally.contest.names)} is a tie or all bad.", _besides(tally)
            )
    for field in facts.ballots.fields:
        for pair in field.rating.pairs:
            if pair.winner is not None:
                yield _of_several(facts, field, pair)
        if not any(pair.winner is not None for pair in field.rating.pairs):
            yield Observation(f"{NOT_ENOUGH} of a preference among {and_(field.rating.names)}.", result(field.rating))


def result(counted_up: Tally | Rating) -> str:
    """The count's own sentence without the warning about when to stop, which the report gives once."""
    return counted_up.sentence.replace(STOPPING, "").strip()


def _of_two(facts: Facts, tally: Tally) -> Observation:
    lead = tally.leading if tally.winner is None else tally.winner
    first, second = _called_both(facts, tally.contest.columns[lead], tally.contest.columns[1 - lead])
    low, high = (tally.low, tally.high) if lead else (1 - tally.high, 1 - tally.low)
    figures = f"votes {tally.wins[lead]}-{tally.wins[1 - lead]}, 95% interval {interval(low, high)}"
    if tally.winner is None:
        more = f" About {counted(tally.more, 'more vote')} would show a 65/35 preference." if tally.more else ""
        statement = f"{NOT_ENOUGH} of a preference between {first} and {second}: {figures}."
        return Observation(statement, _besides(tally) + more)
    return Observation(begun(f"{first} beat {second}: {figures}."), _besides(tally))


def _besides(tally: Tally) -> str:
    lengths = " and ".join(f"{tokens:.0f}" for tokens in tally.tokens)
    return (
        f"Votes by {judge(tally.contest)} on {counted(tally.prompts, 'prompt')} (counted), with {counted(tally.ties, 'tie')} "
        f"and {tally.bad} all bad besides; Wilson interval (estimated), p = {tally.p:.2g} by the exact sign test. "
        f"Answers of {and_(tally.contest.names)} were {lengths} tokens long on average."
    )


def _of_several(facts: Facts, field: Field, pair: Pair) -> Observation:
    assert pair.winner is not None
    loser = pair.first + pair.second - pair.winner
    columns = field.rating.columns
    first, second = _called_both(facts, columns[pair.winner], columns[loser])
    turned = pair.winner == pair.first  # shares are the second's
    low, high = (1 - pair.high, 1 - pair.low) if turned else (pair.low, pair.high)
    wins = pair.wins if turned else pair.wins[::-1]
    return Observation(
        begun(
            f"{first} beat {second}: votes {wins[0]}-{wins[1]} where one of them was chosen, "
            f"95% interval {interval(low, high)}."
        ),
        f"Votes by {judge(field.contest)} on {counted(field.rating.prompts, 'prompt')} (counted), of {len(columns)} columns; "
        f"the interval is for the probability of being preferred, by Bradley-Terry and bootstrap over prompts (estimated); "
        f"p = {pair.p_holm:.2g}, corrected for {counted(len(field.rating.pairs), 'pair')}.",
    )


def _called_both(facts: Facts, column: Column, other: Column) -> tuple[str, str]:
    """Two columns of a vote in words: runs by what makes them differ, the base by its name."""
    if not is_base(column) and not is_base(other):
        first, second = facts.experiment(column.name), facts.experiment(other.name)
        return called(first, second), called(second, first)
    trained = facts.experiment(other.name if is_base(column) else column.name)
    base = f"the base {trained.model}"
    return (base, trained.id) if is_base(column) else (trained.id, base)
