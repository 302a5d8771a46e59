"""From what the worker measured to an evaluation: paired differences with intervals, shares, drift, and a verdict."""

import statistics as plain
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from qlora_gui.evaluation import metrics, stats, verdict

# What is counted in answers: key, name, and how its value is written.
TEXTS = (
    ("ended_by_eos", "answers that end by themselves", ".0%"),
    ("ended_by_length", "answers cut at the length limit", ".0%"),
    ("empty", "empty answers", ".0%"),
    ("tokens", "length, tokens", ".1f"),
    ("rep4", "repetition (rep-4)", ".3f"),
    ("distinct2", "distinct-2", ".3f"),
    ("compression", "compression ratio", ".2f"),
    ("copied", "copied from the training answers", ".1%"),
    ("chrf", "chrF against the references", ".1f"),
    ("rouge_l", "ROUGE-L", ".3f"),
    ("exact", "exact matches", ".0%"),
    ("json_valid", "valid JSON where the reference is", ".0%"),
)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Sides(_Part):
    """A value of the base and one of the adapter."""

    base: float
    adapter: float


class Loss(Sides):
    """Mean held-out losses, nats per token; `difference` is adapter - base, with its 95% interval and corrected p."""

    difference: float
    low: float
    high: float
    p_holm: float
    rows: int


class Texts(_Part):
    """What was counted in one side's greedy answers (`metrics.measure_texts`): shares, means, scores against references."""

    answers: int
    ended_by_eos: float
    empty: float
    rep4: float
    copied: float
    tokens: float
    ended_by_length: float | None = None
    distinct2: float | None = None
    compression: float | None = None
    chrf: float | None = None
    rouge_l: float | None = None
    exact: float | None = None
    json_valid: float | None = None


class BothTexts(_Part):
    base: Texts
    adapter: Texts


class Drift(_Part):
    kl: float
    first_divergence: float | None = None
    same: float


class Adapter(_Part):
    name: str
    sha256: str | None = None


class Base(_Part):
    fingerprint: str | None = None
    quantization: str | None = None


class Data(_Part):
    source: str
    rows: int
    tokens: int


class Verdict(_Part):
    kind: Literal["better", "worse", "unclear"]
    text: str


class Example(_Part):
    """A prompt with the data's own answer, the base's and the adapter's."""

    prompt: str
    reference: str
    base: str
    adapter: str


class Evaluation(_Part):
    """An evaluation.json, as far as page and report show it."""

    made: float
    adapter: Adapter
    base: Base
    data: Data
    loss: Loss
    texts: BothTexts | None = None
    eos: Sides | None = None
    drift: Drift
    general: Sides | None = None
    dependence: Sides | None = None
    verdict: Verdict
    examples: list[Example] = []


SCHEMA = 1
RESAMPLES = 9_999
EXAMPLES = 5
Event = dict[str, Any]


