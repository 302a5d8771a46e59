"""What client and worker send each other: a frozen dataclass per request and event, and the JSON lines they travel as.

A line of a request has its name in `do`, a line of an event in `kind`. A load is answered with `Stage` events and one
`Loaded`, a question with a `Prompt`, `Text` events and an `Ended` per column, completions with the same per completion, or a
`Refused`, an evaluation with the events of its measurements, all with `Done` at the end; instead of the last event of any of
them there may be an `Error`.
"""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pydantic import BaseModel

from qlora_gui.inference.sampling import Decoding

Conversation = list[dict[str, Any]]


@dataclass(frozen=True)
class Load:
    """Make the base and its adapters, by their folders, the columns.

    `chosen` says that a person named the base, so that it may differ from the base that the adapters name.
    """

    base_model: str
    revision: str = ""
    quant_type: str = "nf4"
    double_quant: bool = True
    adapters: Sequence[str] = ()
    chosen: bool = False


@dataclass(frozen=True)
class Ask:
    """Answer one conversation per column; `tools` are those that all answers may call."""

    conversations: Sequence[Conversation]
    decoding: Decoding
    tools: Sequence[Any] | None = None


@dataclass(frozen=True)
class Completion:
    """One prompt to one column, with settings of its own.

    `prompt` is a conversation for the column's chat template, a text that is read as it is, or its tokens. `stops` are texts
    that end the answer besides the template's own. `top` asks for the log-probability of every token, and for so many of the
    likeliest instead of each; None for none. With `echo` the prompt is part of the answer, and of what is scored; without
    `answer` it is all of it.
    """

    column: int
    prompt: "Conversation | str | list[int]"
    decoding: Decoding
    stops: Sequence[str] = ()
    top: int | None = None
    echo: bool = False
    answer: bool = True


@dataclass(frozen=True)
class Complete:
    """Answer prompts to any columns, as many at a time as go into one batch; their events have the number here as `column`."""

    completions: Sequence[Completion]


@dataclass(frozen=True)
class Evaluate:
    """Measure examples under every column.

    `foreign` are examples whose answers belong to other prompts, `general` a text in no template; both may be empty.
    `control` lets special tokens spelled out in the examples be what they spell.
    """

    examples: Sequence[dict[str, Any]]
    foreign: Sequence[dict[str, Any]] = ()
    general: str = ""
    max_length: int = 1024
    max_new_tokens: int = 0
    system_prompt: str = ""
    control: bool = False


@dataclass(frozen=True)
class Stop:
    """End what was asked for before, or only completions of these numbers; it is answered as far as it has come."""

    numbers: Sequence[int] | None = None


@dataclass(frozen=True)
class Stage:
    """What the worker is doing, for people."""

    text: str


@dataclass(frozen=True)
class Loaded:
    """The columns are ready: one proof per column, the base's first, each with its `name` and `adapter` folder."""

    columns: list[dict[str, Any]]


@dataclass(frozen=True)
class Prompt:
    """The prompt of a column as the model reads it."""

    column: int
    prompt: str


@dataclass(frozen=True)
class Text:
    """More text of a column's answer."""

    column: int
    text: str


@dataclass(frozen=True)
class Ended:
    """The end of a column's answer: its tokens, how many, and what `ended` it: eos, length, stop string or stopped."""

    column: int
    tokens: int
    seconds: float
    tokens_per_second: float
    ended: str
    ids: Sequence[int] = ()


@dataclass(frozen=True)
class Scored:
    """More tokens of a completion: of each its text, log-probability (nats, None where there is none), and the likeliest
    tokens there as pairs of text and log-probability.
    """

    column: int
    tokens: "list[tuple[str, float | None, list[tuple[str, float]]]]"


@dataclass(frozen=True)
class Began:
    """A completion's prompt has so many tokens."""

    column: int
    tokens: int


@dataclass(frozen=True)
class Refused:
    """Why a completion cannot be answered; the others are. `too_long`: prompt and answer exceed the model's context."""

    column: int
    message: str
    too_long: bool = False


@dataclass(frozen=True)
class Facts:
    """What is known of how each adapter fits its base, for the diagnostics."""

    adapters: list[dict[str, Any]]


@dataclass(frozen=True)
class Rows:
    """The rows that an evaluation measures, each list by number of the row: its row in the data, supervised tokens, texts."""

    rows: list[int]
    tokens: list[int]
    dropped: list[tuple[int, str]]
    truncated: int
    turns: dict[str, Any]
    prompts: list[str]
    questions: list[str]
    references: list[str]
    double_bos: bool


@dataclass(frozen=True)
class Measured:
    """Row `number` under every column, a list per value with the base first.

    `loss` is the sum over the supervised tokens (nats), `kl` the sum over them of KL(column || base), `eos` the
    probability of an end mark where the reference ends (None where the row was cut). Of the greedy answers, None where
    there are none: `text`, what `ended` them, their `tokens`, and `differs`, the first token that is not the base's
    (None where all are).
    """

    number: int
    loss: list[float]
    kl: list[float]
    eos: list[float] | None
    text: list[str] | None = None
    ended: list[str] | None = None
    tokens: list[int] | None = None
    differs: list[int | None] | None = None


