"""Observations: statements computed from the facts, each with its evidence; nothing that the data does not support."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import median

from qlora_gui.evaluation import verdict
from qlora_gui.evaluation.results import Evaluation
from qlora_gui.formatting import counted, difference
from qlora_gui.report import comparability, preferences, sweeps
from qlora_gui.report.facts import Experiment, Facts, Observation
from qlora_gui.report.text import and_, begun, called, knob, shortened
from qlora_gui.runs.events import Memory

_REASONS = 2  # findings repeated in an observation


def derive(facts: Facts) -> list[tuple[str, list[Observation]]]:
    """Everything that can be stated about these experiments, by topic; topics without a statement are left out."""
    runs = facts.experiments
    topics = {
        "Against the base": [*_against_base(runs)],
        "Among each other": [
            *_among_evaluated(runs),
            *_by_one_knob(runs),
            *sweeps.observations(runs),
            *_while_training(runs),
            *_not_comparable(runs),
        ],
        "Votes": [*preferences.observations(facts)],
        "Memory and failures": [*_memory(runs), *_failures(runs)],
    }
    return [(topic, statements) for topic, statements in topics.items() if statements]


def _against_base(experiments: Sequence[Experiment]) -> Iterator[Observation]:
    """Each evaluated adapter, the largest gain first; how many were not evaluated."""
    evaluated = [(experiment, experiment.evaluation) for experiment in experiments if experiment.evaluation]
    for experiment, evaluation in sorted(evaluated, key=lambda pair: pair[1].loss.difference):
        yield Observation(
            begun(f"{verdict.sentence(evaluation.verdict.kind, experiment.id, f'its base, {experiment.model}')}."),
            f"{evaluation.verdict.text} (Measured, the interval estimated; p = {evaluation.loss.p_holm:.2g}; {evaluation.data.source}.)"
            + _why(experiment, evaluation),
        )
    left_out = [experiment.id for experiment in experiments if experiment.has_adapter and not experiment.evaluation]
    if left_out:
        yield Observation(
            f"Whether {and_(left_out)} {'is' if len(left_out) == 1 else 'are'} better than the base is not known.",
            "Not evaluated.",
        )


def _why(experiment: Experiment, evaluation: Evaluation) -> str:
    """The findings against an adapter that is not better, the worst first."""
    if evaluation.verdict.kind == "better":
        return ""
    against = [
        shortened(finding.evidence, experiment) for finding in experiment.findings if finding.level in ("bad", "warn")
    ]
    more = f" And {counted(len(against) - _REASONS, 'more warning')}." if len(against) > _REASONS else ""
    if experiment.no_diagnostics:
        return f" Diagnostics: {experiment.no_diagnostics}"
    return f" Diagnostics: {' '.join(against[:_REASONS]) or 'nothing explains it.'}{more}"


def _among_evaluated(experiments: Sequence[Experiment]) -> Iterator[Observation]:
    """The best of the adapters that were evaluated on the same rows against the same base."""
    for group in comparability.evaluated_alike(experiments):
        differ = comparability.differing(group)
        causes = (
            f"They differ in {and_([knob(name) for name in differ])}." if differ else "Their settings are the same."
        )
        if unknown := [experiment.id for experiment in group if experiment.config is None]:
            causes = f"The settings of {and_(unknown)} are not known."
        lead = f"Of the {len(group)} adapters of {group[0].base} evaluated on the same rows, "
        yield _ranked(group, lead, causes)


def _by_one_knob(experiments: Sequence[Experiment]) -> Iterator[Observation]:
    """What a knob does, where it alone differs."""
    for group in comparability.evaluated_alike(experiments):
        for name, family in comparability.families(group):
            if len(family) < len(group):  # else that is the observation before
                values = and_([comparability.settings(experiment)[name] for experiment in family])
                yield _ranked(family, f"Where only {knob(name)} differs ({values}), ")


def _ranked(group: Sequence[Experiment], lead: str, remark: str = "") -> Observation:
    """The best of a group, and which others it can be distinguished from.

    Differences to the same base's losses on the same rows: where two 95% intervals do not touch, the adapters differ by
    more than 1.96 (s1 + s2), which is at least 1.96 standard errors of their difference, however they are correlated.
    """
    ranked = sorted(
        ((experiment, experiment.evaluation.loss) for experiment in group if experiment.evaluation),
        key=lambda pair: pair[1].difference,
    )
    (best, least), *others = ranked
    below = [experiment.id for experiment, loss in others if loss.low > least.high]
    close = [experiment.id for experiment, loss in others if loss.low <= least.high]
    if not below:
        statement = f"{and_([best.id, *close])} cannot be told apart by their loss."
    else:
        statement = f"{best.id} has a lower loss than {and_(below)}"
        statement += f"; it cannot be told apart from {and_(close)}." if close else "."
    if best.evaluation and best.evaluation.verdict.kind != "better":
        statement += f" That alone does not make it useful: {verdict.sentence(best.evaluation.verdict.kind, best.id, 'its base')}."
    figures = [f"{experiment.id} {difference(loss.difference, loss.low, loss.high)}" for experiment, loss in ranked]
    evidence = (
        f"Loss against the base, nats per token (measured), 95% interval (estimated): {'; '.join(figures)}. {remark}"
    )
    return Observation(lead + statement, evidence.strip())


def _while_training(experiments: Sequence[Experiment]) -> Iterator[Observation]:
    """Last held-out losses of runs that no evaluation sets side by side: no interval, so no winner."""
    judged = [{experiment.id for experiment in group} for group in comparability.evaluated_alike(experiments)]
    for group in comparability.same_rows(experiments):
        if any({experiment.id for experiment in group} <= ids for ids in judged):
            continue
        ranked = sorted(group, key=lambda experiment: experiment.history.held_out()[-1][1])
        tokens = comparability.tokens_of(group[0])[0]
        on = f"the same {tokens:,} held-out tokens" if tokens is not None else "the same held-out rows"
        ends = [experiment.history.held_out()[-1] for experiment in ranked]
        figures = [
            f"{experiment.id} {loss:.3f} at step {step}" for experiment, (step, loss) in zip(ranked, ends, strict=True)
        ]
        first, second = (called(*pair) for pair in (ranked[:2], ranked[1::-1]))
        yield Observation(
            f"On {on}, {first} ended at the lowest loss, {ends[0][1]:.3f}; next is {second}, {ends[1][1]:.3f}.",
            f"Nats per token, measured while training: {'; '.join(figures)}. One number each, without an interval: whether they "
            "differ for other rows too is not known.",
        )


def _memory(experiments: Sequence[Experiment]) -> Iterator[Observation]:
    """How far memory plans were off where the longest batch was measured."""
    tried = [(experiment, experiment.history.latest(Memory)) for experiment in experiments]
    offs = [(experiment, memory.measured / memory.predicted - 1) for experiment, memory in tried if memory]
    if not offs:
        return
    worst, most = max(offs, key=lambda pair: abs(pair[1]))
    yield Observation(
        f"Memory was predicted within {abs(most):.0%} of what was measured.",
        f"{len(offs)} of {len(experiments)} runs measured their longest batch on a GPU: median error "
        f"{median(abs(off) for _, off in offs):.0%}, largest {most:+.0%} ({worst.id}).",
    )


def _failures(experiments: Sequence[Experiment]) -> Iterator[Observation]:
    """Runs that gave no adapter, and those of them that ran out of memory."""
    wrong = [experiment for experiment in experiments if experiment.went_wrong]
    if not wrong:
        return
    of_memory = [experiment.id for experiment in wrong if experiment.oom_report]
    statement = (
        f"{len(wrong)} of {len(experiments)} runs did not end well: {and_([experiment.id for experiment in wrong])}."
    )
    yield Observation(
        statement,
        f"Out of memory: {and_(of_memory)}." if of_memory else "None of them is known to have run out of memory.",
    )


def _not_comparable(experiments: Sequence[Experiment]) -> Iterator[Observation]:
    """Runs on the same rows whose bases cut them into other tokens: their losses must not be set side by side."""
    measured = [experiment for experiment in experiments if comparability.rows_of(experiment)]
    for experiment, other in combinations(measured, 2):
        if comparability.base_of(experiment) == comparability.base_of(other) or comparability.rows_of(
            experiment
        ) != comparability.rows_of(other):
            continue
        (tokens, vocabulary), (others, other_vocabulary) = (
            comparability.tokens_of(experiment),
            comparability.tokens_of(other),
        )
        if (tokens, vocabulary) != (others, other_vocabulary):
            yield Observation(
                f"The losses of {experiment.id} and {other.id} cannot be compared with each other.",
                f"They are per token, and the tokenizers of {experiment.base} and {other.base} differ: the same rows are "
                f"{tokens} and {others} tokens to learn (measured), of vocabularies of {vocabulary} and {other_vocabulary}.",
            )