@dataclass
class Measured:
    """The worker's events, sorted: `rows` and `foreign` by number of the row, the base's column first in every list."""

    facts: list[Event] = field(default_factory=list)
    about: Event = field(default_factory=dict)  # the `rows` event
    rows: dict[int, Event] = field(default_factory=dict)
    foreign: dict[int, Event] = field(default_factory=dict)  # by the row whose answer it is
    general: Event = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Keep one event."""
        if event["kind"] == "facts":
            self.facts = event["adapters"]
        elif event["kind"] == "rows":
            self.about = event
        elif event["kind"] == "measured":
            self.rows[event["number"]] = event
        elif event["kind"] == "foreign":
            self.foreign[event["row"]] = event
        elif event["kind"] == "general":
            self.general = event

    def tokens(self, number: int) -> int:
        """Supervised tokens of a row."""
        return int(self.about["tokens"][number])

    def of_row(self, number: int) -> int:
        """The row of the data that a number stands for."""
        return int(self.about["rows"][number])


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
    per_row = _per_row(measured, numbers)
    evaluations: list[dict[str, Any]] = []
    for column in range(1, len(columns)):
        differences = [losses[column] - losses[0] for losses in per_row]
        paired = stats.paired(differences, resamples=resamples, seed=seed)
        evaluations.append(
            {
                "schema": SCHEMA,
                "made": round(time.time(), 3),
                "adapter": {"name": columns[column]["name"], "sha256": columns[column].get("sha256")},
                "base": _base(columns[0]),
                "data": {
                    "source": source,
                    "rows": len(per_row),
                    "tokens": sum(measured.tokens(number) for number in numbers),
                },
                "settings": {**settings, "resamples": resamples},
                "loss": {
                    "base": plain.fmean(losses[0] for losses in per_row),
                    "adapter": plain.fmean(losses[column] for losses in per_row),
                    "difference": paired.mean,
                    "low": paired.low,
                    "high": paired.high,
                    "p": paired.p,
                    "rows": paired.n,
                },
                "dependence": _dependence(measured, column, resamples, seed),
                "texts": _texts(measured, numbers, column, trained_on[column - 1]),
                "eos": _eos(measured, numbers, column),
                "drift": _drift(measured, numbers, column),
                "general": _general(measured, column),
                "adapter_facts": {**measured.facts[column - 1], "double_bos": measured.about["double_bos"]},
                "examples": _examples(measured, numbers, column),
            }
        )
    corrected = stats.holm([evaluation["loss"]["p"] for evaluation in evaluations])
    for evaluation, p in zip(evaluations, corrected, strict=True):
        evaluation["loss"]["p_holm"] = p
        evaluation["verdict"] = verdict.decide(evaluation)
    return evaluations


def _per_row(measured: Measured, numbers: Sequence[int]) -> list[list[float]]:
    """Nats per token of every column, a list per example: rows cut from one conversation are not independent."""
    result = []
    for _, group in groupby(sorted(numbers, key=measured.of_row), key=measured.of_row):
        here = list(group)
        tokens = sum(measured.tokens(number) for number in here)
        sums = zip(*(measured.rows[number]["loss"] for number in here), strict=True)
        result.append([sum(values) / tokens for values in sums])
    return result


def _base(proof: Mapping[str, Any]) -> dict[str, Any]:
    names = {"name": "base", "revision": "revision", "fingerprint": "base_fingerprint"}
    names |= {"quantization": "quantization", "computed_in": "computed_in", "template": "template"}
    return {name: proof.get(key) for name, key in names.items()}


def _dependence(measured: Measured, column: int, resamples: int, seed: int) -> dict[str, Any] | None:
    """How much a prompt says about its answer: loss of the answer after another row's prompt - after its own, nats per token.

    The mean is an estimate of the mutual information of prompt and answer under the model.
    """
    gains = []
    for number in measured.rows:
        foreign = measured.foreign.get(measured.of_row(number))
        if foreign and foreign["tokens"] == measured.tokens(number):
            own, count = measured.rows[number]["loss"], measured.tokens(number)
            gains.append([(foreign["loss"][which] - own[which]) / count for which in (0, column)])
    if len(gains) < 2:
        return None
    paired = stats.paired([adapter - base for base, adapter in gains], resamples=resamples, seed=seed)
    means = [plain.fmean(values) for values in zip(*gains, strict=True)]
    sides = {"base": means[0], "adapter": means[1], "difference": paired.mean}
    return sides | {"low": paired.low, "high": paired.high, "p": paired.p, "rows": paired.n}


def _texts(
    measured: Measured,
    numbers: Sequence[int],
    column: int,
    trained_on: set[tuple[str, ...]],
) -> dict[str, Any] | None:
    answered = [measured.rows[number] for number in numbers if "text" in measured.rows[number]]
    if not answered:
        return None
    known = [measured.about["references"][event["number"]] or None for event in answered]

    def measure(which: int) -> dict[str, Any]:
        answers, ended, tokens = ([event[key][which] for event in answered] for key in ("text", "ended", "tokens"))
        return metrics.measure_texts(answers, ended, tokens, known, trained_on)

    return {"base": measure(0), "adapter": measure(column)}


def _eos(measured: Measured, numbers: Sequence[int], column: int) -> dict[str, float] | None:
    chances = [measured.rows[number]["eos"] for number in numbers if measured.rows[number]["eos"]]
    if not chances:
        return None
    return {
        "base": plain.fmean(chance[0] for chance in chances),
        "adapter": plain.fmean(chance[column] for chance in chances),
    }


def _drift(measured: Measured, numbers: Sequence[int], column: int) -> dict[str, float | None]:
    tokens = sum(measured.tokens(number) for number in numbers)
    kl = sum(measured.rows[number]["kl"][column] for number in numbers) / tokens
    differs = [measured.rows[number]["differs"][column] for number in numbers if "differs" in measured.rows[number]]
    places = [place for place in differs if place is not None]
    return {
        "kl": kl,
        "first_divergence": float(plain.median(places)) if places else None,
        "same": metrics.share([place is None for place in differs]),
    }


def _general(measured: Measured, column: int) -> dict[str, Any] | None:
    losses = measured.general.get("loss")
    if not losses or losses[0] is None or losses[column] is None:
        return None
    return {"base": losses[0], "adapter": losses[column], "tokens": measured.general["tokens"]}


def _examples(measured: Measured, numbers: Sequence[int], column: int) -> list[dict[str, str]]:
    answered = [number for number in numbers if "text" in measured.rows[number]]
    return [
        {
            "prompt": measured.about["questions"][number],
            "reference": measured.about["references"][number],
            "base": measured.rows[number]["text"][0],
            "adapter": measured.rows[number]["text"][column],
        }
        for number in answered[:EXAMPLES]
    ]


def evaluation_of(content: Any) -> Evaluation | None:
    """The content of an evaluation.json; None where it is damaged or of another version."""
    try:
        return Evaluation(**content)
    except (ValidationError, TypeError):
        return None


def checked(content: Any) -> dict[str, Any] | None:
    """The content itself, with its known fields validated (numbers, and None for what it lacks), or None."""
    known = evaluation_of(content)
    return None if known is None else _over(content, known.model_dump())


def _over(content: Any, known: dict[str, Any]) -> dict[str, Any]:
    merged = dict(content)
    for name, value in known.items():
        merged[name] = _over(content[name], value) if isinstance(value, dict) else value
    return merged


def lines(evaluation: dict[str, Any]) -> list[str]:
    """An evaluation in words: the verdict, then its figures, base against adapter."""
    output = [f"{evaluation['adapter']['name']}: {evaluation['verdict']['text']}"]
    output += [
        f"  {name:44} {base:>10} {adapter:>10}" for name, base, adapter in (("", "base", "adapter"), *rows(evaluation))
    ]
    drift = evaluation["drift"]
    output.append(
        f"  drift from the base: KL {drift['kl']:.3f} nats a token; {drift['same']:.0%} of the answers are the same"
    )
    return output


def rows(evaluation: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, base, adapter) of every figure of an evaluation that was measured."""
    loss, texts = evaluation["loss"], evaluation["texts"]
    values = [("held-out loss, nats a token", loss["base"], loss["adapter"], ".3f")]
    if evaluation.get("dependence"):
        dependence = evaluation["dependence"]
        values.append(("what the prompt says of the answer, nats", dependence["base"], dependence["adapter"], ".3f"))
    if evaluation["eos"]:
        values.append(
            ("P(end mark) where the reference ends", evaluation["eos"]["base"], evaluation["eos"]["adapter"], ".2f")
        )
    if evaluation["general"]:
        values.append(("loss on general text", evaluation["general"]["base"], evaluation["general"]["adapter"], ".3f"))
    for key, name, style in TEXTS if texts else ():
        sides = texts["base"].get(key), texts["adapter"].get(key)
        if None not in sides:
            values.append((name, *sides, style))
    return [(name, format(base, style), format(adapter, style)) for name, base, adapter, style in values]
