"""Evidence of base and adapters on the same rows: losses of the reference, drift, and greedy answers, in mixed batches.

Every row is read once by every column, prompt and reference in one pass; the answers go on from the cache of that
pass, cut where the prompt ends. So differences are paired row by row, and a prompt is not read twice.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from qlora_gui.compare import decode
from qlora_gui.compare.clean_base import CleanBase
from qlora_gui.compare.generate import Rows
from qlora_gui.compare.rows import BASE, RowAdapters
from qlora_gui.data.tokens import IGNORED, Encoded
from qlora_gui.model import loss
from qlora_gui.model.device import free_memory

Emit = Callable[[dict[str, Any]], None]
MOST_PROMPTS = 8  # a batch: with six columns 48 rows
_SHARE = 4  # of the free memory one part in four is for keys and values


@dataclass(frozen=True)
class Task:
    """What is asked of a row. `max_new_tokens` 0 asks for no answers; `stops` are texts that end one."""

    max_new_tokens: int
    stops: Sequence[str] = ()


@dataclass(frozen=True)
class _Batch:
    """Rows by number, aligned where their answers begin: ids and mask [rows, tokens], the last turn from `begin` on."""

    numbers: list[int]
    ids: torch.Tensor
    mask: torch.Tensor
    shift: list[int]  # padding on the left
    begin: int


@torch.no_grad()
def rows(
    base: CleanBase,
    adapters: RowAdapters,
    columns: int,
    examples: Sequence[Encoded],
    task: Task,
    emit: Emit,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Measure every example under the base and adapters 0 .. columns - 2; emits one `measured` event an example.

    Its lists have one entry a column, the base first: `loss` (the sum over the supervised tokens, nats), `kl` (the
    sum over them of KL(column || base)), `eos` (the probability of an end mark where the reference ends; None where
    the row was cut), and of the answer `text`, `ended` (eos, length or stop string), `tokens`, and `differs` (the
    first token that is not the base's; None where all are).
    """
    plain = not loss.not_plain(base.model)
    for batch in _batches(base, columns, examples, task):
        if cancelled():
            return
        wear = [column for column in (BASE, *range(columns - 1)) for _ in batch.numbers]
        ids, mask = batch.ids.repeat(columns, 1), batch.mask.repeat(columns, 1)
        positions = {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)} if decode.takes_positions(base.model) else {}
        with adapters.worn(wear):
            given = {"input_ids": ids, "attention_mask": mask, "use_cache": task.max_new_tokens > 0, **positions}
            out = base.model.base_model(**given) if plain else base.model(**given)
        found: list[dict[str, Any]] = [{} for _ in batch.numbers]
        for place, number in enumerate(batch.numbers):
            # one row under every column: [columns, tokens, ...], without its padding on the left
            states = (out.last_hidden_state if plain else out.logits)[place :: len(batch.numbers), batch.shift[place] :]
            head = base.model.get_output_embeddings() if plain else None
            found[place] = _losses(states, head, examples[number], base.eos)
        if task.max_new_tokens:
            answers = _answers(base, adapters, batch, ids, mask, out.past_key_values, wear, task, cancelled)
            for place in range(len(batch.numbers)):
                found[place] |= _told(answers[place :: len(batch.numbers)])
        for number, one in zip(batch.numbers, found, strict=True):
            emit({"kind": "measured", "number": number, **one})


def _batches(base: CleanBase, columns: int, examples: Sequence[Encoded], task: Task) -> Iterator[_Batch]:
    """Rows of similar length together, as many as memory and MOST_PROMPTS allow."""
    order = sorted(range(len(examples)), key=lambda number: -len(examples[number].input_ids))
    while order:
        longest = len(examples[order[0]].input_ids) + task.max_new_tokens
        room = free_memory(base.model.device) // _SHARE // (columns * longest * bytes_a_token(base.model))
        count = min(max(room, 1), MOST_PROMPTS)
        yield _aligned(base, order[:count], examples, align=task.max_new_tokens > 0)
        order = order[count:]


