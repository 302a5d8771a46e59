"""The numbers of one experiment, each with what it is and how it was obtained."""

from collections.abc import Iterator
from statistics import median

from qlora_gui.evaluation.results import TEXTS, BothTexts, Evaluation
from qlora_gui.report.facts import Experiment, Figure
from qlora_gui.report.text import interval
from qlora_gui.runs.curves import by_step
from qlora_gui.runs.event_text import clock


def collect(experiment: Experiment) -> list[Figure]:
    """Memory, time, losses while training, and what an evaluation measured, base -> adapter."""
    evaluated = _evaluated(experiment.evaluation) if experiment.evaluation else ()
    return [*experiment.memory, *_time(experiment), *_held_out(experiment), *evaluated]


def _time(experiment: Experiment) -> Iterator[Figure]:
    seconds = experiment.ending.get("seconds")
    if isinstance(seconds, (int, float)):
        yield Figure("time", clock(seconds), "measured", "from the start of the training process to its end")
    speeds = [event.get("tokens_per_second") for event in by_step(experiment.events, "step")]
    rates = sorted(rate for rate in speeds if isinstance(rate, (int, float)))
    if rates:
        yield Figure(
            "tokens a second",
            f"{median(rates):,.0f}",
            "measured",
            f"median of {experiment.of_all(len(rates), 'step')} logged steps",
        )


def _held_out(experiment: Experiment) -> Iterator[Figure]:
    """The losses measured while training; an evaluation may have measured fewer rows, and weighs each row the same."""
    measurements = experiment.held_out()
    if measurements:
        ends = [measurements[0], measurements[-1]] if len(measurements) > 1 else measurements
        values = " → ".join(f"{event['loss']:.3f} (step {event['step']})" for event in ends)
        tokens = measurements[-1].get("tokens")
        on = f"{tokens:,} held-out tokens, each weighing the same" if isinstance(tokens, int) else "held-out rows"
        yield Figure("held-out loss while training", values, "measured", f"nats a token, on {on}")


def _evaluated(evaluation: Evaluation) -> Iterator[Figure]:
    loss, on = evaluation.loss, f"{evaluation.data.rows:,} rows ({evaluation.data.source})"
    yield _pair("held-out loss", loss.base, loss.adapter, ".3f", f"nats a token, mean of {on}")
    yield Figure(
        "its difference, with a 95% interval",
        f"{loss.difference:+.3f} {interval(loss.low, loss.high, sign=True)}",
        "estimated",
        f"BCa bootstrap of paired differences; p = {loss.p_holm:.2g} by sign-flip permutation, corrected (Holm)",
    )
    if evaluation.eos:
        yield _pair(
            "P(end mark) where references end", evaluation.eos.base, evaluation.eos.adapter, ".0%", f"mean of {on}"
        )
    if evaluation.general:
        yield _pair(
            "loss on general text",
            evaluation.general.base,
            evaluation.general.adapter,
            ".3f",
            "nats a token, a shipped text",
        )
    if evaluation.dependence:
        how = "nats a token: loss after another row's prompt less that after its own"
        yield _pair(
            "what the prompt says of the answer", evaluation.dependence.base, evaluation.dependence.adapter, ".3f", how
        )
    drift = f"KL(adapter || base) on the same text; {evaluation.drift.same:.0%} of the greedy answers are the same"
    yield Figure("drift from the base", f"{evaluation.drift.kl:.3f} nats a token", "measured", drift)
    if evaluation.texts:
        yield from _answers(evaluation.texts)


def _answers(texts: BothTexts) -> Iterator[Figure]:
    for key, name, style in TEXTS:
        base, adapter = getattr(texts.base, key), getattr(texts.adapter, key)
        if base is not None and adapter is not None:
            yield _pair(name, base, adapter, style, f"{texts.adapter.answers} greedy answers each")


def _pair(what: str, base: float, adapter: float, style: str, how: str) -> Figure:
    return Figure(f"{what}, base → adapter", f"{base:{style}} → {adapter:{style}}", "measured", how)
