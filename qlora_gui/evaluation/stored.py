"""What an evaluation.json holds, checked: one that is damaged, or of another version, is none."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Sides(_Part):
    """A value of the base and one of the adapter."""

    base: float
    adapter: float


class Loss(Sides):
    """Mean held-out losses, nats a token; `difference` is adapter - base, with its 95% interval and corrected p."""

    difference: float
    low: float
    high: float
    p_holm: float
    rows: int


class Texts(_Part):
    """What was counted in one side's greedy answers (`judge.texts`): shares, means, scores against references."""

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
    """An evaluation.json, as far as page and report state it."""

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


def evaluation_of(found: Any) -> Evaluation | None:
    """The content of an evaluation.json; None where it is damaged or of another version."""
    try:
        return Evaluation(**found)
    except (ValidationError, TypeError):
        return None


def checked(found: Any) -> dict[str, Any] | None:
    """The content itself, with what is known of it as it should be (numbers, and None for what it lacks), or None."""
    known = evaluation_of(found)
    return None if known is None else _over(found, known.model_dump())


def _over(found: Any, known: dict[str, Any]) -> dict[str, Any]:
    merged = dict(found)
    for name, value in known.items():
        merged[name] = _over(found[name], value) if isinstance(value, dict) else value
    return merged