def bytes_a_token(model: Any) -> int:
    """Keys and values of one token in all layers, in bytes."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)


def _aligned(base: CleanBase, numbers: list[int], examples: Sequence[Encoded], align: bool) -> _Batch:
    """The rows with their last answers beginning at the same place, so that one cut of the cache leaves all prompts."""
    starts = [answer_begins(examples[number]) if align else 0 for number in numbers]
    begin = max(starts)
    shift = [begin - start for start in starts]
    rows = [examples[number].input_ids for number in numbers]
    width = max(gap + len(row) for gap, row in zip(shift, rows, strict=True))
    pad, device = base.tokenizer.pad_token_id, base.model.device
    ids = [[pad] * gap + row + [pad] * (width - gap - len(row)) for gap, row in zip(shift, rows, strict=True)]
    mask = [[0] * gap + [1] * (width - gap) for gap in shift]  # padding on the right is seen by nothing that counts
    return _Batch(numbers, torch.tensor(ids, device=device), torch.tensor(mask, device=device), shift, begin)


def answer_begins(example: Encoded) -> int:
    """The first token of the last supervised stretch: there the prompt of the last answer ends."""
    place = len(example.labels)
    while place > 0 and example.labels[place - 1] == IGNORED:
        place -= 1
    while place > 0 and example.labels[place - 1] != IGNORED:
        place -= 1
    return place


def _losses(states: torch.Tensor, head: Any, example: Encoded, eos: frozenset[int]) -> dict[str, Any]:
    """`loss`, `kl` and `eos` of one row; states: [columns, tokens, width], or logits where there is no head."""
    columns = len(states)
    places = [place for place in range(1, len(example.labels)) if example.labels[place] != IGNORED]
    ends = example.labels[places[-1]] in eos
    beyond = [] if ends or example.truncated else [places[-1] + 1]  # a reference without an end mark: what follows it
    asked = [place - 1 for place in (*places, *beyond)]
    targets = torch.tensor([example.labels[place] for place in places] + [0] * len(beyond), device=states.device)
    losses, kl = torch.zeros(columns, dtype=torch.float64), torch.zeros(columns, dtype=torch.float64)
    end_mark: list[float] | None = None
    marks = torch.tensor(sorted(eos), device=states.device)
    vocabulary = head.weight.shape[0] if head is not None else states.shape[-1]
    chunk = max(loss.chunk_rows(vocabulary, states.device.type) // columns, 1)
    for first in range(0, len(asked), chunk):
        here = asked[first : first + chunk]
        part = states[:, here]
        logits = functional.linear(part.to(head.weight.dtype), head.weight, head.bias) if head is not None else part
        logs = logits.float().log_softmax(-1)
        counted = max(min(len(places) - first, len(here)), 0)
        wanted = targets[first : first + counted].expand(columns, -1)[..., None]
        losses -= logs[:, :counted].gather(-1, wanted).sum((1, 2)).double().cpu()
        kl += (logs.exp() * (logs - logs[:1]))[:, :counted].sum((1, 2)).double().cpu()
        if first + len(here) == len(asked) and not (example.truncated and not ends):
            end_mark = logs[:, -1, marks].exp().sum(-1).tolist()
    return {"loss": losses.tolist(), "kl": kl.tolist(), "eos": end_mark}


def _answers(
    base: CleanBase,
    adapters: RowAdapters,
    batch: _Batch,
    ids: torch.Tensor,
    mask: torch.Tensor,
    cache: Any,
    wear: list[int],
    task: Task,
    cancelled: Callable[[], bool],
) -> list[dict[str, Any]]:
    """One greedy answer a row of the batch, in its order."""
    cache.crop(-(ids.shape[1] - batch.begin + 1))  # its last token is read again, to be answered
    said: list[dict[str, Any]] = [{"text": "", "ended": "", "ids": []} for _ in wear]

    def take(event: dict[str, Any]) -> None:
        if event["kind"] == "text":
            said[event["column"]]["text"] += event["text"]
        else:
            said[event["column"]]["ended"] = event["ended"]

    rows = Rows(base.tokenizer, [task.stops] * len(wear), base.eos, take)
    start = decode.Started(cache, ids[:, batch.begin - 1], mask[:, : batch.begin], list(wear))
    decode.greedy(base.model, adapters, start, rows, task.max_new_tokens, cancelled)
    for one, row in zip(said, rows.rows, strict=True):
        one["ids"] = row.ids
    return said


def _told(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row's answers, a list a value, the base's first."""
    of_base = answers[0]["ids"]
    return {
        "text": [one["text"] for one in answers],
        "ended": [one["ended"] for one in answers],
        "tokens": [len(one["ids"]) for one in answers],
        "differs": [_first_difference(of_base, one["ids"]) for one in answers],
    }


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    if one == other:
        return None
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


@torch.no_grad()
def text_loss(base: CleanBase, adapters: RowAdapters, columns: int, text: str, window: int = 256) -> dict[str, Any]:
    """Mean loss of a text without any template, in nats a token: `loss` has one entry a column, the base first."""
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = [ids[first : first + window] for first in range(0, len(ids), window)]
    encoded = [Encoded(0, piece, list(piece), True) for piece in pieces if len(piece) > 1]
    sums, tokens = [0.0] * columns, sum(one.supervised for one in encoded)

    def take(event: dict[str, Any]) -> None:
        for column, value in enumerate(event["loss"]):
            sums[column] += value

    rows(base, adapters, columns, encoded, Task(0), take)
    return {"loss": [value / max(tokens, 1) if math.isfinite(value) else None for value in sums], "tokens": tokens}
