"""The metrics of an evaluation, one row each in METRICS, and what they compute from the measurements of one candidate."""

import json
import statistics
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

COPIED_WORDS = 8  # a run of words this long is no coincidence
_SMALL = 40  # characters: shorter texts do not compress, whatever they say


@dataclass(frozen=True)
class Side:
    """What was measured of one candidate: the base, or an adapter.

    `losses`: nats per token, one per example. `gains`: loss of an answer after another row's prompt minus after its own,
    nats per token, one per row. `ends`: P(end mark) where a reference ends. `general`: loss on the general text.

    The rest has one entry per greedy answer: its text, how it `ended` (eos, stop string, length or stopped), its length
    in `tokens`, and its reference, None where there is none. `trained_on` are the `grams` of the training answers.
    """

    losses: Sequence[float] = ()
    gains: Sequence[float] = ()
    ends: Sequence[float] = ()
    general: float | None = None
    answers: Sequence[str] = ()
    ended: Sequence[str] = ()
    tokens: Sequence[int] = ()
    references: Sequence[str | None] = ()
    trained_on: Collection[tuple[str, ...]] = ()

    @cached_property
    def pairs(self) -> list[tuple[str, str]]:
        """Answers with their references, where there are references."""
        zipped = zip(self.answers, self.references, strict=True)
        return [(answer, known) for answer, known in zipped if known is not None]


@dataclass(frozen=True)
class Metric:
    """One row of METRICS.

    `compute` gives the number of one candidate, None where there is none; a sequence, one number per row, stands for
    its mean, and the difference to the base's is then stored with an interval. `of_answers`: computed from greedy answers,
    and stored under "texts"; others are a part of evaluation.json each. `how` says how it was obtained, with {rows}.
    """

    key: str
    label: str
    unit: str
    format: str
    better: Literal["higher", "lower", "neither"]
    compute: Callable[[Side], float | Sequence[float] | None]
    of_answers: bool = True
    how: str = "{answers} greedy answers each"

    @property
    def title(self) -> str:
        """The label with its unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def direction(self) -> str:
        """Which of two values is better, in words; "" where neither is."""
        return "" if self.better == "neither" else f"{self.better} is better"

    def text(self, value: float) -> str:
        """A value as it is shown."""
        return format(value, self.format)


def measure_answers(side: Side) -> dict[str, Any]:
    """The number of answers, and the metrics that are computed from them."""
    return {"answers": len(side.answers)} | {
        metric.key: metric.compute(side) for metric in METRICS if metric.of_answers
    }


def share(marks: Sequence[bool]) -> float:
    """How many of the marks are set, 0 to 1; 0 of none."""
    return sum(marks) / len(marks) if marks else 0.0


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of no values."""
    return statistics.fmean(values) if values else 0.0


def repetition(text: str, size: int = 4) -> float:
    """rep-n (Welleck et al. 2019, 1908.04319): 1 - unique / all n-grams of words. 0 means no repetition."""
    ngrams = _grams(text.split(), size)
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def distinct(texts: Sequence[str], size: int) -> float:
    """distinct-n (Li et al. 2016, 1510.03055): unique / all n-grams of words over all texts together."""
    ngrams = [gram for text in texts for gram in _grams(text.split(), size)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def compression(text: str) -> float:
    """Bytes / bytes after zlib: about 2 for prose, far more for a loop."""
    body = text.encode()
    return len(body) / len(zlib.compress(body, 9)) if body else 0.0


def grams(texts: Sequence[str]) -> set[tuple[str, ...]]:
    """All runs of COPIED_WORDS words, to look answers up in."""
    return {gram for text in texts for gram in _grams(text.split(), COPIED_WORDS)}


def copied(text: str, known: Collection[tuple[str, ...]]) -> float:
    """The share of a text's words that stand in a long run which also stands in the training answers."""
    words = text.split()
    inside = [False] * len(words)
    for place, gram in enumerate(_grams(words, COPIED_WORDS)):
        if gram in known:
            inside[place : place + COPIED_WORDS] = [True] * COPIED_WORDS
    return share(inside)


def chrf(side: Side) -> float | None:
    """chrF (Popovic 2015) of answers against references by sacrebleu, 0 to 100, over the corpus."""
    if not side.pairs:
        return None
    from sacrebleu.metrics import CHRF

    answers, references = zip(*side.pairs, strict=True)
    return float(CHRF().corpus_score(answers, [references]).score)


def rouge_l(side: Side) -> float | None:
    """ROUGE-L F1 (Lin 2004) by rouge-score, 0 to 1, mean over the pairs."""
    if not side.pairs:
        return None
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return mean([float(scorer.score(known, answer)["rougeL"].fmeasure) for answer, known in side.pairs])


def exact(side: Side) -> float | None:
    """The share of answers that are their reference."""
    return share([answer.strip() == known.strip() for answer, known in side.pairs]) if side.pairs else None


def json_valid(side: Side) -> float | None:
    """The share of answers that are JSON where their reference is."""
    marks = [is_json(answer) for answer, known in side.pairs if is_json(known)]
    return share(marks) if marks else None


def is_json(text: str) -> bool:
    """Whether a text is one JSON object or array."""
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[place : place + size]) for place in range(len(words) - size + 1)]