@dataclass(frozen=True)
class Foreign:
    """Losses (sums, nats) of the answer of row `row` of the data, of so many tokens, after another row's prompt."""

    row: int
    tokens: int
    loss: list[float]


@dataclass(frozen=True)
class General:
    """Mean loss of the text in no template under every column, in nats per token; None where it is not finite."""

    loss: list[float | None]
    tokens: int


@dataclass(frozen=True)
class Done:
    """The last event of a question or an evaluation."""


@dataclass(frozen=True)
class Error:
    """What kept the worker from it: a sentence for people, or of a `bug` the exception."""

    message: str
    bug: bool


Request = Load | Ask | Complete | Evaluate | Stop
Answering = Prompt | Text | Ended | Scored | Began | Refused  # what belongs to one column, or one completion
Event = Stage | Loaded | Answering | Facts | Rows | Measured | Foreign | General | Done | Error
_REQUESTS: dict[str, type[Request]] = {
    "load": Load,
    "answer": Ask,
    "complete": Complete,
    "evaluate": Evaluate,
    "stop": Stop,
}
_EVENTS: dict[str, type[Event]] = {
    "stage": Stage,
    "columns": Loaded,
    "prompt": Prompt,
    "text": Text,
    "column": Ended,
    "scored": Scored,
    "began": Began,
    "refused": Refused,
    "facts": Facts,
    "rows": Rows,
    "measured": Measured,
    "foreign": Foreign,
    "general": General,
    "done": Done,
    "error": Error,
}
_TAGS = {kind: ("do", name) for name, kind in _REQUESTS.items()} | {
    kind: ("kind", name) for name, kind in _EVENTS.items()
}


def to_line(message: Request | Event) -> str:
    """A request or an event as a line of JSON."""
    tag, name = _TAGS[type(message)]
    # text of models and people is written as it is; requests are ASCII, for prompts may hold half a surrogate pair
    return json.dumps({tag: name} | vars(message), ensure_ascii=tag == "do", default=_plain) + "\n"


def to_request(line: str) -> Request:
    """The request of a line. Raises ValueError for any other line, also where the decoding is out of bounds."""
    content = json.loads(line)
    if isinstance(content.get("decoding"), dict):
        content["decoding"] = Decoding(**content["decoding"])
    if isinstance(content.get("completions"), list):
        content["completions"] = [
            _made(Completion, completion | {"decoding": Decoding(**completion["decoding"])})
            for completion in content["completions"]
        ]
    request: Request = _made(_REQUESTS[content.pop("do")], content)
    return request


def to_event(line: str) -> Event | None:
    """The event of a line, None for a kind that is not known. Raises ValueError for a damaged line."""
    content = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError("it is no object")
    kind = _EVENTS.get(str(content.pop("kind", "")))
    return None if kind is None else _made(kind, content)


def _made(kind: Any, content: dict[str, Any]) -> Any:
    known = {field.name for field in fields(kind)}
    try:
        return kind(**{name: value for name, value in content.items() if name in known})
    except TypeError as error:
        raise ValueError(f"a line of {kind.__name__} is not whole: {error}") from None


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, Completion):
        return vars(value)
    raise TypeError(f"{type(value).__name__} has no JSON")


@dataclass
class Answer:
    """One column's answer: its text so far and the prompt as the model read it, and its figures once it has `ended`."""

    text: str = ""
    prompt: str = ""
    ended: str = ""
    tokens: int = 0
    tokens_per_second: float = 0.0
    ids: Sequence[int] = ()


def take(answers: Sequence[Answer], event: Event) -> None:
    """Let an event tell more of the answers, which are in the order of the columns; other events tell nothing."""
    if isinstance(event, Prompt):
        answers[event.column].prompt = event.prompt
    elif isinstance(event, Text):
        answers[event.column].text += event.text
    elif isinstance(event, Ended):
        answer = answers[event.column]
        answer.ended, answer.tokens, answer.ids = event.ended, event.tokens, event.ids
        answer.tokens_per_second = event.tokens_per_second


def growing(events: Iterable[Event], columns: int, seconds: float) -> Iterator[list[Answer]]:
    """The answers of all columns as they grow, the same objects at most once in so many seconds, and at last whole."""
    answers = [Answer() for _ in range(columns)]
    drawn = time.monotonic()
    for event in events:
        take(answers, event)
        if not isinstance(event, Done) and time.monotonic() - drawn > seconds:
            yield answers
            drawn = time.monotonic()
    yield answers


def collect(events: Iterable[Event], columns: int) -> list[Answer]:
    """The answers of all columns to one question, once all have ended."""
    *_, answers = growing(events, columns, float("inf"))
    return answers
