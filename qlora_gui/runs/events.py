"""events.jsonl: its kinds of events with their fields, declared once, and what writes and checks a line.

One JSON object per line, append only: `t` (seconds since the epoch), `kind`, and the fields of the class in `KINDS`. Readers
ignore kinds they do not know and fields that are not declared. A line of the wrong shape, in a stranger's folder say, is no
event (`sound`), and a field that readers can do without, one with a default here, is taken out of it.

A run begins with `started` and ends with finished, stopped or failed. evaluate.jsonl and votes.jsonl are written and read by
the same code. An event stays a dict where there are many of them, in the file's readers and in `thinning`; `RunHistory` gives
instances of these classes.
"""

import json
import math
import os
import time
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar, get_type_hints

from annotated_types import Ge, Len, Lt
from pydantic import AllowInfNan, StringConstraints, TypeAdapter, ValidationError
from pydantic.types import Strict
from typing_extensions import TypedDict

from qlora_gui import plain_files
from qlora_gui.files import append_line

Event = dict[str, Any]
FINAL = ("finished", "stopped", "failed")
SYNTHETIC = ("skipped", "thinned")  # kinds that readers make themselves (`event_file.read`); no file has them
MOST_BYTES = 4 << 20  # of one line
_MOST = 2**53  # beyond it a whole number is no exact float

Whole = Annotated[int, Strict(), Ge(0), Lt(_MOST)]
Number = Annotated[float, Strict(), AllowInfNan(False), Ge(-1e40), Lt(1e40)]  # fp32 ends at 3.4e38
Seconds = Annotated[float, Strict(), AllowInfNan(False), Ge(0), Lt(1e12)]
Word = Annotated[str, Strict(), StringConstraints(max_length=100_000)]
Text = Annotated[str, Strict(), StringConstraints(max_length=2_000_000)]
Flag = Annotated[bool, Strict()]
Loss = Number | None  # None: it was no finite number, for which JSON has no word


class Row(TypedDict):
    """A row that is not used, by its 1-based number, and why."""

    row: Whole
    reason: Word
    line: NotRequired[Whole | None]
    file: NotRequired[Word | None]


class Turns(TypedDict):
    """Counts of answers, as `data.row_stats` has them."""

    learned: Whole
    present: Whole
    context_only: Whole
    cut: Whole
    lost: Whole
    split: Whole
    unended: NotRequired[Whole]


class Facts(TypedDict):
    """What `data.row_stats` says of the rows that are trained on."""

    rows: Whole
    supervised_share: Number
    eos_supervised: Number
    truncated_answers: Whole
    pad_is_eos: Flag
    spelled: NotRequired[Whole]
    turns: NotRequired[Turns | Annotated[dict[str, Any], Len(0, 0)] | None]
    lost: NotRequired[list[Row]]
    notes: NotRequired[dict[str, Whole]]
    end: NotRequired[Word | None]
    end_from: NotRequired[Word | None]
    refuses: NotRequired[Word | None]
    thinking_by_first: NotRequired[Whole | None]


class Answer(TypedDict):
    """A probe's answer, and whether it ended by itself."""

    prompt: Text
    answer: Text
    ended: Any


class FittedKnobs(TypedDict):
    """What preflight may change in a run's config, as it is then."""

    batch_size: NotRequired[Whole]
    gradient_accumulation: NotRequired[Whole]
    gradient_checkpointing: NotRequired[Word | bool]  # a boolean as RunConfig takes it, too


class Change(TypedDict):
    """A change of settings that saves memory (`memory.advice.Change`)."""

    text: Word
    knobs: dict[str, Any]
    fits: bool
    saves: Annotated[int, Strict(), Ge(-_MOST), Lt(_MOST)]


class Holder(TypedDict):
    """Another process that held memory of the GPU."""

    name: Word
    pid: Whole
    bytes: Whole


class OomReport(TypedDict):
    """What is known of a run that ran out of memory, in bytes: see `training.oom`."""

    phase: NotRequired[Word | None]
    step: NotRequired[Whole | None]
    predicted: NotRequired[Whole | None]
    measured: NotRequired[Whole | None]
    total: NotRequired[Whole | None]
    free: NotRequired[Whole | None]
    held_by: NotRequired[list[Holder] | None]
    changes: NotRequired[list[Change] | None]


class Candidate(TypedDict):
    """A column that was voted on."""

    name: Word
    sha256: Word | None


@dataclass(frozen=True, kw_only=True)
class Record:
    """An event; `nulls` are the fields that it has as null: of a measured number, that it was not finite."""

    nulls: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Started(Record):
    pid: Whole | None = None
    resumed: bool | None = None
    card: Any = None  # the address of the one GPU that it may use
    adapters: list[Word] | None = None  # of an evaluation: the folders' names


@dataclass(frozen=True, kw_only=True)
class Stage(Record):
    text: Word


@dataclass(frozen=True, kw_only=True)
class Note(Record):
    text: Word


