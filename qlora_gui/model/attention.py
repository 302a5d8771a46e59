"""Attention of packed rows for every base, and of BLOOM through SDPA with centred ALiBi.

transformers computes BLOOM's attention itself (its class takes no other implementation), with ALiBi as slope * k:
exact in fp32, but in bf16 a score near slope * 1000 has lost its fraction. ALiBi is relative, so slope * (k - q) is
the same softmax with small numbers where they matter.

Packed rows come with `blocks`, [rows, tokens]: 0 for a beginning that all examples of the row share, n for the
n-th example (data/batches.py). A token sees what precedes it in its own block and in block 0.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch.nn import functional
from transformers.models.bloom import modeling_bloom

# Tokens a row: up to here eager is the faster one on CPUs in 16 bits, in fp32 never (benchmarks/bloom_attention.py).
CPU_EAGER_UP_TO = 128
# Queries at once on a CPU: each such block only reads the keys up to its end, five eighths of them at 1,024 tokens.
CPU_QUERIES = 256


def hidden_by(blocks: torch.Tensor) -> torch.Tensor:
    """[rows, tokens] -> True where a query (second to last) may not see a key (last), [rows, 1, tokens, tokens]."""
    keys, queries = blocks[:, None, None, :], blocks[:, None, :, None]
    later = torch.ones(blocks.shape[1], blocks.shape[1], dtype=torch.bool, device=blocks.device).triu(1)
    return later | ((keys != queries) & (keys != 0))


def install(model: Any, choice: str) -> None:
    """Choose the attention of a causal LM: `sdpa`, `eager`, or `auto`, which is the faster one; teach it `blocks`."""
    decoder = model.base_model
    if isinstance(decoder, modeling_bloom.BloomModel):
        bias = _Bias(decoder.num_heads, choice)
        decoder.register_forward_pre_hook(bias.begin, with_kwargs=True)
        for block in decoder.h:
            attention = block.self_attention
            attention.forward = MethodType(_bloom_forward(bias, attention.forward), attention)
        return
    if choice != "auto":
        model.set_attn_implementation(choice)
    decoder.register_forward_pre_hook(_with_mask, with_kwargs=True)


def _with_mask(decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """`blocks` -> a mask of four dimensions, which transformers takes as it is: additive, for eager needs it so."""
    blocks = kwargs.pop("blocks", None)
    if blocks is not None:
        kwargs["attention_mask"] = _additive(hidden_by(blocks), decoder.get_input_embeddings().weight.dtype)
    return args, kwargs


def _additive(hidden: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)


@torch.no_grad()
def packs(model: Any) -> bool:
    """Whether the decoder of a causal LM keeps packed examples apart, after a shared beginning: asked by trying."""
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([[2, 3, 5, 7, 11, 13, 5, 11, 7, 3]], device=device)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 2, 3, 4, 5]], device=device)
    blocks = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2, 2, 2]], device=device)

    def last(**inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = model.base_model(use_cache=False, **inputs).last_hidden_state[:, -4:]
        return hidden.float()

    alone, joined = last(input_ids=torch.cat([ids[:, :2], ids[:, 6:]], 1)), last(input_ids=ids)
    try:
        packed = last(input_ids=ids, position_ids=positions, blocks=blocks)
    except TypeError:  # takes no position_ids
        return False
    return bool((packed - alone).norm() < (joined - alone).norm() / 8)


class _Bias:
    """BLOOM's additive bias of the running forward pass, [rows or 1, heads, queries, keys], made once for all layers.

    For the eager attention of packed rows it is made too: there stock ALiBi would count places, not positions.
    """

    def __init__(self, heads: int, choice: str) -> None:
        self.heads, self.choice = heads, choice
        self.positions: torch.Tensor | None = None
        self.blocks: torch.Tensor | None = None
        self.made: tuple[Any, torch.Tensor] | None = None

    def begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before a forward pass: forget the last bias, and keep what tells examples apart."""
        self.made = None
        self.blocks, self.positions = kwargs.pop("blocks", None), kwargs.pop("position_ids", None)
        return args, kwargs

    def eager(self, hidden: torch.Tensor, keys: int) -> bool:
        """Whether eager attention is asked for, or the faster one for such hidden states and so many keys."""
        faster = hidden.device.type == "cpu" and hidden.dtype != torch.float32 and keys <= CPU_EAGER_UP_TO
        return self.choice == "eager" or (self.choice == "auto" and faster)

    def of(self, query: torch.Tensor, keys: int, mask: torch.Tensor | None) -> torch.Tensor:
        """The bias for a query [rows, heads, queries, width]; `mask` is additive, [rows, 1, queries, keys], or None."""
        key = (query.dtype, query.shape[2], keys, None if mask is None else mask.data_ptr())
        if self.made is None or self.made[0] != key:
            self.made = (key, self._make(query, keys, mask))
        return self.made[1]

    def _make(self, query: torch.Tensor, keys: int, mask: torch.Tensor | None) -> torch.Tensor:
        slopes = modeling_bloom._get_alibi_slopes(self.heads, query.device)
        places = torch.arange(keys, device=query.device)
        if self.blocks is not None and self.positions is not None:
            hidden = hidden_by(self.blocks)
            distance = self.positions[:, None, None, :] - self.positions[:, None, :, None]
        else:
            distance = places[None, :] - places[keys - query.shape[2] :, None]
            hidden = (distance > 0)[None, None]
            if mask is not None and not torch.equal(mask < 0, hidden.expand_as(mask)):
                hidden = hidden | (mask < 0)
            distance = distance[None, None]
        # finite, so that a padded query, which sees no key at all, stays finite too
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
            if bias.blocks is not None:
                like = hidden_states.new_empty(1, self.num_heads, keys, 1)
                alibi, attention_mask = torch.zeros_like(alibi), bias.of(like, keys, attention_mask)
            return eager(
                hidden_states,
                residual,
                alibi,
                attention_mask,
                layer_past,
                output_attentions=output_attentions,
                **kwargs,
            )
        query, key, value = self._reshape(self.query_key_value(hidden_states))
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        dropout = self.attention_dropout.p if self.training else 0.0
        mask = bias.of(query, key.shape[2], attention_mask)
        out = _attend(query, key, value, mask, dropout, self.inv_norm_factor)
        out = self.dense(out.transpose(1, 2).flatten(2))
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
        seen = mask[..., first:end, :end]
        blocks.append(
            attend(query[:, :, first:end], key[:, :, :end], value[:, :, :end], seen, dropout_p=dropout, scale=scale)
        )
    return torch.cat(blocks, dim=2)
