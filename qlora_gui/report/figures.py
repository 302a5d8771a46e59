"""The numbers of one experiment, each with what it is and how it was come by."""

from collections.abc import Iterator
from statistics import median

from qlora_gui.evaluation.results import TEXTS, BothTexts, Evaluation
from qlora_gui.report.facts import Experiment, Figure
from qlora_gui.report.text import interval
from qlora_gui.runs.curves import by_step
from qlora_gui.runs.event_text import clock


def of(one: Experiment) -> list[Figure]:
    """Memory, time, losses while training, and what an evaluation measured, base -> adapter."""
    evaluated = _evaluated(one.evaluation) if one.evaluation else ()
    return [*one.memory, *_time(one), *_held_out(one), *evaluated]


def _time(one: Experiment) -> Iterator[Figure]:
    seconds = one.ending.get("seconds")
    if isinstance(seconds, (int, float)):
        yield Figure("time", clock(seconds), "measured", "from the start of the training process to its end")
    told = [event.get("tokens_per_second") for event in by_step(one.events, "step")]
    rates = sorted(rate for rate in told if isinstance(rate, (int, float)))
    if rates:
        yield Figure(
            "tokens a second",
            f"{median(rates):,.0f}",
            "measured",
            f"median of {one.of_all(len(rates), 'step')} logged steps",
        )


def _held_out(one: Experiment) -> Iterator[Figure]:
    """The losses measured while training; an evaluation may have measured fewer rows, and weighs each row the same."""
    found = one.held_out()
    if found:
        ends = [found[0], found[-1]] if len(found) > 1 else found
        values = " → ".join(f"{event['loss']:.3f} (step {event['step']})" for event in ends)
        tokens = found[-1].get("tokens")
        on = f"{tokens:,} held-out tokens, each weighing the same" if isinstance(tokens, int) else "held-out rows"
        yield Figure("held-out loss while training", values, "measured", f"nats a token, on {on}")


def _evaluated(found: Evaluation) -> Iterator[Figure]:
    loss, on = found.loss, f"{found.data.rows:,} rows ({found.data.source})"
    yield _pair("held-out loss", loss.base, loss.adapter, ".3f", f"nats a token, mean of {on}")
    yield Figure(
        "its difference, with a 95% interval",
        f"{loss.difference:+.3f} {interval(loss.low, loss.high, sign=True)}",
        "estimated",
        f"BCa bootstrap of paired differences; p = {loss.p_holm:.2g} by sign-flip permutation, corrected (Holm)",
    )
    if found.eos:
        yield _pair("P(end mark) where references end", found.eos.base, found.eos.adapter, ".0%", f"mean of {on}")
    if found.general:
        yield _pair(
            "loss on general text", found.general.base, found.general.adapter, ".3f", "nats a token, a shipped text"
        )
    if found.dependence:
        how = "nats a token: loss after another row's prompt less that after its own"
        yield _pair("what the prompt says of the answer", found.dependence.base, found.dependence.adapter, ".3f", how)
    drift = f"KL(adapter || base) on the same text; {found.drift.same:.0%} of the greedy answers are the same"
    yield Figure("drift from the base", f"{found.drift.kl:.3f} nats a token", "measured", drift)
    if found.texts:
        yield from _answers(found.texts)


def _answers(texts: BothTexts) -> Iterator[Figure]:
    for key, name, style in TEXTS:
        base, adapter = getattr(texts.base, key), getattr(texts.adapter, key)
        if base is not None and adapter is not None:
            yield _pair(name, base, adapter, style, f"{texts.adapter.answers} greedy answers each")


def _pair(what: str, base: float, adapter: float, style: str, how: str) -> Figure:
    return Figure(f"{what}, base → adapter", f"{base:{style}} → {adapter:{style}}", "measured", how)