@dataclass(frozen=True, kw_only=True)
class Data(Record):
    used: Whole
    held_out: Whole
    truncated: Whole
    dropped: Whole
    dropped_rows: list[Row]
    format: Word | None = None
    tokens: Whole | None = None
    supervised: Whole | None = None
    skipped: Whole | None = None
    skipped_rows: list[Row] = field(default_factory=list)
    ignored: dict[str, Whole] | None = None
    usable: Whole = 0
    duplicates: Whole | None = None
    known: Whole | None = None
    unused_files: list[Word] | None = None
    facts: Facts | None = None
    files: dict[str, Word] | None = None  # SHA-256 by name
    digest: Word | None = None  # of the rows as the model reads them


@dataclass(frozen=True, kw_only=True)
class Base(Record):
    name: Word
    device: Word
    dtype: Word | None = None
    revision: Word | None = None
    fingerprint: Word | None = None
    template: Word | None = None
    vocabulary: Whole | None = None
    quant_type: Word | None = None
    double_quant: bool | None = None
    gradient_checkpointing: Word | None = None  # as settled where the config says auto
    processes: Whole = 1
    rows: Whole | None = None
    rows_a_batch: Whole | None = None
    chunked_loss: bool | None = None
    without_lora: list[Word] | None = None
    weights_16bit: Whole | None = None  # bytes
    weights_16bit_share: Number | None = None
    trained: Whole | None = None  # parameters, and of them biases
    biases: Whole | None = None
    frozen_biases: Whole | None = None
    layers: Whole | None = None
    weights_4bit: Whole | None = None  # bytes, and of them this process's share
    share: Whole | None = None


@dataclass(frozen=True, kw_only=True)
class Fit(Record):
    knobs: FittedKnobs
    text: Word = ""


@dataclass(frozen=True, kw_only=True)
class Memory(Record):
    """Of the longest batch, in bytes."""

    predicted: Annotated[float, Strict(), AllowInfNan(False), Ge(1), Lt(1e18)]
    measured: Annotated[float, Strict(), AllowInfNan(False), Ge(0), Lt(1e18)]
    gpu: Word | None = None


@dataclass(frozen=True, kw_only=True)
class Step(Record):
    step: Whole
    max_steps: Whole
    loss: Loss
    epoch: Number | None = None
    learning_rate: Number | None = None
    grad_norm: Number | None = None
    tokens_per_second: Number | None = None
    memory: Whole | None = None  # bytes
    eta: Number | None = None  # seconds
    peak: Any = False  # set by `thinning`: kept for its loss, no part of the even sample


@dataclass(frozen=True, kw_only=True)
class Eval(Record):
    step: Whole
    loss: Loss
    tokens: Whole | None = None
    largest_activation: Number | None = None
    peak: Any = False  # as a step's


@dataclass(frozen=True, kw_only=True)
class Probe(Record):
    step: Whole
    answers: list[Answer]


@dataclass(frozen=True, kw_only=True)
class Saved(Record):
    step: Whole = 0
    sha256: Word | None = None
    bytes: Whole | None = None


@dataclass(frozen=True, kw_only=True)
class Ending(Record):
    """The final event of a start."""

    step: Whole = 0
    message: Word | None = None
    seconds: Seconds | None = None
    loss_before: Loss = None
    loss_after: Loss = None
    bug: bool | None = None
    changed: bool = False  # data or base are others than those it was begun with
    autopsy: OomReport | None = None


@dataclass(frozen=True, kw_only=True)
class Ended(Ending):
    """Well: finished, or stopped."""


@dataclass(frozen=True, kw_only=True)
class Finished(Ended):
    pass


@dataclass(frozen=True, kw_only=True)
class Stopped(Ended):
    pass


@dataclass(frozen=True, kw_only=True)
class Failed(Ending):
    message: Word = field()


@dataclass(frozen=True, kw_only=True)
class Progress(Record):
    """Of an evaluation."""

    done: Whole
    of: Annotated[int, Strict(), Ge(1), Lt(_MOST)]


@dataclass(frozen=True, kw_only=True)
class Vote(Record):
    """A line of votes.jsonl, as far as `preferences.votes` does not check it itself."""

    id: Word
    columns: list[Candidate]
    order: list[Whole]
    answers: list[Text]
    tokens: list[Whole]
    seconds: Number | None
    retries: Whole


@dataclass(frozen=True, kw_only=True)
class Undo(Record):
    id: Word


@dataclass(frozen=True, kw_only=True)
class Skipped(Record):
    """How many lines are no event or had a field taken out, and the first reasons."""

    count: int
    why: list[str]


@dataclass(frozen=True, kw_only=True)
class Thinned(Record):
    """How many events there were of each kind of which not all are kept."""

    counts: dict[str, int]


