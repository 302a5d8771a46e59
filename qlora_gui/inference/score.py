"""Evidence of base and adapters on the same rows: losses of the reference, drift, and greedy answers, in mixed batches.

Every row is read once by every column, prompt and reference in one pass; the answers go on from the cache of that
pass, cut where the prompt ends. So differences are paired row by row, and a prompt is not read twice. Where what was
read cannot be cut back, as in recurrent layers, the prompts are read again.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from qlora_gui.data.tokenization import IGNORED, Encoded
from qlora_gui.inference import generate, model_probe, protocol
from qlora_gui.inference.clean_base import CleanBase
from qlora_gui.inference.multi_lora import BASE, MultiLora
from qlora_gui.inference.protocol import Answer
from qlora_gui.models import chunked_loss, context
from qlora_gui.models import device as devices

Emit = Callable[[protocol.Measured], None]
MOST_PROMPTS = 8  # per batch: with six columns 48 rows
FIRST = 32  # tokens of a reference whose whole distributions are given to whoever compares models
_SHARE = 4  # a batch may take one part in four of the free memory


@dataclass(frozen=True)
class Task:
    """What is asked of a row. `max_new_tokens` 0 asks for no answers; `stops` are texts that end one."""

    max_new_tokens: int
    stops: Sequence[str] = ()


@dataclass(frozen=True)
class _Batch:
    """Rows by number, aligned where their answers begin: ids and mask [rows, tokens], the last turn from `begin` on.

    `goes_on`: their answers go on from what was read.
    """

    numbers: list[int]
    ids: torch.Tensor
    mask: torch.Tensor
    shift: list[int]  # padding on the left
    begin: int
    goes_on: bool


@torch.no_grad()
def rows(
    base: CleanBase,
    adapters: MultiLora,
    columns: int,
    examples: Sequence[Encoded],
    task: Task,
    emit: Emit,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Measure every example under the base and adapters 0 .. columns - 2; emits one `Measured` per example."""
    asked = _Asked(
        base, adapters, adapters.batches([BASE, *range(columns - 1)]), task, not chunked_loss.not_plain(base.model)
    )
    for batch, states, answers in _read(asked, columns, examples, cancelled):
        for place, number in enumerate(batch.numbers):
            # one row under every column, without its padding on the left
            row = {adapter: part[place, batch.shift[place] :] for adapter, part in states.items()}
            loss, kl, eos = _losses(asked, row, examples[number])
            in_order = (answers[adapter][place] for adapter in (BASE, *range(columns - 1)))
            emit(protocol.Measured(number, loss, kl, eos, **(_as_lists([*in_order]) if task.max_new_tokens else {})))


