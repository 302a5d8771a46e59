"""Verdicts and their words: better, worse, or not enough evidence; and the one of an evaluation with its numbers."""

from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["better", "worse", "unclear"]
LABELS: dict[str, str] = {"better": "better", "worse": "worse", "unclear": "not enough evidence"}
NOT_ENOUGH = LABELS["unclear"].capitalize()
_BROKEN_END, _BROKEN_REPEAT, _BROKEN_EMPTY = (
    0.2,
    0.2,
    0.1,
)  # worse than the base by so much is broken, whatever the loss


def decide(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """`kind` and `text` of an evaluation (the dict that evaluation.json holds, without its verdict).

    Better or worse needs an interval of the held-out loss that excludes zero and a p-value, corrected for the adapters
    evaluated together, below 5%. A lower loss does not count as better when answers broke, or depend less on their
    prompts than the base's: such an adapter learned what answers look like and not what they answer.
    """
    loss, texts = evaluation["loss"], evaluation["texts"]
    low, high = loss["low"], loss["high"]
    figures = f"loss {loss['difference']:+.2f} [{low:+.2f}, {high:+.2f}] on {loss['rows']} held-out rows"
    ends = _ends(texts)
    sure = loss["p_holm"] < 0.05
    broken, dependence = _broken(texts), evaluation.get("dependence")
    if sure and low > 0:
        return _verdict("worse", f"Worse: {figures}{ends}.")
    if sure and high < 0:
        if broken:
            return _verdict("worse", f"Worse in use: {figures}, but {broken}.")
        if dependence and dependence["high"] < 0:
            return _verdict(
                "unclear",
                f"{NOT_ENOUGH}: {figures}, but its answers depend less on the prompt than the base's "
                f"({dependence['adapter']:.2f} against {dependence['base']:.2f} nats per token): "
                "it learned what answers look like, not what they answer.",
            )
        return _verdict("better", f"Better on the task: {figures}{ends}.")
    if broken:
        return _verdict("worse", f"Worse in use: {broken}; {figures}.")
    return _verdict("unclear", f"{NOT_ENOUGH}: {figures}{ends}. More held-out rows would tell.")


def sentence(kind: Kind, subject: str, other: str) -> str:
    """A verdict on something beside something else, as a part of a sentence."""
    if kind == "unclear":
        return f"there is {LABELS[kind]} that {subject} is better than {other}"
    return f"{subject} is {LABELS[kind]} than {other}"


def _verdict(kind: Kind, text: str) -> dict[str, str]:
    return {"kind": kind, "text": text}


def _ends(texts: Mapping[str, Any] | None) -> str:
    if not texts:
        return ""
    base, adapter = texts["base"]["ended_by_eos"], texts["adapter"]["ended_by_eos"]
    return f"; answers end properly {adapter:.0%} (base {base:.0%})"


def _broken(texts: Mapping[str, Any] | None) -> str:
    """What is wrong with the adapter's answers beside the base's; "" where nothing is."""
    if not texts:
        return ""
    base, adapter = texts["base"], texts["adapter"]
    faults = []
    if base["ended_by_eos"] - adapter["ended_by_eos"] > _BROKEN_END:
        faults.append(
            f"only {adapter['ended_by_eos']:.0%} of its answers end properly (base {base['ended_by_eos']:.0%})"
        )
    if adapter["rep4"] - base["rep4"] > _BROKEN_REPEAT:
        faults.append(f"{adapter['rep4']:.0%} of what it writes is repetition (base {base['rep4']:.0%})")
    if adapter["empty"] - base["empty"] > _BROKEN_EMPTY:
        faults.append(f"{adapter['empty']:.0%} of its answers are empty (base {base['empty']:.0%})")
    return " and ".join(faults)
