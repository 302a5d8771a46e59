"""Prompts to any columns, each with settings of its own, answered in shared batches: what an endpoint asks for.

What one completion gets does not depend on those beside it: it has its own random numbers, end marks and length, and one
that cannot be answered is refused alone.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LogitsProcessor

from qlora_gui.data import special_tokens
from qlora_gui.errors import UserError
from qlora_gui.inference import columns as all_columns
from qlora_gui.inference import generate, protocol
from qlora_gui.inference.columns import Columns
from qlora_gui.inference.generate import GumbelNoise, Row, Rows
from qlora_gui.inference.sampling import Decoding
from qlora_gui.models import context
from qlora_gui.models import device as devices

MOST_ROWS = 16
_SHARE = 4  # a batch may take one part in four of the free memory
_PIECE = 128  # positions whose log-probabilities over the vocabulary are computed at a time
_NO_MEMORY = "There is not memory enough for a prompt and an answer of this length: shorten them, or free memory."


@dataclass(frozen=True)
class _Ready:
    """A completion that can be answered: its prompt's tokens, what ends it, and how many tokens there is room for."""

    asked: protocol.Completion
    ids: list[int]
    stops: Sequence[str]
    eos: Collection[int]
    most: int

    @property
    def is_chat(self) -> bool:
        return not (isinstance(self.asked.prompt, str) or isinstance(self.asked.prompt[0], int))

    @property
    def adapter(self) -> int:
        return self.asked.column - 1  # column 0 is the base, which is multi_lora.BASE


class _TooLong(UserError):
    """The prompt leaves no room in the model's context."""


def complete(
    columns: Columns,
    asked: Sequence[protocol.Completion],
    emit: generate.Emit,
    cancelled: Callable[[], bool],
    dropped: Collection[int] = (),
) -> None:
    """Answer all: emits `Began`, `Scored` and `Text` events and one `Ended` per completion, or `Refused`.

    `dropped` grows meanwhile by the numbers of those that nobody waits for any more. Raises UserError where no base is loaded.
    """
    if columns.base is None or columns.multi_lora is None:
        raise UserError("No base is loaded: choose one first.")
    ready: dict[int, _Ready] = {}
    for number, completion in enumerate(asked):
        try:
            ready[number] = _ready(columns, completion)
        except UserError as error:
            emit(protocol.Refused(number, str(error), isinstance(error, _TooLong)))
            continue
        emit(protocol.Began(number, len(ready[number].ids)))
    for number, each in list(ready.items()):
        if each.asked.echo and not _echoed(columns, number, each, emit, cancelled, dropped):
            del ready[number]
    ready = {number: each for number, each in ready.items() if each.most}
    for numbers in _batches(columns, ready):
        _answer(columns, ready, numbers, emit, cancelled, dropped)


def _ready(columns: Columns, asked: protocol.Completion) -> _Ready:
    """Raises UserError for a prompt that the template, the vocabulary or the context refuses."""
    base = columns.base
    assert base is not None
    if not 0 <= asked.column <= len(columns.adapters):
        raise UserError(f"There is no column {asked.column}: there are {len(columns.adapters) + 1}.")
    stops, eos = list(asked.stops), base.eos
    if isinstance(asked.prompt, str):
        ids = special_tokens.ids_with_added(asked.prompt, base.tokenizer, control=True)
    elif asked.prompt and isinstance(asked.prompt[0], int):
        ids = list(asked.prompt)  # type: ignore[arg-type]
        if min(ids) < 0:
            raise UserError(f"The prompt holds {min(ids)}, which is no token.")
    else:
        chat = columns.chat(columns.adapters[asked.column - 1] if asked.column else None, asked.decoding)
        ids = all_columns.prompt_of(chat, asked.prompt, None).ids(base.tokenizer)  # type: ignore[arg-type]
        stops, eos = [*stops, *chat.stops], chat.ends
    if not ids:
        raise UserError("The prompt is empty.")
    base.check_ids([ids])
    room, _ = context.size(base.located.path)
    if room is not None and len(ids) >= room:
        raise _TooLong(f"The prompt has {len(ids)} tokens, and the model reads {room} with its answer: shorten it.")
    most = asked.decoding.max_new_tokens if asked.answer else 0
    return _Ready(asked, ids, stops, eos, most if room is None else min(most, room - len(ids)))