@dataclass(frozen=True)
class _Asked:
    """What is asked of which columns: `groups` of adapters share a batch; `plain` where logits are head(state)."""

    base: CleanBase
    adapters: MultiLora
    groups: list[list[int]]
    task: Task
    plain: bool

    def read(
        self, batch: _Batch, prompts: list[list[int]], cancelled: Callable[[], bool]
    ) -> tuple[dict[int, torch.Tensor], dict[int, list[Answer]]]:
        """By adapter: states [rows, tokens, width], or logits where they are more than head(state), and answers."""
        model, count = self.base.model, len(batch.numbers)
        goes_on = batch.goes_on
        states: dict[int, torch.Tensor] = {}
        answers: dict[int, list[Answer]] = {}
        for group in self.groups:
            active = [adapter for adapter in group for _ in batch.numbers]  # all rows of one adapter, then the next
            # [adapters of the group * rows, tokens]
            ids, mask = batch.ids.repeat(len(group), 1), batch.mask.repeat(len(group), 1)
            given = {
                "input_ids": ids,
                "attention_mask": mask,
                "use_cache": goes_on,
                **model_probe.positions(model, mask),
            }
            if goes_on:
                given["past_key_values"] = model_probe.fresh_cache(model)
            with self.adapters.activate(active):
                out = model.base_model(**given) if self.plain else model(**given)
            batch_answers: list[Answer] = []
            if goes_on:
                cache = given["past_key_values"]
                batch_answers = _go_on(self.base, self.adapters, batch, ids, mask, cache, active, self.task, cancelled)
            elif self.task.max_new_tokens:
                batch_answers = _read_anew(self.base, self.adapters, prompts * len(group), active, self.task, cancelled)
            for place, adapter in enumerate(group):
                rows = slice(place * count, (place + 1) * count)
                states[adapter] = (out.last_hidden_state if self.plain else out.logits)[rows]
                answers[adapter] = batch_answers[rows]
        return states, answers

    def logits(self, row: dict[int, torch.Tensor], places: list[int]) -> torch.Tensor:
        """Of one row's states or logits [tokens, ...] by adapter, its logits at these places: [columns, places, vocabulary]."""
        by_adapter: dict[int, torch.Tensor] = {}
        for group in self.groups:
            # [adapters of the group, places, width], or [..., vocabulary] where these are logits already
            part = torch.stack([row[adapter][places] for adapter in group])
            if self.plain:
                dtype = self.base.model.get_output_embeddings().weight.dtype
                with self.adapters.activate_on_head(group):
                    part = self.base.model.get_output_embeddings()(part.to(dtype))
            by_adapter |= dict(zip(group, part, strict=True))
        return torch.stack([by_adapter[adapter] for adapter in sorted(by_adapter)])  # the base first: BASE is -1


def _read(
    asked: _Asked, columns: int, examples: Sequence[Encoded], cancelled: Callable[[], bool]
) -> Iterator[tuple[_Batch, dict[int, torch.Tensor], dict[int, list[Answer]]]]:
    """Batches of rows of similar length, with what `_Asked.read` returns for them: as many as memory and MOST_PROMPTS allow, and
    half as many from where that is too many after all."""
    order = sorted(range(len(examples)), key=lambda number: -len(examples[number].input_ids))
    most = MOST_PROMPTS
    while order and not cancelled():
        batch = _next_batch(asked, columns, examples, order, most)
        prompts = [examples[number].input_ids[: answer_begins(examples[number])] for number in batch.numbers]
        try:
            states, answers = asked.read(batch, prompts, cancelled)
        except Exception as error:
            if not devices.ran_out(error) or len(batch.numbers) == 1:
                raise
            most = len(batch.numbers) // 2
        else:
            yield batch, states, answers
            order = order[len(batch.numbers) :]
            continue
        devices.release()  # here, where the error holds nothing any more


def _next_batch(asked: _Asked, columns: int, examples: Sequence[Encoded], order: list[int], most: int) -> _Batch:
    """The first rows of `order`, at most so many."""
    base, new = asked.base, asked.task.max_new_tokens
    longest = len(examples[order[0]].input_ids) + new
    each = base.reading.bytes_per_row(longest) + longest * _bytes_read_by(base.model, asked.plain)
    room = devices.free_memory(base.model.device) // _SHARE // (columns * each)
    here = order[: min(max(room, 1), most)]
    apart = base.reading.is_apart(longest)  # its prompt, read with its reference, is not what it is alone
    if apart:
        here = [number for number in here if len(examples[number].input_ids) == len(examples[here[0]].input_ids)]
    return _aligned(base, here, examples, new > 0 and base.reading.croppable and not apart)


def _bytes_read_by(model: Any, plain: bool) -> int:
    """What a token takes while it is read, in bytes, besides what the cache keeps of it (an estimate).

    In the widest part of a layer: gate, up and their product in the compute dtype, and two of them in fp32 for the
    adapters. Where all logits are made, those, and two copies that what follows the head may hold.
    """
    embedding = model.get_input_embeddings().weight
    number, inner = embedding.element_size(), getattr(model.config.get_text_config(), "intermediate_size", None) or 0
    widest = max(*(inner if isinstance(inner, (list, tuple)) else [inner]), 4 * embedding.shape[1])
    logits = 0 if plain else 3 * number * model.get_output_embeddings().weight.shape[0]
    return (3 * number + 8) * widest + logits


