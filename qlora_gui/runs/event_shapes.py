"""What a line of events.jsonl must be for its readers: one of the wrong shape, in a stranger's folder say, is ignored.

Declared are the fields that readers take for granted; further fields are free. A kind that is not declared here has
no readers, and passes.
"""

from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Ge, Len, Lt
from pydantic import AllowInfNan, StringConstraints, TypeAdapter, ValidationError
from pydantic.types import Strict
from typing_extensions import TypedDict

MOST_BYTES = 4 << 20  # of one line
SYNTHETIC = ("skipped", "thinned")  # kinds that readers make themselves (`events.read`); no file has them
_MOST = 2**53  # beyond it a whole number is no exact float

Whole = Annotated[int, Strict(), Ge(0), Lt(_MOST)]
Number = Annotated[float, Strict(), AllowInfNan(False), Ge(-1e40), Lt(1e40)]  # fp32 ends at 3.4e38
Word = Annotated[str, Strict(), StringConstraints(max_length=100_000)]
Text = Annotated[str, Strict(), StringConstraints(max_length=2_000_000)]
Loss = Number | None  # None: it was no number
Mapping = dict[str, Any]


class _Event(TypedDict):
    t: Annotated[float, Strict(), AllowInfNan(False), Ge(0), Lt(1e12)]
    kind: Annotated[str, Strict(), StringConstraints(max_length=100)]


class _Message(_Event):
    text: Word


class _Started(_Event):
    resumed: NotRequired[bool | None]


class _Row(TypedDict):
    row: Whole
    reason: Word
    line: NotRequired[Whole | None]
    file: NotRequired[Word | None]


class _Turns(TypedDict):
    """Counts of answers, as `data.row_stats` has them."""

    learned: Whole
    present: Whole
    context_only: Whole
    cut: Whole
    lost: Whole
    split: Whole
    unended: NotRequired[Whole]


class _Facts(TypedDict):
    rows: NotRequired[Whole]
    supervised_share: NotRequired[Number]
    eos_supervised: NotRequired[Number]
    truncated_answers: NotRequired[Whole]
    spelled: NotRequired[Whole]
    turns: NotRequired[_Turns | Annotated[dict[str, Any], Len(0, 0)] | None]
    lost: NotRequired[list[_Row]]
    notes: NotRequired[dict[str, Whole]]
    end: NotRequired[Word | None]
    end_from: NotRequired[Word | None]
    refuses: NotRequired[Word | None]
    thinking_by_first: NotRequired[Whole | None]


class _Data(_Event):
    used: Whole
    held_out: Whole
    truncated: Whole
    dropped: Whole
    dropped_rows: list[_Row]
    skipped: NotRequired[Whole | None]
    skipped_rows: NotRequired[list[_Row]]
    ignored: NotRequired[dict[str, Whole] | None]
    usable: NotRequired[Whole]
    duplicates: NotRequired[Whole | None]
    known: NotRequired[Whole | None]
    unused_files: NotRequired[list[Word] | None]
    facts: NotRequired[_Facts | None]
    files: NotRequired[dict[str, Word]]
    digest: NotRequired[Word | None]


class _Base(_Event):
    name: Word
    device: Word
    dtype: NotRequired[Word | None]
    trained: NotRequired[Whole | None]
    processes: NotRequired[Whole]
    revision: NotRequired[Word | None]
    fingerprint: NotRequired[Word | None]
    template: NotRequired[Word | None]
    vocabulary: NotRequired[Whole | None]
    quant_type: NotRequired[Word | None]
    double_quant: NotRequired[bool | None]
    gradient_checkpointing: NotRequired[Word | None]


class _Fit(_Event):
    text: NotRequired[Word]
    knobs: Mapping


class _Memory(_Event):
    predicted: Annotated[float, Strict(), AllowInfNan(False), Ge(1), Lt(1e18)]
    measured: Annotated[float, Strict(), AllowInfNan(False), Ge(0), Lt(1e18)]
    gpu: NotRequired[Word | None]