def _batches(columns: Columns, ready: dict[int, _Ready]) -> Iterator[list[int]]:
    """The numbers of completions that are answered together, those of one adapter side by side."""
    base, multi_lora = columns.base, columns.multi_lora
    assert base is not None and multi_lora is not None
    here = sorted({each.adapter for each in ready.values()})
    room, _ = context.size(base.located.path)
    for group in multi_lora.batches(here):
        ids = {number: each.ids for adapter in group for number, each in ready.items() if each.adapter == adapter}
        longest = max(ready[number].most for number in ids)
        groups = generate.group_prompts(ids, base.reading, longest)
        for places in (part for group in groups for part in _within(room, [(place, ready[place]) for place in group])):
            size = base.reading.bytes_per_row(max(len(ids[place]) for place in places) + longest)
            rows = max(min(MOST_ROWS, devices.free_memory(base.model.device) // _SHARE // size), 1)
            yield from (places[first : first + rows] for first in range(0, len(places), rows))


def _within(room: int | None, group: Sequence[tuple[int, _Ready]]) -> Iterator[list[int]]:
    """Parts of a group in which every row stays within the context: one that has ended is read on until the longest answer ends,
    and a table of positions has none beyond."""
    parts: list[tuple[list[int], int, int]] = []  # numbers, the longest prompt, the longest answer
    for number, each in group:
        for place, (numbers, prompt, most) in enumerate(parts):
            longest = max(prompt, len(each.ids)), max(most, each.most)
            if room is None or sum(longest) <= room:
                parts[place] = ([*numbers, number], *longest)
                break
        else:
            parts.append(([number], len(each.ids), each.most))
    return (numbers for numbers, _, _ in parts)


def _answer(
    columns: Columns,
    ready: dict[int, _Ready],
    numbers: Sequence[int],
    emit: generate.Emit,
    cancelled: Callable[[], bool],
    dropped: Collection[int],
) -> None:
    """One batch; by halves where memory does not do for all of it."""
    base, multi_lora = columns.base, columns.multi_lora
    assert base is not None and multi_lora is not None
    batch = [ready[number] for number in numbers]
    rows = _Rows(base.tokenizer, numbers, batch, emit, dropped)
    processors = [rows.scores, _Noises([each.asked.decoding for each in batch])]
    try:
        with multi_lora.activate([each.adapter for each in batch]):
            generate.run(
                base, [each.ids for each in batch], rows, max(each.most for each in batch), processors, cancelled
            )
    except (RuntimeError, MemoryError) as error:
        if not devices.ran_out(error):
            raise
        devices.release()
        if len(numbers) > 1 and not any(row.ids or row.ended for row in rows.rows):
            for half in (numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]):
                _answer(columns, ready, half, emit, cancelled, dropped)
            return
        for number, row in zip(numbers, rows.rows, strict=True):
            if not row.ended:
                emit(protocol.Refused(number, _NO_MEMORY))


class _Scores(LogitsProcessor):
    """Leaves the logits as they are, and keeps those of the newest step, [rows, vocabulary]."""

    newest: torch.Tensor

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.newest = scores
        return scores


class _Noises(LogitsProcessor):
    """Each row sampled by its own settings and random numbers, or left as it is where it takes the likeliest token."""

    def __init__(self, decodings: Sequence[Decoding]):
        self.noises = [None if each.greedy else GumbelNoise(each, [0]) for each in decodings]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not any(self.noises):
            return scores
        rows = scores.split(1)
        noisy = [noise(input_ids, row) if noise else row for noise, row in zip(self.noises, rows, strict=True)]
        return torch.cat([row.float() for row in noisy])


class _Rows(Rows):
    """The rows of one batch under their numbers: scored where that is asked for, given up when nobody waits any more."""

    def __init__(
        self,
        tokenizer: Any,
        numbers: Sequence[int],
        batch: Sequence[_Ready],
        emit: generate.Emit,
        dropped: Collection[int],
    ):
        making = [Row(each.stops, each.eos, each.most) for each in batch]
        super().__init__(tokenizer, making, generate.renumbered(emit, numbers))
        self.numbers, self.batch, self.dropped, self.scores = numbers, batch, dropped, _Scores()

    def put(self, value: torch.Tensor) -> None:
        super().put(value)
        for row, number in enumerate(self.numbers):
            if number in self.dropped:
                self.finish(row, "stopped")

    def text(self, column: int) -> str:
        """Of a plain prompt it goes on from there: decoded alone it would lack a first space that SentencePiece has in its word."""
        each, ids = self.batch[column], self.rows[column].ids
        if not each.is_chat:
            before = str(self.tokenizer.decode(each.ids[-1:], skip_special_tokens=True))
            whole = str(self.tokenizer.decode([*each.ids[-1:], *ids], skip_special_tokens=True))
            if before and whole.startswith(before):
                return whole[len(before) :]
        return super().text(column)

    def show(self, column: int) -> None:
        top = self.batch[column].asked.top
        if top is not None:
            logs = self.scores.newest[column : column + 1].float().log_softmax(-1)
            self.emit(protocol.Scored(column, _scored(self.tokenizer, self.rows[column].ids[-1:], logs, top)))
        super().show(column)

    def finish(self, column: int, reason: str) -> None:
        """As of all rows; of an echo the end mark is scored too, for whoever reads it counts one token after the prompt."""
        asked = self.batch[column].asked
        if reason == "eos" and asked.echo and asked.top is not None and not self.rows[column].ended:
            logs = self.scores.newest[column : column + 1].float().log_softmax(-1)
            end = [int(token) for token in logs.argsort(descending=True)[0] if int(token) in self.rows[column].eos][:1]
            self.emit(protocol.Scored(column, _scored(self.tokenizer, end, logs, asked.top)))
        super().finish(column, reason)


def _echoed(
    columns: Columns,
    number: int,
    each: _Ready,
    emit: generate.Emit,
    cancelled: Callable[[], bool],
    dropped: Collection[int],
) -> bool:
    """Echo a prompt, unless nobody waits for it any more or memory does not do. Returns whether its answer is to follow."""
    if cancelled() or number in dropped:
        emit(protocol.Ended(number, 0, 0.0, 0.0, "stopped"))
        return False
    try:
        _echo(columns, number, each, emit)
    except (RuntimeError, MemoryError) as error:
        if not devices.ran_out(error):
            raise
        devices.release()
        emit(protocol.Refused(number, _NO_MEMORY))
        return False
    return True


@torch.no_grad()
def _echo(columns: Columns, number: int, each: _Ready, emit: generate.Emit) -> None:
    """Emit a prompt as the beginning of its answer, with the log-probability of each of its tokens but the first."""
    base, multi_lora, asked = columns.base, columns.multi_lora, each.asked
    assert base is not None and multi_lora is not None
    if asked.top is not None:
        ids = torch.tensor([each.ids], device=base.model.device)
        with multi_lora.activate([each.adapter]):
            logits = base.model(input_ids=ids, use_cache=False).logits[0]  # [tokens, vocabulary]
        first: tuple[str, float | None, list[tuple[str, float]]] = (_text(base.tokenizer, each.ids[0]), None, [])
        emit(protocol.Scored(number, [first]))
        for begin in range(0, len(each.ids) - 1, _PIECE):
            after = each.ids[begin + 1 : begin + 1 + _PIECE]
            logs = logits[begin : begin + len(after)].float().log_softmax(-1)
            emit(protocol.Scored(number, _scored(base.tokenizer, after, logs, asked.top)))
    emit(protocol.Text(number, base.tokenizer.decode(each.ids, skip_special_tokens=True)))
    if not each.most:
        emit(protocol.Ended(number, 0, 0.0, 0.0, "length"))


def _scored(
    tokenizer: Any, ids: Sequence[int], logs: torch.Tensor, top: int
) -> list[tuple[str, float | None, list[tuple[str, float]]]]:
    """Tokens with their log-probabilities, of logs [tokens, vocabulary], and the `top` likeliest at each place."""
    best = logs.topk(min(top, logs.shape[-1])) if top else None
    found: list[tuple[str, float | None, list[tuple[str, float]]]] = []
    for place, token in enumerate(ids):
        likeliest: list[tuple[str, float]] = []
        if best is not None:
            values, tokens = best.values[place].tolist(), best.indices[place].tolist()
            likeliest = [(_text(tokenizer, other), value) for other, value in zip(tokens, values, strict=True)]
        found.append((_text(tokenizer, token), float(logs[place, token]), likeliest))
    return found


def _text(tokenizer: Any, token: int) -> str:
    """A token's own text, with the space that SentencePiece begins a word with, which decoding one token leaves out."""
    text = str(tokenizer.decode([token]))
    return " " + text if str(tokenizer.convert_ids_to_tokens(token)).startswith("▁") and text[:1] != " " else text