def _each(count: Callable[[str], float], least: int = 0) -> Callable[[Side], float]:
    """The mean of something counted in each answer of at least so many characters."""
    return lambda side: mean([count(answer) for answer in side.answers if len(answer) >= least])


def _ended(*ways: str) -> Callable[[Side], float]:
    """The share of answers that ended in one of these ways."""
    return lambda side: share([end in ways for end in side.ended])


# Of the rows first, then of the answers: key, label, unit, format, which is better, and the function that computes it.
METRICS: tuple[Metric, ...] = (
    Metric(
        "loss",
        "held-out loss",
        "nats per token",
        ".3f",
        "lower",
        lambda side: side.losses,
        of_answers=False,
        how="mean of {rows}",
    ),
    Metric(
        "dependence",
        "dependence on the prompt",
        "nats",
        ".3f",
        "higher",
        lambda side: side.gains,
        of_answers=False,
        how="per token: loss after another row's prompt less that after its own",
    ),
    Metric(
        "eos",
        "P(end mark) where the reference ends",
        "",
        ".0%",
        "higher",
        lambda side: mean(side.ends) if side.ends else None,
        of_answers=False,
        how="mean of {rows}",
    ),
    Metric(
        "general",
        "loss on general text",
        "nats per token",
        ".3f",
        "lower",
        lambda side: side.general,
        of_answers=False,
        how="a shipped text",
    ),
    Metric("ended_by_eos", "answers that end by themselves", "", ".0%", "higher", _ended("eos", "stop string")),
    Metric("ended_by_length", "answers cut at the length limit", "", ".0%", "lower", _ended("length")),
    Metric("empty", "empty answers", "", ".0%", "lower", _each(lambda answer: not answer.strip())),
    Metric("tokens", "length", "tokens", ".1f", "neither", lambda side: mean(side.tokens)),
    Metric("rep4", "repetition (rep-4)", "", ".3f", "lower", _each(repetition)),
    Metric("distinct1", "distinct-1", "", ".3f", "higher", lambda side: distinct(side.answers, 1)),
    Metric("distinct2", "distinct-2", "", ".3f", "higher", lambda side: distinct(side.answers, 2)),
    Metric("compression", "compression ratio", "", ".2f", "lower", _each(compression, _SMALL)),
    Metric(
        "copied",
        "copied from the training answers",
        "",
        ".1%",
        "neither",
        lambda side: mean([copied(answer, side.trained_on) for answer in side.answers]),
    ),
    Metric("chrf", "chrF against the references", "", ".1f", "higher", chrf),
    Metric("rouge_l", "ROUGE-L", "", ".3f", "higher", rouge_l),
    Metric("exact", "exact matches", "", ".0%", "higher", exact),
    Metric("json_valid", "valid JSON where the reference is", "", ".0%", "higher", json_valid),
)