KINDS: dict[str, type[Record]] = {
    "started": Started,
    "stage": Stage,
    "note": Note,
    "data": Data,
    "base": Base,
    "fit": Fit,
    "memory": Memory,
    "step": Step,
    "eval": Eval,
    "probe": Probe,
    "saved": Saved,
    "finished": Finished,
    "stopped": Stopped,
    "failed": Failed,
    "progress": Progress,
    "vote": Vote,
    "undo": Undo,
    "skipped": Skipped,
    "thinned": Thinned,
}
AnyRecord = TypeVar("AnyRecord", bound=Record)


def names(kind: type[Record]) -> list[str]:
    """The fields of a class of events, as lines have them; beside `t` and `kind`."""
    return [name for name in kind.__dataclass_fields__ if name != "nulls"]


@cache  # made when the first such line is read, and not as the page starts
def _check_of(name: str) -> tuple[Any, frozenset[str]]:
    """What validates a line of a kind, or of any that is not declared (""), and the fields that it can do without."""
    kind = KINDS.get(name, Record)
    hints = get_type_hints(kind, include_extras=True)
    known = [part for part in fields(kind) if part.name != "nulls"]
    optional = {part.name for part in known if (part.default, part.default_factory) != (MISSING, MISSING)}
    shape = {name: NotRequired[hints[name]] if name in optional else hints[name] for name in names(kind)}
    short = Annotated[str, Strict(), StringConstraints(max_length=100)]
    line: Any = TypedDict(kind.__name__, {"t": Seconds, "kind": short} | shape)  # type: ignore[operator, misc]
    return TypeAdapter(line), frozenset(optional)


def sound(value: Any) -> tuple[Event | None, str]:
    """The event that a line's JSON value is, and what is wrong with it in a few words, or "".

    A field that readers can do without is taken out where it is of the wrong kind; without one that they need, or where
    the value is no object, there is no event.
    """
    if not isinstance(value, dict):
        return None, f"a JSON {_kind_of(value)} and no object"
    kind = value.get("kind")
    if not isinstance(kind, str) or kind in SYNTHETIC:
        return None, "a kind that no run writes"
    check, optional = _check_of(kind if kind in KINDS else "")
    why = ""
    for _ in range(len(optional) + 1):
        try:
            check.validate_python(value)
            return value, why
        except ValidationError as error:
            name = str(error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"][0])
        except (RecursionError, OverflowError):
            return None, "nested too deeply, or with a number too large"
        why = why or f"the event '{kind[:40]}' with a field '{name[:40]}' of the wrong kind"
        if name not in optional:
            break
        value = {key: part for key, part in value.items() if key != name}
    return None, why


def _kind_of(value: Any) -> Literal["list", "text", "number", "null"]:
    if value is None:
        return "null"
    return "list" if isinstance(value, list) else "text" if isinstance(value, str) else "number"


def as_record(event: Event) -> Record | None:
    """A sound event as an instance of its class; None of a kind that is not declared."""
    kind = KINDS.get(event["kind"])
    return None if kind is None else read_as(kind, event)


def read_as(kind: type[AnyRecord], event: Event) -> AnyRecord:
    """A sound event as an instance of its class."""
    values = {name: event[name] for name in names(kind) if name in event}
    return kind(**values, nulls=frozenset(name for name, value in values.items() if value is None))


def kinds_of(record: type[Record]) -> frozenset[str]:
    """The kinds whose events are instances of a class."""
    return frozenset(kind for kind, declared in KINDS.items() if issubclass(declared, record))


class EventLog:
    """Appends events to one file; every event is one whole line in one write."""

    def __init__(self, path: Path):
        self.path = path
        self._torn = True  # perhaps, by a writer before this one
        self._end_broken_line()

    def append(self, kind: str, **fields: Any) -> Event:
        """Write one event and return it. Numbers that JSON does not have (NaN, infinity) become null."""
        self._end_broken_line()
        event: Event = {"t": round(time.time(), 3), "kind": kind} | {
            key: _plain(value) for key, value in fields.items()
        }
        line = (json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")
        try:
            append_line(self.path, line)
        except OSError:
            self._torn = True
            raise
        return event

    def _end_broken_line(self) -> None:
        """A writer that was killed in mid-line leaves half a line: close it, so that the next one stands alone.

        Appended, and not written at the end that was seen: meanwhile another writer's line may have begun there.
        """
        if self._torn and self.path.exists() and self.path.stat().st_size:
            with plain_files.open_to_read(self.path) as file:
                file.seek(-1, os.SEEK_END)
                broken = file.read(1) != b"\n"
            if broken:
                with plain_files.open_to_write(self.path, append=True) as file:
                    file.write(b"\n")
        self._torn = False


class Silent(EventLog):
    """Writes nothing: for processes that help with a run whose folder another one writes."""

    def __init__(self) -> None:
        pass

    def append(self, kind: str, **fields: Any) -> Event:
        """The event, as it would have been written."""
        return {"t": round(time.time(), 3), "kind": kind, **fields}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