def _aligned(base: CleanBase, numbers: list[int], examples: Sequence[Encoded], goes_on: bool) -> _Batch:
    """The rows; their last answers begin at the same place where they go on, so that one cut of the cache leaves all
    prompts.
    """
    starts = [answer_begins(examples[number]) if goes_on else 0 for number in numbers]
    begin = max(starts)
    shift = [begin - start for start in starts]
    rows = [examples[number].input_ids for number in numbers]
    width = max(gap + len(row) for gap, row in zip(shift, rows, strict=True))
    pad, device = base.tokenizer.pad_token_id, base.model.device
    ids = [[pad] * gap + row + [pad] * (width - gap - len(row)) for gap, row in zip(shift, rows, strict=True)]
    # Padding on the right is seen by nothing that counts; but counted on, it could be the longest row of a batch.
    # and a table of positions may have none for it.
    room, _ = context.size(base.located.path)
    after = 1 if base.reading.alike_up_to is None and (room is None or width <= room) else 0
    lengths = [len(row) for row in rows]
    mask = [[0] * gap + [1] * size + [after] * (width - gap - size) for gap, size in zip(shift, lengths, strict=True)]
    return _Batch(numbers, torch.tensor(ids, device=device), torch.tensor(mask, device=device), shift, begin, goes_on)


def answer_begins(example: Encoded) -> int:
    """The first token of the last supervised stretch: there the prompt of the last answer ends."""
    place = len(example.labels)
    while place > 0 and example.labels[place - 1] == IGNORED:
        place -= 1
    while place > 0 and example.labels[place - 1] != IGNORED:
        place -= 1
    return place