class _Step(_Event):
    step: Whole
    max_steps: Whole
    loss: Loss
    epoch: NotRequired[Number | None]
    learning_rate: NotRequired[Number | None]
    grad_norm: NotRequired[Number | None]
    tokens_per_second: NotRequired[Number | None]
    memory: NotRequired[Whole | None]
    eta: NotRequired[Number | None]


class _Eval(_Event):
    step: Whole
    loss: Loss
    tokens: NotRequired[Whole | None]


class _Answer(TypedDict):
    prompt: Text
    answer: Text
    ended: Any


class _Probe(_Event):
    step: Whole
    answers: list[_Answer]


class _Saved(_Event):
    step: NotRequired[Whole]
    sha256: NotRequired[Word | None]


class _Ended(_Event):
    step: NotRequired[Whole]
    seconds: NotRequired[Annotated[float, Strict(), AllowInfNan(False), Ge(0), Lt(1e12)] | None]
    loss_before: NotRequired[Loss]
    loss_after: NotRequired[Loss]
    message: NotRequired[Word | None]


class _Change(TypedDict):
    text: Word
    knobs: Mapping
    fits: bool
    saves: Annotated[int, Strict(), Ge(-_MOST), Lt(_MOST)]


class _Holder(TypedDict):
    name: Word
    pid: Whole
    bytes: Whole


class _OomReport(TypedDict):
    phase: NotRequired[Word | None]
    step: NotRequired[Whole | None]
    held_by: NotRequired[list[_Holder] | None]
    changes: NotRequired[list[_Change] | None]


class _Failed(_Event):
    message: Word
    bug: NotRequired[bool | None]
    changed: NotRequired[bool]
    step: NotRequired[Whole]
    autopsy: NotRequired[_OomReport | None]


class _Progress(_Event):
    done: Whole
    of: Annotated[int, Strict(), Ge(1), Lt(_MOST)]


class _Candidate(TypedDict):
    name: Word
    sha256: Word | None


class _Vote(_Event):
    """A line of votes.jsonl (`judge.votes`)."""

    id: Word
    columns: list[_Candidate]
    order: list[Whole]
    answers: list[Text]
    tokens: list[Whole]
    seconds: Number | None
    retries: Whole


class _Undo(_Event):
    id: Word


_SHAPES: dict[str, Any] = {
    "started": _Started,
    "stage": _Message,
    "note": _Message,
    "data": _Data,
    "base": _Base,
    "fit": _Fit,
    "memory": _Memory,
    "step": _Step,
    "eval": _Eval,
    "probe": _Probe,
    "saved": _Saved,
    "finished": _Ended,
    "stopped": _Ended,
    "failed": _Failed,
    "progress": _Progress,
    "vote": _Vote,
    "undo": _Undo,
}
_CHECKS = {kind: TypeAdapter(shape) for kind, shape in _SHAPES.items()}
_ANY = TypeAdapter(_Event)


def sound(value: Any) -> tuple[dict[str, Any] | None, str]:
    """The event that a line's JSON value is, and what is wrong with it in a few words, or "".

    A field that readers can do without is taken out where it is of the wrong kind; without one that they need, or where
    the value is no object, there is no event.
    """
    if not isinstance(value, dict):
        return None, f"a JSON {_kind_of(value)} and no object"
    kind = value.get("kind")
    if not isinstance(kind, str) or kind in SYNTHETIC:
        return None, "a kind that no run writes"
    check = _CHECKS.get(kind, _ANY)
    optional: frozenset[str] = getattr(_SHAPES.get(kind), "__optional_keys__", frozenset())
    why = ""
    for _ in range(len(optional) + 1):
        try:
            check.validate_python(value)
            return value, why
        except ValidationError as error:
            field = str(error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"][0])
        except (RecursionError, OverflowError):
            return None, "nested too deeply, or with a number too large"
        why = why or f"the event '{kind[:40]}' with a field '{field[:40]}' of the wrong kind"
        if field not in optional:
            break
        value = {name: part for name, part in value.items() if name != field}
    return None, why


def _kind_of(value: Any) -> Literal["list", "text", "number", "null"]:
    if value is None:
        return "null"
    return "list" if isinstance(value, list) else "text" if isinstance(value, str) else "number"
