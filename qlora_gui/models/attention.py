"""Attention of packed rows for every base; families whose attention is their own have it in models/families/.

Packed rows come with `blocks`, [rows, tokens]: 0 for what examples of the row begin with, n for what the n-th example
has of its own (data/collate.py). A token sees what precedes it in its own block, and of block 0 what precedes its own
block: a beginning that all share, or more or less of a conversation that all are turns of. What it sees of that is
the base's own matter (all of it, a window, a chunk, differently in every layer): every decoder makes its masks with
transformers' functions, and here those are asked about positions within an example instead of places in the row.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn import functional
from transformers.integrations import sdpa_attention
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, eager_mask, sdpa_mask

from qlora_gui.models import device as devices
from qlora_gui.models import families, short_rows, supported

# Queries at once on a CPU: each such block only reads the keys up to its end, five eighths of them at 1,024 tokens.
CPU_QUERIES = 256


class Layout(NamedTuple):
    """Where the examples of packed rows are: `blocks`, positions within the example, and the position that each one's
    own block begins at, all [rows, tokens].
    """

    blocks: torch.Tensor
    positions: torch.Tensor
    starts: torch.Tensor

    @classmethod
    def from_blocks(cls, blocks: torch.Tensor, positions: torch.Tensor) -> "Layout":
        """The layout of rows whose blocks each stand in one piece."""
        places = torch.arange(blocks.shape[1], device=blocks.device)
        begins = functional.pad(blocks[:, 1:] != blocks[:, :-1], (1, 0), value=True)  # [rows, tokens]
        first = torch.where(begins, places, 0).cummax(1).values  # [rows, tokens]: where each token's block begins
        return cls(blocks, positions, positions.gather(1, first))

    def seen(self, row: Any, query: Any, key: Any) -> Any:
        """True where a query may see a key: in its own block, or in block 0 before its own block begins.

        The arguments are indices into [rows, tokens], broadcast against each other.
        """
        keys = self.blocks[row, key]
        shared = (keys == 0) & (self.positions[row, key] < self.starts[row, query])
        return (keys == self.blocks[row, query]) | shared


_handed: ContextVar[Layout | None] = ContextVar("handed", default=None)  # to the decoder, by `handed_blocks`
_running: ContextVar[Layout | None] = ContextVar("running", default=None)  # of the decoder that runs now


def _mask(stock: Callable[..., Any], mask_function: Callable[..., Any] = causal_mask_function, **kwargs: Any) -> Any:
    """transformers' mask, [rows, 1, tokens, tokens]; of packed rows an additive one, for eager needs it so."""
    layout = _running.get()
    if layout is None:
        return stock(mask_function=mask_function, **kwargs)

    def of_positions(row: Any, head: Any, query: Any, key: Any) -> Any:
        seen = mask_function(row, head, layout.positions[row, query], layout.positions[row, key])
        return layout.seen(row, query, key) & seen

    # what is padded has a block of its own, and positions say where an example begins
    return eager_mask(mask_function=of_positions, **(kwargs | {"attention_mask": None}))


AttentionMaskInterface.register("sdpa", partial(_mask, sdpa_mask))
AttentionMaskInterface.register("eager", partial(_mask, eager_mask))


@contextmanager
def handed_blocks(kwargs: dict[str, Any]) -> Iterator[None]:
    """Hand `blocks`, if there are any, past a causal LM that does not pass on what it does not know, to its decoder."""
    blocks, positions = kwargs.pop("blocks", None), kwargs.get("position_ids")
    token = _handed.set(None if blocks is None or positions is None else Layout.from_blocks(blocks, positions))
    try:
        yield
    finally:
        _handed.reset(token)


def choose_kernels() -> None:
    """Keep torch's and transformers' choice of SDPA kernels to those that are right and small on every GPU.

    cuDNN's attention is what torch 2.13 prefers for everything on Hopper and newer. Under a mask its backward gives NaN
    for rows of some lengths (length % 128 = 64, pytorch issue 196678), and it plans for about a second at every new
    shape, in decoding at every token. Flash and memory-efficient kernels take its place.

    For this process, and to be called wherever a model is made ready: nothing in transformers, accelerate or PEFT turns
    it on again.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    sdpa_attention.use_gqa_in_sdpa = _use_gqa


_stock_use_gqa = sdpa_attention.use_gqa_in_sdpa


def _use_gqa(attention_mask: torch.Tensor | None, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether SDPA gets keys and values as they are, with fewer heads than queries; else they are repeated per query head.

    On CUDA only flash attention takes them so. Where torch has none (before compute capability 8.0, in fp32) it would
    write out all scores in fp32 instead, tokens x tokens per head, and keep them for the backward pass.
    """
    return _stock_use_gqa(attention_mask, key, value) and _takes_groups(key, value)


