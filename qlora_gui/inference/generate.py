"""One batch of prompts, answered token by token: every row streams, and ends, on its own."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from qlora_gui.data.special_tokens import Text
from qlora_gui.errors import UserError
from qlora_gui.inference import model_probe, protocol
from qlora_gui.inference.clean_base import CleanBase
from qlora_gui.inference.model_probe import Reading
from qlora_gui.inference.multi_lora import MultiLora
from qlora_gui.inference.sampling import Decoding

_LEAVE_AT = 0.75  # the batch is made smaller when no more than this share of its rows goes on


@dataclass
class Started:
    """Rows that have read their prompts: `cache` holds all tokens but the last one, `last` [rows].

    `mask` [rows, tokens] is 0 where a row is padded on the left; `active` is each row's adapter number.
    """

    cache: Any
    last: torch.Tensor
    mask: torch.Tensor
    active: list[int]


Emit = Callable[[protocol.Event], None]


@dataclass
class Row:
    """One answer in the making: the texts and tokens that end it, and the most tokens that it may have (None: no limit)."""

    stops: Sequence[str]
    eos: Collection[int]
    most: int | None = None
    ids: list[int] = field(default_factory=list)
    sent: int = 0  # characters that were emitted
    ended: str = ""


class Rows:
    """transformers' streamer contract: `put` gets the prompt [rows, tokens], then one new token per row; then `end`."""

    def __init__(self, tokenizer: Any, rows: list[Row], emit: Emit):
        self.tokenizer, self.rows, self.emit = tokenizer, rows, emit
        self.prompt_seen = False
        self.began = time.monotonic()

    def put(self, value: torch.Tensor) -> None:
        if not self.prompt_seen:
            self.prompt_seen = True
            return
        for column, (row, token) in enumerate(zip(self.rows, value.tolist(), strict=True)):
            if row.ended:
                continue  # padding after this row's end
            if token in row.eos:
                self.finish(column, "eos")
            else:
                row.ids.append(token)
                self.show(column)
                if len(row.ids) == row.most:
                    self.finish(column, "length")

    def end(self) -> None:
        for column in range(len(self.rows)):
            self.finish(column, "length")

    def finish(self, column: int, reason: str) -> None:
        """End a row: what was held back of its text comes now, then its figures."""
        row = self.rows[column]
        if row.ended:
            return
        text = self.text(column)
        positions = [text.find(stop) for stop in row.stops if stop in text]
        self._send(column, text[: min(positions)] if positions else text)
        row.ended = reason
        seconds = time.monotonic() - self.began
        rate = round(len(row.ids) / max(seconds, 1e-6), 2)
        self.emit(protocol.Ended(column, len(row.ids), round(seconds, 3), rate, reason, list(row.ids)))

    def show(self, column: int) -> None:
        """Emit what the newest token makes certain of a row's text, and end the row at a stop string."""
        text = self.text(column)
        stops = self.rows[column].stops
        if any(stop in text for stop in stops):
            self.finish(column, "stop string")
            return
        # Held back: half a character, and what may become a stop string.
        safe = len(text.rstrip("�"))
        for stop in stops:
            safe = min(safe, len(text) - _overlap(text, stop))
        self._send(column, text[:safe])

    def text(self, column: int) -> str:
        """What a row says so far."""
        return str(self.tokenizer.decode(self.rows[column].ids, skip_special_tokens=True))

    def _send(self, column: int, text: str) -> None:
        row = self.rows[column]
        if len(text) > row.sent:
            self.emit(protocol.Text(column, text[row.sent :]))
            row.sent = len(text)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


class _Ended(StoppingCriteria):
    """Per row: it has ended, or everything was cancelled."""

    def __init__(self, rows: Rows, cancelled: Callable[[], bool]):
        self.rows, self.cancelled = rows, cancelled

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self.cancelled():
            for column in range(len(self.rows.rows)):
                self.rows.finish(column, "stopped")
        return torch.tensor([bool(row.ended) for row in self.rows.rows], device=input_ids.device)


class GumbelNoise(LogitsProcessor):
    """Sampling by Gumbel noise: argmax(log p / T + noise) is a draw from p.

    With shared sampling noise one vector per step serves all rows (Coupled Token Generation, 2502.01754), else each
    row has its own. Either way an answer depends on the seed and its column, and not on how many columns there are.
    """

    def __init__(self, decoding: Decoding, columns: Sequence[int]):
        self.decoding = decoding
        self.generators = [_generator(decoding.seed, column) for column in ([0] if decoding.same_dice else columns)]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float() / self.decoding.temperature  # [rows, vocabulary], as everything below
        ordered, order = scores.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        dropped = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, before >= self.decoding.top_p)
        noise = torch.stack([_gumbel(scores.shape[-1], generator) for generator in self.generators])
        return scores.masked_fill(dropped, -math.inf) + noise.to(scores.device, scores.dtype)


def _generator(seed: int, row: int) -> torch.Generator:
    """A row's own generator. Its seed is hashed: of a seed the generator on CPUs reads the lower 32 bits alone."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, row)).generate_state(1)[0]))


def _gumbel(size: int, generator: torch.Generator) -> torch.Tensor:
    uniform = torch.rand(size, generator=generator, dtype=torch.float64).clamp_(1e-300, 1 - 1e-16)
    return -torch.log(-torch.log(uniform))


def group_prompts(prompts: Mapping[int, Sequence[int]], reading: Reading, new: int) -> list[list[int]]:
    """The numbers of prompts that can be read in one batch, and answered with `new` tokens at most: all, or those of one
    length where padding is not ignored, or where the longest changes how the others are read.
    """
    lengths: dict[int, list[int]] = {}
    for number, prompt in prompts.items():
        own = not reading.left_padding or reading.is_apart(len(prompt) + new)
        lengths.setdefault(len(prompt) if own else 0, []).append(number)
    return list(lengths.values())


def renumbered(emit: Emit, places: Sequence[int]) -> Emit:
    """Events of rows that are the columns `places`, with the columns' numbers."""

    def of_column(event: protocol.Event) -> None:
        assert isinstance(event, protocol.Text | protocol.Ended | protocol.Scored)
        emit(replace(event, column=places[event.column]))

    return of_column


