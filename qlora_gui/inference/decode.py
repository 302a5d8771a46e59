"""Greedy answers of many prompts at once, from a cache that holds the prompts; rows that have ended leave the batch.

transformers' `generate` carries every row to the end of the longest one. Here a base that rambles on does not make
adapters that have long ended go on with it.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from qlora_gui.inference import model_probe
from qlora_gui.inference.generate import Rows
from qlora_gui.inference.multi_lora import RowAdapters

_LEAVE_AT = 0.75  # the batch is made smaller when no more than this share of its rows goes on


@dataclass
class Started:
    """Rows that have read their prompts: `cache` holds all tokens but the last one, `last` [rows].

    `mask` [rows, tokens] is 0 where a row is padded on the left; `wear` is the adapter of each row.
    """

    cache: Any
    last: torch.Tensor
    mask: torch.Tensor
    wear: list[int]


@torch.no_grad()
def greedy(
    model: Any,
    adapters: RowAdapters,
    start: Started,
    rows: Rows,
    max_new_tokens: int,
    cancelled: Callable[[], bool] = lambda: False,
) -> None:
    """Answer every row until its end or `max_new_tokens`; `rows` takes the tokens, and knows who has ended."""
    counted = model_probe.takes_positions(model)
    here = list(range(len(start.wear)))  # the number of each row that is still in the batch
    rows.put(start.last)  # by the streamer's contract the prompt comes first
    with ExitStack() as worn:
        worn.enter_context(adapters.worn(start.wear))
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
            told = torch.zeros(len(rows.rows), dtype=torch.long)  # those that have ended are not read
            told[here] = start.last.cpu()
            rows.put(told)
            if cancelled():
                break
            going = [place for place, number in enumerate(here) if not rows.rows[number].ended]
            if not going:
                break
            start.mask = torch.cat([start.mask, start.mask.new_ones(len(here), 1)], dim=1)
            if len(going) <= _LEAVE_AT * len(here):
                here = [here[place] for place in going]
                worn.close()
                _keep(start, going)
                worn.enter_context(adapters.worn(start.wear))
    rows.end()


def _keep(start: Started, places: Sequence[int]) -> None:
    """Only these rows stay in the batch."""
    index = torch.tensor(places, device=start.last.device)
    start.cache.batch_select_indices(index)
    start.last, start.mask = start.last[index], start.mask[index]
    start.wear = [start.wear[place] for place in places]
