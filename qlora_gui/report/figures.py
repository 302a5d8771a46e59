"""The numbers of one experiment, each with what it is and how it was obtained."""

from collections.abc import Iterator
from statistics import median

from qlora_gui import formatting
from qlora_gui.evaluation.results import Evaluation
from qlora_gui.report import comparability
from qlora_gui.report.facts import Experiment, Figure
from qlora_gui.runs.events import Step


def collect(experiment: Experiment) -> list[Figure]:
    """Memory, time, losses while training, and what an evaluation measured, base -> adapter."""
    evaluated = _evaluated(experiment.evaluation) if experiment.evaluation else ()
    return [*experiment.memory, *_time(experiment), *_held_out(experiment), *evaluated]


def _time(experiment: Experiment) -> Iterator[Figure]:
    seconds = experiment.ending.seconds
    if seconds is not None:
        yield Figure("time", formatting.clock(seconds), "measured", "from the start of the training process to its end")
    speeds = [event.tokens_per_second for event in experiment.history.by_step(Step)]
    rates = sorted(rate for rate in speeds if rate is not None)
    if rates:
        yield Figure(
            "tokens per second",
            f"{median(rates):,.0f}",
            "measured",
            f"median of {experiment.of_all(len(rates), 'step')} logged steps",
        )


def _held_out(experiment: Experiment) -> Iterator[Figure]:
    """The losses measured while training; an evaluation may have measured fewer rows, and weighs each row the same."""
    measurements = experiment.history.held_out()
    if measurements:
        ends = [measurements[0], measurements[-1]] if len(measurements) > 1 else measurements
        values = " → ".join(f"{loss:.3f} (step {step})" for step, loss in ends)
        tokens, _ = comparability.tokens_of(experiment)
        on = f"{tokens:,} held-out tokens, each weighing the same" if tokens is not None else "held-out rows"
        yield Figure("held-out loss while training", values, "measured", f"nats per token, on {on}")


def _evaluated(evaluation: Evaluation) -> Iterator[Figure]:
    """Every metric that was measured, the interval of the loss, and the drift."""
    loss, on = evaluation.loss, f"{evaluation.data.rows:,} rows ({evaluation.data.source})"
    answers = evaluation.texts.count if evaluation.texts else 0
    for metric, sides in evaluation.figures():
        values = f"{metric.text(sides.base)} → {metric.text(sides.adapter)}"
        how = metric.how.format(rows=on, answers=answers) + (f"; {metric.direction}" if metric.direction else "")
        yield Figure(f"{metric.title}, base → adapter", values, "measured", how)
        if metric.key == "loss":
            yield Figure(
                "its difference, with a 95% interval",
                formatting.difference(loss.difference, loss.low, loss.high),
                "estimated",
                f"BCa bootstrap of paired differences; p = {loss.p_holm:.2g} by sign-flip permutation, corrected (Holm)",
            )
    if drift := evaluation.drift:
        how = f"KL(adapter || base) on the same text; {drift.same:.0%} of the greedy answers are the same"
        yield Figure("drift from the base", f"{drift.kl:.3f} nats per token", "measured", how)