@torch.no_grad()
def run(
    base: CleanBase,
    prompts: Sequence[list[int]],
    rows: Rows,
    max_new_tokens: int,
    processors: Sequence[LogitsProcessor],
    cancelled: Callable[[], bool],
) -> None:
    """Answer prompts of tokens in one batch, padded on the left, by transformers' own `generate`; `rows` takes the tokens."""
    model, pad = base.model, base.tokenizer.pad_token_id
    longest = max(map(len, prompts))
    padding = [longest - len(row) for row in prompts]
    batch = torch.tensor([[pad] * gap + row for gap, row in zip(padding, prompts, strict=True)], device=model.device)
    mask = torch.tensor(
        [[0] * gap + [1] * len(row) for gap, row in zip(padding, prompts, strict=True)], device=model.device
    )
    # Without an end mark for all: each row has its own, and ends by it (`_Ended`).
    config = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad, use_cache=True)
    model.generate(
        input_ids=batch,
        attention_mask=mask,
        generation_config=config,
        logits_processor=LogitsProcessorList(processors),
        stopping_criteria=StoppingCriteriaList([_Ended(rows, cancelled)]),
        streamer=rows,
    )


def answer(
    base: CleanBase,
    prompts: Sequence[Text],
    stops: Sequence[Sequence[str]],
    decoding: Decoding,
    emit: Emit,
    cancelled: Callable[[], bool] = lambda: False,
    activate: Callable[[Sequence[int]], AbstractContextManager[None]] = lambda places: nullcontext(),
    batches: Sequence[Sequence[int]] | None = None,
) -> None:
    """Answer all prompts, in one batch where the base allows it; `emit` gets `Text` events as they come and one `Ended`
    per row.

    `batches` are the numbers of prompts that may share a batch, all where it is None; `activate` is entered around every batch,
    with the numbers of the prompts that are its rows. Raises UserError when a prompt and its answer do not fit into the
    model's context, or a token has no embedding.
    """
    ids = [prompt.ids(base.tokenizer) for prompt in prompts]
    base.check_ids(ids)
    _check_room(base.model.config, max(map(len, ids)), decoding.max_new_tokens)
    allowed = [range(len(ids))] if batches is None else batches
    for places in (
        part
        for batch in allowed
        for part in group_prompts({place: ids[place] for place in batch}, base.reading, decoding.max_new_tokens)
    ):
        rows = Rows(base.tokenizer, [Row(stops[place], base.eos) for place in places], renumbered(emit, places))
        noise = [] if decoding.greedy else [GumbelNoise(decoding, places)]
        with activate(places):
            run(base, [ids[place] for place in places], rows, decoding.max_new_tokens, noise, cancelled)


def _check_room(config: Any, prompt: int, new: int) -> None:
    """Raise UserError when so many tokens do not fit into the context that the model's config names."""
    room = getattr(config.get_text_config(), "max_position_embeddings", None)
    if room and prompt + new > room:
        raise UserError(
            f"The conversation has {prompt} tokens and the answer may have {new}, but the model "
            f"reads {room}: shorten it, or ask for fewer tokens."
        )


@torch.no_grad()
def greedy(
    model: Any,
    adapters: MultiLora,
    start: Started,
    rows: Rows,
    max_new_tokens: int,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Answer every row until its end or `max_new_tokens`; `rows` takes the tokens, and knows who has ended."""
    counted = model_probe.takes_positions(model)
    here = list(range(len(start.active)))  # the number of each row that is still in the batch
    rows.put(start.last)  # by the streamer's contract the prompt comes first
    with ExitStack() as stack:
        stack.enter_context(adapters.activate(start.active))
        for _ in range(max_new_tokens):
            positions = {"position_ids": start.mask.sum(1, keepdim=True) - 1} if counted else {}
            out = model(
                input_ids=start.last[:, None],
                attention_mask=start.mask,
                past_key_values=start.cache,
                use_cache=True,
                **positions,
            )
            start.last = out.logits[:, -1].argmax(-1)
            tokens = torch.zeros(len(rows.rows), dtype=torch.long)  # those that have ended are not read
            tokens[here] = start.last.cpu()
            rows.put(tokens)
            if cancelled():
                break
            going = [place for place, number in enumerate(here) if not rows.rows[number].ended]
            if not going:
                break
            start.mask = torch.cat([start.mask, start.mask.new_ones(len(here), 1)], dim=1)
            if len(going) <= _LEAVE_AT * len(here):
                here = [here[place] for place in going]
                stack.close()
                _keep(start, going)
                stack.enter_context(adapters.activate(start.active))
    rows.end()


def _keep(start: Started, places: Sequence[int]) -> None:
    """Only these rows stay in the batch."""
    index = torch.tensor(places, device=start.last.device)
    start.cache.batch_select_indices(index)
    start.last, start.mask = start.last[index], start.mask[index]
    start.active = [start.active[place] for place in places]