def _takes_groups(key: torch.Tensor, value: torch.Tensor) -> bool:
    if key.device.type != "cuda" or torch.version.hip:
        return True
    return bool(can_use_flash_attention(SDPAParams(key, key, value, None, 0.0, True, True)))


def taken(kwargs: dict[str, Any]) -> Layout | None:
    """The layout of a decoder's arguments, or the one that was handed past its causal LM; `blocks` is taken out."""
    blocks, positions = kwargs.pop("blocks", None), kwargs.get("position_ids")
    return _handed.get() if blocks is None or positions is None else Layout.from_blocks(blocks, positions)


def install(model: Any, choice: str) -> None:
    """Choose the attention of a causal LM: `sdpa`, `eager`, or `auto`, whichever is faster; make it take `blocks`."""
    choose_kernels()
    short_rows.install()
    if code := families.code_of(model):
        code.install_attention(model, choice)
        return
    decoder = model.base_model
    if choice != "auto":
        supported.check_attention(type(model), choice)
        model.set_attn_implementation(choice)
    decoder.register_forward_pre_hook(_begin, with_kwargs=True)
    decoder.register_forward_hook(_end, always_call=True)


def _begin(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    layout = taken(kwargs)
    _running.set(layout)
    if layout is not None:
        # declared free of padding: without a mask transformers would look for examples in the positions itself
        kwargs |= {"position_ids": layout.positions, "attention_mask": torch.ones_like(layout.blocks)}
    return args, kwargs


def _end(decoder: Any, args: tuple[Any, ...], output: Any) -> None:
    _running.set(None)


def fixed_window(model: Any) -> int | None:
    """The fewest keys that the last place of a row sees where layers keep a mask of their own, as GPT-Neo's do.

    Such a window counts places in the row, whatever positions say. None where no layer has one.
    """
    windows = []
    for part in model.base_model.buffers():
        if part.dtype == torch.bool and part.ndim >= 2 and part.shape[-1] == part.shape[-2] > 1:
            last = part.reshape(-1, *part.shape[-2:])[:, -1]
            if not bool(last.all()):
                windows.append(int(last.sum(-1).min()))
    return min(windows, default=None)


@torch.no_grad()
def packs(model: Any) -> bool:
    """Whether the decoder of a causal LM keeps packed examples apart, after a shared beginning: tested on a few tokens."""
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([[2, 3, 5, 7, 11, 13, 5, 11, 7, 3]], device=device)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 2, 3, 4, 5]], device=device)
    blocks = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2, 2, 2]], device=device)

    def last(**inputs: torch.Tensor) -> torch.Tensor:
        # [1, 4, width]: the last example
        hidden: torch.Tensor = model.base_model(use_cache=False, **inputs).last_hidden_state[:, -4:]
        return hidden.float()

    alone, joined = last(input_ids=torch.cat([ids[:, :2], ids[:, 6:]], 1)), last(input_ids=ids)
    try:
        packed = last(input_ids=ids, position_ids=positions, blocks=blocks)
    except (
        Exception
    ) as error:  # how a base fails on arguments that it does not expect is its own affair: positions, no padding
        if devices.ran_out(error):
            raise
        return False
    return bool((packed - alone).norm() < (joined - alone).norm() / 8)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, dropout: float, scale: float
) -> torch.Tensor:
    """SDPA of [rows, heads, tokens, width] under an additive mask that hides what comes later.

    CUDA's kernels read all keys in one call; a CPU's time goes with the keys it reads.
    """
    queries, keys = query.shape[2], key.shape[2]
    if query.device.type != "cpu" or queries != keys or queries <= CPU_QUERIES:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale
        )
    blocks = []
    for first in range(0, queries, CPU_QUERIES):
        end = first + CPU_QUERIES
        seen = mask[..., first:end, :end]  # causal: no query of this block sees a key beyond its end
        part = (
            query[:, :, first:end],
            key[:, :, :end],
            value[:, :, :end],
        )  # [rows, heads, queries, width], [..., keys, width]
        blocks.append(functional.scaled_dot_product_attention(*part, seen, dropout_p=dropout, scale=scale))
    return torch.cat(blocks, dim=2)
