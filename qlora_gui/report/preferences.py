"""What votes say of the experiments: who is preferred, and where the votes do not show it."""

from collections.abc import Iterator

from qlora_gui.preferences.bradley_terry import Pair, Rating
from qlora_gui.preferences.pairwise import STOPPING, Tally, counted
from qlora_gui.preferences.votes import Column
from qlora_gui.report.facts import Facts, Observation
from qlora_gui.report.text import and_, begun, called, interval
from qlora_gui.report.votes import Field, is_base, judge


def observations(facts: Facts) -> Iterator[Observation]:
    """Every pair that was voted on: who is preferred, where the votes show it."""
    for told in facts.ballots.pairs:
        if told.contest.aa:
            yield Observation("The votes on the base against itself (A/A):", result(told))
        elif sum(told.wins):
            yield _of_two(facts, told)
        else:
            yield Observation(f"The votes on {and_(told.contest.names)} decide nothing.", _besides(told))
    for field in facts.ballots.fields:
        for pair in field.rating.pairs:
            if pair.winner is not None:
                yield _of_several(facts, field, pair)
        if not any(pair.winner is not None for pair in field.rating.pairs):
            yield Observation(f"The votes on {and_(field.rating.names)} show no winner.", result(field.rating))


def result(counted_up: Tally | Rating) -> str:
    """The count's own sentence without the warning about when to stop, which the report gives once."""
    return counted_up.sentence.replace(STOPPING, "").strip()


def _of_two(facts: Facts, told: Tally) -> Observation:
    lead = told.leading if told.winner is None else told.winner
    first, second = _called_both(facts, told.contest.columns[lead], told.contest.columns[1 - lead])
    low, high = (told.low, told.high) if lead else (1 - told.high, 1 - told.low)
    figures = f"votes {told.wins[lead]}-{told.wins[1 - lead]}, 95% interval {interval(low, high)}"
    if told.winner is None:
        more = f" About {counted(told.more, 'more vote')} would show a 65/35 preference." if told.more else ""
        said = f"No preference between {first} and {second} is shown: {figures}."
        return Observation(said, _besides(told) + more)
    return Observation(begun(f"{first} beat {second}: {figures}."), _besides(told))


def _besides(told: Tally) -> str:
    lengths = " and ".join(f"{tokens:.0f}" for tokens in told.tokens)
    return (
        f"Votes by {judge(told.contest)} on {counted(told.prompts, 'prompt')} (counted), with {counted(told.ties, 'tie')} "
        f"and {told.bad} times all bad beside them; Wilson interval (estimated), p = {told.p:.2g} by the exact sign test. "
        f"Answers of {and_(told.contest.names)} were {lengths} tokens long on average."
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
        f"the interval is of the chance to be found better, by Bradley-Terry and bootstrap over prompts (estimated); "
        f"p = {pair.p_holm:.2g}, corrected for {counted(len(field.rating.pairs), 'pair')}.",
    )


def _called_both(facts: Facts, one: Column, other: Column) -> tuple[str, str]:
    """Two columns of a vote in words: runs by what makes them differ, the base by its name."""
    if not is_base(one) and not is_base(other):
        first, second = facts.of(one.name), facts.of(other.name)
        return called(first, second), called(second, first)
    trained = facts.of(other.name if is_base(one) else one.name)
    base = f"the base {trained.model}"
    return (base, trained.id) if is_base(one) else (trained.id, base)