def _losses(
    asked: _Asked, row: dict[int, torch.Tensor], example: Encoded
) -> tuple[list[float], list[float], list[float] | None]:
    """Loss, KL and P(end mark) of one row, one per column each, of its states or logits [tokens, ...] by adapter."""
    model, eos, columns = asked.base.model, asked.base.eos, len(row)
    places = [place for place in range(1, len(example.labels)) if example.labels[place] != IGNORED]
    ends = example.labels[places[-1]] in eos
    beyond = [] if ends or example.truncated else [places[-1] + 1]  # a reference without an end mark: what follows it
    wanted = [place - 1 for place in (*places, *beyond)]
    targets = torch.tensor([example.labels[place] for place in places] + [0] * len(beyond), device=model.device)
    losses, kl = torch.zeros(columns, dtype=torch.float64), torch.zeros(columns, dtype=torch.float64)
    end_mark: list[float] | None = None
    marks = torch.tensor(sorted(eos), device=model.device)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    chunk = max(chunked_loss.chunk_rows(vocabulary, model.device.type) // columns, 1)
    for first in range(0, len(wanted), chunk):
        here = wanted[first : first + chunk]
        logs = asked.logits(row, here).float().log_softmax(-1)  # [columns, places, vocabulary]
        counted = max(min(len(places) - first, len(here)), 0)
        right = targets[first : first + counted].expand(columns, -1)[..., None]  # [columns, places, 1]
        losses -= logs[:, :counted].gather(-1, right).sum((1, 2)).double().cpu()
        kl += (logs.exp() * (logs - logs[:1]))[:, :counted].sum((1, 2)).double().cpu()
        if first + len(here) == len(wanted) and not (example.truncated and not ends):
            end_mark = logs[:, -1, marks].exp().sum(-1).tolist()
    return losses.tolist(), kl.tolist(), end_mark


def _go_on(
    base: CleanBase,
    adapters: MultiLora,
    batch: _Batch,
    ids: torch.Tensor,
    mask: torch.Tensor,
    cache: Any,
    active: list[int],
    task: Task,
    cancelled: Callable[[], bool],
) -> list[Answer]:
    """One greedy answer per row of the batch, in its order, from the cache of the pass over prompt and reference."""
    cache.crop(-(ids.shape[1] - batch.begin + 1))  # its last token is read again, to be answered
    answers = [Answer() for _ in active]
    making = [generate.Row(task.stops, base.eos) for _ in active]
    rows = generate.Rows(base.tokenizer, making, partial(protocol.take, answers))
    start = generate.Started(cache, ids[:, batch.begin - 1], mask[:, : batch.begin], list(active))
    generate.greedy(base.model, adapters, start, rows, task.max_new_tokens, cancelled)
    return answers


def _read_anew(
    base: CleanBase,
    adapters: MultiLora,
    prompts: Sequence[list[int]],
    active: list[int],
    task: Task,
    cancelled: Callable[[], bool],
) -> list[Answer]:
    """One greedy answer per prompt, in their order; adapter active[i] is active on prompt i."""
    answers = [Answer() for _ in active]
    for places in generate.group_prompts(dict(enumerate(prompts)), base.reading, task.max_new_tokens):
        emit = generate.renumbered(partial(protocol.take, answers), places)
        rows = generate.Rows(base.tokenizer, [generate.Row(task.stops, base.eos) for _ in places], emit)
        with adapters.activate([active[place] for place in places]):
            generate.run(base, [prompts[place] for place in places], rows, task.max_new_tokens, [], cancelled)
    return answers


def _as_lists(answers: Sequence[Answer]) -> dict[str, list[Any]]:
    """One row's answers as `Measured` has them, one list per value, the base's first."""
    return {
        "text": [answer.text for answer in answers],
        "ended": [answer.ended for answer in answers],
        "tokens": [answer.tokens for answer in answers],
        "differs": [_first_difference(answers[0].ids, answer.ids) for answer in answers],
    }


def _first_difference(first: Sequence[int], second: Sequence[int]) -> int | None:
    if first == second:
        return None
    pairs = zip(first, second, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


@dataclass(frozen=True)
class Reading:
    """One example read by one model: the loss of its reference in nats, summed, its greedy answer, and log-probabilities
    [tokens, vocabulary] of its reference's first FIRST tokens.
    """

    number: int
    loss: float
    answer: Answer
    first: torch.Tensor


@torch.no_grad()
def readings(
    base: CleanBase, adapters: MultiLora, adapter: int, examples: Sequence[Encoded], task: Task
) -> Iterator[Reading]:
    """Read every example under one adapter, or BASE, with whole distributions: to hold one model against another."""
    asked = _Asked(base, adapters, [[adapter]], task, not chunked_loss.not_plain(base.model))
    for batch, states, answers in _read(asked, 1, examples, lambda: False):
        for place, number in enumerate(batch.numbers):
            labels = examples[number].labels
            places = [place for place in range(1, len(labels)) if labels[place] != IGNORED]
            row = {adapter: states[adapter][place, batch.shift[place] :]}
            loss, head = 0.0, None
            for begin in range(0, len(places), FIRST):
                here = places[begin : begin + FIRST]
                logs = (
                    asked.logits(row, [place - 1 for place in here])[0].float().log_softmax(-1)
                )  # [tokens, vocabulary]
                targets = torch.tensor([labels[place] for place in here], device=logs.device)[:, None]
                loss -= float(logs.gather(-1, targets).double().sum())
                head = logs if head is None else head
            assert head is not None, "an example without a reference"
            yield Reading(number, loss, answers[adapter][place] if task.max_new_tokens else Answer(), head)


@torch.no_grad()
def text_loss(base: CleanBase, adapters: MultiLora, columns: int, text: str, window: int = 256) -> protocol.General:
    """The mean loss of a text without any template, in pieces of so many tokens."""
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = [ids[first : first + window] for first in range(0, len(ids), window)]
    encoded = [Encoded(0, piece, list(piece), True) for piece in pieces if len(piece) > 1]
    sums, tokens = [0.0] * columns, sum(row.supervised for row in encoded)

    def take(measured: protocol.Measured) -> None:
        for column, value in enumerate(measured.loss):
            sums[column] += value

    rows(base, adapters, columns, encoded, Task(0), take)
    return protocol.General([value / max(tokens, 1) if math.isfinite(value) else None for value in sums], tokens)
