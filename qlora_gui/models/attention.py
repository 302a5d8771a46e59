"""Attention of packed rows for every base, and of BLOOM through SDPA with centred ALiBi.

transformers computes BLOOM's attention itself (its class takes no other implementation), with ALiBi as slope * k:
exact in fp32, but in bf16 a score near slope * 1000 has lost its fraction. ALiBi is relative, so slope * (k - q) is
the same softmax with small numbers where they matter.

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
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn import functional
from transformers.integrations import sdpa_attention
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, eager_mask, sdpa_mask
from transformers.models.bloom import modeling_bloom

from qlora_gui.models import device as devices
from qlora_gui.models import short_rows, supported

# Tokens per row: up to here eager is faster on CPUs in 16 bits, in fp32 never (benchmarks/bloom_attention.py).
CPU_EAGER_UP_TO = 128
# Queries at once on a CPU: each such block only reads the keys up to its end, five eighths of them at 1,024 tokens.
CPU_QUERIES = 256


class _Layout(NamedTuple):
    """Where the examples of packed rows are: `blocks`, positions within the example, and the position that each one's
    own block begins at, all [rows, tokens].
    """

    blocks: torch.Tensor
    positions: torch.Tensor
    starts: torch.Tensor

    @classmethod
    def from_blocks(cls, blocks: torch.Tensor, positions: torch.Tensor) -> "_Layout":
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


_handed: ContextVar[_Layout | None] = ContextVar("handed", default=None)  # to the decoder, by `handed_blocks`
_running: ContextVar[_Layout | None] = ContextVar("running", default=None)  # of the decoder that runs now


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
    token = _handed.set(None if blocks is None or positions is None else _Layout.from_blocks(blocks, positions))
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


def _taken(kwargs: dict[str, Any]) -> _Layout | None:
    blocks, positions = kwargs.pop("blocks", None), kwargs.get("position_ids")
    return _handed.get() if blocks is None or positions is None else _Layout.from_blocks(blocks, positions)


def install(model: Any, choice: str) -> None:
    """Choose the attention of a causal LM: `sdpa`, `eager`, or `auto`, whichever is faster; make it take `blocks`."""
    choose_kernels()
    short_rows.install()
    decoder = model.base_model
    if isinstance(decoder, modeling_bloom.BloomModel):
        bias = _Bias(decoder.num_heads, choice)
        decoder.register_forward_pre_hook(bias.begin, with_kwargs=True)
        for block in decoder.h:
            attention = block.self_attention
            attention.forward = MethodType(_bloom_forward(bias, attention.forward), attention)
        return
    if choice != "auto":
        supported.check_attention(type(model), choice)
        model.set_attn_implementation(choice)
    decoder.register_forward_pre_hook(_begin, with_kwargs=True)
    decoder.register_forward_hook(_end, always_call=True)


def _begin(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    layout = _taken(kwargs)
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


class _Bias:
    """BLOOM's additive bias of the running forward pass, [rows or 1, heads, queries, keys], made once for all layers.

    For the eager attention of packed rows it is made too: there stock ALiBi would count places, not positions.
    """

    def __init__(self, heads: int, choice: str) -> None:
        self.heads, self.choice = heads, choice
        self.layout: _Layout | None = None
        self.made: tuple[Any, torch.Tensor] | None = None

    def begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before a forward pass: forget the last bias, and keep the layout that separates the examples."""
        self.made, self.layout = None, _taken(kwargs)
        kwargs.pop("position_ids", None)
        return args, kwargs

    def eager(self, hidden: torch.Tensor, keys: int) -> bool:
        """Whether eager attention is asked for, or the faster one for such hidden states and so many keys."""
        faster = hidden.device.type == "cpu" and hidden.dtype != torch.float32 and keys <= CPU_EAGER_UP_TO
        return self.choice == "eager" or (self.choice == "auto" and faster)

    def for_query(self, query: torch.Tensor, keys: int, mask: torch.Tensor | None) -> torch.Tensor:
        """The bias for a query [rows, heads, queries, width]; `mask` is additive, [rows, 1, queries, keys], or None."""
        key = (query.dtype, query.shape[2], keys, None if mask is None else mask.data_ptr())
        if self.made is None or self.made[0] != key:
            self.made = (key, self._make(query, keys, mask))
        return self.made[1]

    def _make(self, query: torch.Tensor, keys: int, mask: torch.Tensor | None) -> torch.Tensor:
        slopes = modeling_bloom._get_alibi_slopes(self.heads, query.device)
        places = torch.arange(keys, device=query.device)
        if self.layout is not None:
            rows = torch.arange(len(self.layout.blocks), device=query.device)[:, None, None, None]
            seen = self.layout.seen(rows, places[:, None], places)  # [rows, 1, queries, keys]
            hidden = ~seen | (places > places[:, None])
            # [rows, 1, queries, keys]
            distance = self.layout.positions[:, None, None, :] - self.layout.positions[:, None, :, None]
        else:
            distance = places[None, :] - places[keys - query.shape[2] :, None]  # [queries, keys]
            hidden = (distance > 0)[None, None]  # [1, 1, queries, keys], or [rows, ...] with the mask's padding
            if mask is not None and not torch.equal(mask < 0, hidden.expand_as(mask)):
                hidden = hidden | (mask < 0)
            distance = distance[None, None]
        # finite, so that a padded query, which sees no key at all, stays finite too
        # [1 or rows, heads, queries, keys]
        return torch.where(hidden, torch.finfo(query.dtype).min, slopes[:, None, None] * distance).to(query.dtype)


def _bloom_forward(bias: _Bias, eager: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        alibi: torch.Tensor,
        attention_mask: torch.Tensor,
        layer_past: Any = None,
        output_attentions: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        keys = attention_mask.shape[-1] if attention_mask is not None else hidden_states.shape[1]
        if output_attentions or bias.eager(hidden_states, keys):
            if bias.layout is not None:
                like = hidden_states.new_empty(1, self.num_heads, keys, 1)
                alibi, attention_mask = torch.zeros_like(alibi), bias.for_query(like, keys, attention_mask)
            return eager(
                hidden_states,
                residual,
                alibi,
                attention_mask,
                layer_past,
                output_attentions=output_attentions,
                **kwargs,
            )
        query, key, value = self._reshape(self.query_key_value(hidden_states))  # [rows, heads, tokens, size]
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        dropout = self.attention_dropout.p if self.training else 0.0
        mask = bias.for_query(query, key.shape[2], attention_mask)
        out = _attend(query, key, value, mask, dropout, self.inv_norm_factor)
        out = self.dense(out.transpose(1, 2).flatten(2))  # [rows, tokens, heads * size]
        return modeling_bloom.dropout_add(out, residual, self.hidden_dropout, self.training), None

    return forward


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, dropout: float, scale: float
) -> torch.Tensor:
    """SDPA of [rows, heads, tokens, width] under an additive mask that hides what comes later.

    CUDA's kernels read all keys in one call; a CPU's time goes with the keys it reads.
    """
    attend = functional.scaled_dot_product_attention
    queries, keys = query.shape[2], key.shape[2]
    if query.device.type != "cpu" or queries != keys or queries <= CPU_QUERIES:
        return attend(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
    blocks = []
    for first in range(0, queries, CPU_QUERIES):
        end = first + CPU_QUERIES
        seen = mask[..., first:end, :end]  # causal: no query of this block sees a key beyond its end
        blocks.append(
            attend(query[:, :, first:end], key[:, :, :end], value[:, :, :end], seen, dropout_p=dropout, scale=scale)
        )
    return torch.cat(blocks, dim=2)
