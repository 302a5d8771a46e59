"""From what the worker measured to an evaluation: paired differences with intervals, shares, drift, and a verdict."""

import statistics as plain
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from qlora_gui.evaluation import metrics, stats, verdict
from qlora_gui.evaluation.metrics import Metric, Side
from qlora_gui.inference import protocol

T = TypeVar("T")


def _or_missing(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """A part of a file that is damaged counts as one that is missing."""
    try:
        return validate(value)
    except ValidationError:
        return None


Known = Annotated[T | None, WrapValidator(_or_missing)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Sides(_Part):
    """A value of the base and one of the adapter."""

    base: float
    adapter: float


class Paired(Sides):
    """Means of values per row; `difference` is adapter - base, with its 95% interval and p."""

    difference: float
    low: float
    high: float
    p: float | None = None
    rows: int


class Loss(Paired):
    """Held-out losses, nats per token; `p_holm` is p, corrected for the adapters evaluated together."""

    p_holm: float


class General(Sides):
    """Losses on the general text, nats per token, and how many tokens it is."""

    tokens: int | None = None


class Answers(_Part):
    """The metrics of either side's greedy answers, by key, with their number as `answers`."""

    base: dict[str, Known[float]]
    adapter: dict[str, Known[float]]

    @property
    def count(self) -> int:
        """How many answers the adapter gave."""
        return int(self.adapter.get("answers") or 0)


class Drift(_Part):
    """How far the adapter went from its base: KL in nats per token, the median first token that differs, equal answers."""

    kl: float
    first_divergence: float | None = None
    same: float


class Adapter(_Part):
    name: str
    sha256: str | None = None


class Base(_Part):
    revision: str | None = None
    fingerprint: str | None = None
    quantization: str | None = None
    template: str | None = None


class Data(_Part):
    source: str
    rows: int
    tokens: int


class Verdict(_Part):
    kind: verdict.Kind
    text: str


class Example(_Part):
    """A prompt with the data's own answer, the base's and the adapter's."""

    prompt: str
    reference: str
    base: str
    adapter: str


class Evaluation(_Part):
    """An evaluation.json. Parts that were not measured, or cannot be read, are None.

    Besides the parts named here, each metric of rows is a part under its key.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Known[Sides]]

    made: float
    adapter: Adapter
    base: Known[Base] = None
    data: Data
    loss: Loss
    dependence: Known[Paired] = None
    texts: Known[Answers] = None
    eos: Known[Sides] = None
    drift: Known[Drift] = None
    general: Known[General] = None
    adapter_facts: Known[dict[str, Any]] = None
    verdict: Verdict
    examples: Known[tuple[Example, ...]] = None

    def sides(self, metric: Metric) -> Sides | None:
        """What a metric is for base and adapter; None where it was not measured."""
        if not metric.of_answers:
            part = getattr(self, metric.key, None)
            return part if isinstance(part, Sides) else None
        pair = (self.texts.base.get(metric.key), self.texts.adapter.get(metric.key)) if self.texts else (None, None)
        return None if None in pair else Sides(base=pair[0], adapter=pair[1])  # type: ignore[arg-type]

    def figures(self) -> Iterator[tuple[Metric, Sides]]:
        """Every metric that was measured, in the order of METRICS."""
        for metric in metrics.METRICS:
            if sides := self.sides(metric):
                yield metric, sides

    def parts(self) -> dict[str, Any]:
        """All parts as mappings, as evaluation.json has them."""
        return self.model_dump()


def parse(content: Any) -> Evaluation | None:
    """The content of an evaluation.json; None where that is damaged or of another version."""
    try:
        return Evaluation(**content)
    except (ValidationError, TypeError):
        return None


SCHEMA = 1
RESAMPLES = 9_999
EXAMPLES = 5


@dataclass
class Measured:
    """The worker's events, sorted: `rows` and `foreign` by number of the row, the base's column first in every list."""

    facts: list[dict[str, Any]] = field(default_factory=list)
    about: protocol.Rows = field(init=False, repr=False)
    rows: dict[int, protocol.Measured] = field(default_factory=dict)
    foreign: dict[int, protocol.Foreign] = field(default_factory=dict)  # by the row whose answer it is
    general: protocol.General | None = None

    def take(self, event: protocol.Event) -> None:
        """Keep one event."""
        if isinstance(event, protocol.Facts):
            self.facts = event.adapters
        elif isinstance(event, protocol.Rows):
            self.about = event
        elif isinstance(event, protocol.Measured):
            self.rows[event.number] = event
        elif isinstance(event, protocol.Foreign):
            self.foreign[event.row] = event
        elif isinstance(event, protocol.General):
            self.general = event

    def tokens(self, number: int) -> int:
        """Supervised tokens of a row."""
        return self.about.tokens[number]

    def of_row(self, number: int) -> int:
        """The row of the data that a number stands for."""
        return self.about.rows[number]


def put_together(
    measured: Measured,
    columns: Sequence[Mapping[str, Any]],
    trained_on: Sequence[set[tuple[str, ...]]],
    source: str,
    settings: Mapping[str, Any],
    resamples: int = RESAMPLES,
) -> list[dict[str, Any]]:
    """One evaluation per adapter, as its evaluation.json holds it.

    `columns` are the worker's proofs, the base's first; `trained_on` the n-grams (`metrics.grams`) of each adapter's training answers.
    """
    numbers, seed = sorted(measured.rows), settings["seed"]
    evaluations: list[dict[str, Any]] = []
    for column in range(1, len(columns)):
        base, adapter = (_side(measured, numbers, which, trained_on[column - 1]) for which in (0, column))
        parts = {
            metric.key: _compared(metric, base, adapter, resamples, seed)
            for metric in metrics.METRICS
            if not metric.of_answers
        }
        if parts["general"] and measured.general:
            parts["general"]["tokens"] = measured.general.tokens
        evaluations.append(
            {
                "schema": SCHEMA,
                "made": round(time.time(), 3),
                "adapter": {"name": columns[column]["name"], "sha256": columns[column].get("sha256")},
                "base": _base(columns[0]),
                "data": {
                    "source": source,
                    "rows": len(base.losses),
                    "tokens": sum(measured.tokens(number) for number in numbers),
                },
                "settings": {**settings, "resamples": resamples},
                **parts,
                "texts": _texts(base, adapter) if adapter.answers else None,
                "drift": _drift(measured, numbers, column),
                "adapter_facts": {**measured.facts[column - 1], "double_bos": measured.about.double_bos},
                "examples": _examples(measured, numbers, column),
            }
        )
    corrected = stats.holm([evaluation["loss"]["p"] for evaluation in evaluations])
    for evaluation, p in zip(evaluations, corrected, strict=True):
        evaluation["loss"]["p_holm"] = p
        evaluation["verdict"] = verdict.decide(evaluation)
    return evaluations


def _side(measured: Measured, numbers: Sequence[int], column: int, trained_on: set[tuple[str, ...]]) -> Side:
    """The measurements of one column."""
    answered = [row for number in numbers if (row := measured.rows[number]).text is not None]
    texts, ended, tokens = ([getattr(row, key)[column] for row in answered] for key in ("text", "ended", "tokens"))
    return Side(
        losses=_losses(measured, numbers, column),
        gains=_gains(measured, column),
        ends=[chances[column] for number in numbers if (chances := measured.rows[number].eos)],
        general=measured.general.loss[column] if measured.general else None,
        answers=texts,
        ended=ended,
        tokens=tokens,
        references=[measured.about.references[row.number] or None for row in answered],
        trained_on=trained_on,
    )


def _compared(metric: Metric, base: Side, adapter: Side, resamples: int, seed: int) -> dict[str, Any] | None:
    """A metric of base and adapter; of one that has a number per row also the mean difference with its interval."""
    its, mine = metric.compute(base), metric.compute(adapter)
    if its is None or mine is None:
        return None
    if not isinstance(its, Sequence) or not isinstance(mine, Sequence):
        return {"base": its, "adapter": mine}
    if len(its) < 2 and metric.key != "loss":  # too few for an interval; of the loss that is an error
        return None
    differences = [after - before for before, after in zip(its, mine, strict=True)]
    paired = stats.paired(differences, resamples=resamples, seed=seed)
    interval = {"difference": paired.mean, "low": paired.low, "high": paired.high, "p": paired.p, "rows": paired.n}
    return {"base": plain.fmean(its), "adapter": plain.fmean(mine)} | interval


def _texts(base: Side, adapter: Side) -> dict[str, Any]:
    return {"base": metrics.measure_answers(base), "adapter": metrics.measure_answers(adapter)}


def _losses(measured: Measured, numbers: Sequence[int], column: int) -> list[float]:
    """Nats per token, one number per example: rows cut from one conversation are not independent."""
    result = []
    for _, group in groupby(sorted(numbers, key=measured.of_row), key=measured.of_row):
        here = list(group)
        tokens = sum(measured.tokens(number) for number in here)
        result.append(sum(measured.rows[number].loss[column] for number in here) / tokens)
    return result


def _base(proof: Mapping[str, Any]) -> dict[str, Any]:
    names = {"name": "base", "revision": "revision", "fingerprint": "base_fingerprint"}
    names |= {"quantization": "quantization", "computed_in": "computed_in", "template": "template"}
    return {name: proof.get(key) for name, key in names.items()}


def _gains(measured: Measured, column: int) -> list[float]:
    """How much each prompt says about its answer: loss of the answer after another row's prompt - after its own, nats per token.

    The mean is an estimate of the mutual information of prompt and answer under the model.
    """
    gains = []
    for number in measured.rows:
        foreign = measured.foreign.get(measured.of_row(number))
        if foreign and foreign.tokens == measured.tokens(number):
            own = measured.rows[number].loss[column]
            gains.append((foreign.loss[column] - own) / measured.tokens(number))
    return gains


def _drift(measured: Measured, numbers: Sequence[int], column: int) -> dict[str, float | None]:
    tokens = sum(measured.tokens(number) for number in numbers)
    kl = sum(measured.rows[number].kl[column] for number in numbers) / tokens
    differs = [row[column] for number in numbers if (row := measured.rows[number].differs) is not None]
    places = [place for place in differs if place is not None]
    return {
        "kl": kl,
        "first_divergence": float(plain.median(places)) if places else None,
        "same": metrics.share([place is None for place in differs]),
    }


def _examples(measured: Measured, numbers: Sequence[int], column: int) -> list[dict[str, str]]:
    answered = [(number, text) for number in numbers if (text := measured.rows[number].text) is not None]
    return [
        {
            "prompt": measured.about.questions[number],
            "reference": measured.about.references[number],
            "base": text[0],
            "adapter": text[column],
        }
        for number, text in answered[:EXAMPLES]
    ]


def lines(evaluation: Evaluation) -> list[str]:
    """An evaluation in words: the verdict, then its figures, base against adapter."""
    output = [f"{evaluation.adapter.name}: {evaluation.verdict.text}"]
    output += [
        f"  {title:44} {base:>10} {adapter:>10}  {better}".rstrip()
        for title, base, adapter, better in (("", "base", "adapter", ""), *rows(evaluation))
    ]
    if drift := evaluation.drift:
        output.append(
            f"  drift from the base: KL {drift.kl:.3f} nats per token; {drift.same:.0%} of the answers are the same"
        )
    return output


def rows(evaluation: Evaluation) -> list[tuple[str, str, str, str]]:
    """(what, base, adapter, which is better) of every metric that was measured."""
    return [
        (metric.title, metric.text(sides.base), metric.text(sides.adapter), metric.direction)
        for metric, sides in evaluation.figures()
    ]
