"""Attention of BLOOM through SDPA with centred ALiBi, and packed rows for BLOOM.

transformers computes BLOOM's attention itself (its class takes no other implementation), with ALiBi as slope * k:
exact in fp32, but in bf16 a score near slope * 1000 has lost its fraction. ALiBi is relative, so slope * (k - q) is
the same softmax with small numbers where they matter, and a packed row needs no positions, only its blocks.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch.nn import functional
from transformers.models.bloom import modeling_bloom

CPU_EAGER_UP_TO = (
    256  # tokens a row: up to here, eager attention is the faster one on CPUs (benchmarks/bloom_attention.py)
)


class _Bias:
    """The additive bias of the running forward pass, [rows or 1, heads, queries, keys], made once for all layers."""

    def __init__(self, heads: int, choice: str) -> None:
        self.heads, self.choice = heads, choice
        self.blocks: torch.Tensor | None = None
        self.made: tuple[Any, torch.Tensor] | None = None

    def begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before a forward pass: forget the last bias; packed rows tell their blocks by position_ids that restart."""
        self.made, self.blocks = None, None
        positions = kwargs.pop("position_ids", None)
        if positions is not None and kwargs.get("past_key_values") is None:
            self.blocks = block_numbers(positions)
        return args, kwargs

    def eager(self, device: torch.device, keys: int) -> bool:
        return self.choice == "eager" or (self.choice == "auto" and device.type == "cpu" and keys <= CPU_EAGER_UP_TO)

    def of(self, query: torch.Tensor, keys: int, mask: torch.Tensor | None) -> torch.Tensor:
        """The bias for a query [rows, heads, queries, width]; `mask` is additive, [rows, 1, queries, keys], or None."""
        key = (query.dtype, query.shape[2], keys, None if mask is None else mask.data_ptr())
        if self.made is None or self.made[0] != key:
            self.made = (key, self._make(query, keys, mask))
        return self.made[1]

    def _make(self, query: torch.Tensor, keys: int, mask: torch.Tensor | None) -> torch.Tensor:
        slopes = modeling_bloom._get_alibi_slopes(self.heads, query.device)
        places = torch.arange(keys, device=query.device)
        distance = places[None, :] - places[keys - query.shape[2] :, None]
        bias = slopes[:, None, None] * distance
        hidden = distance > 0
        if mask is not None and (extra := self._beyond_causal(mask, hidden)) is not None:
            hidden = hidden | extra
        return torch.where(hidden, _never(query), bias[None]).to(query.dtype)

    def _beyond_causal(self, mask: torch.Tensor, causal: torch.Tensor) -> torch.Tensor | None:
        """What padding and blocks hide, [rows, 1, queries, keys]; None when the causal order hides all of it."""
        hidden = mask < 0 if self.blocks is None else (mask < 0) | across(self.blocks)
        return None if torch.equal(hidden, causal.expand_as(hidden)) else hidden


def block_numbers(positions: torch.Tensor) -> torch.Tensor | None:
    """[rows, tokens] -> the number of the example each token belongs to; None when every row holds only one."""
    numbers = (positions.diff(dim=-1, prepend=positions[:, :1] - 1) != 1).cumsum(-1)
    return numbers if bool(numbers.any()) else None


def across(blocks: torch.Tensor) -> torch.Tensor:
    """[rows, tokens] -> True where query and key belong to different examples, [rows, 1, tokens, tokens]."""
    return blocks[:, None, :, None] != blocks[:, None, None, :]


def _never(like: torch.Tensor) -> float:
    """What a masked key gets: finite, so that a padded query, which sees no key at all, stays finite too."""
    return torch.finfo(like.dtype).min


@torch.no_grad()
def packs(model: Any) -> bool:
    """Whether the decoder of a causal LM keeps packed examples apart: asked by trying on a few tokens."""
    ids = torch.tensor([[5, 7, 11, 13, 5, 11, 7, 3]], device=model.get_input_embeddings().weight.device)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3]], device=ids.device)

    def second(**inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = model.base_model(use_cache=False, **inputs).last_hidden_state[:, -4:]
        return hidden.float()

    alone, joined = second(input_ids=ids[:, 4:]), second(input_ids=ids)
    try:
        packed = second(input_ids=ids, position_ids=positions)
    except TypeError:  # takes no position_ids
        return False
    return bool((packed - alone).norm() < (joined - alone).norm() / 8)


def install(model: Any, choice: str) -> None:
    """Choose the attention of a causal LM: `sdpa`, `eager`, or `auto`, which is the faster one.

    Only BLOOM needs help; every other base is told by transformers' own setting.
    """
    decoder = model.base_model
    if not isinstance(decoder, modeling_bloom.BloomModel):
        if choice != "auto":
            model.set_attn_implementation(choice)
        return
    bias = _Bias(decoder.num_heads, choice)
    decoder.register_forward_pre_hook(bias.begin, with_kwargs=True)
    for block in decoder.h:
        attention = block.self_attention
        attention.forward = MethodType(_forward(bias, attention.forward), attention)


def _forward(bias: _Bias, eager: Callable[..., Any]) -> Callable[..., Any]:
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
        if output_attentions or bias.eager(hidden_states.device, keys):
            if bias.blocks is not None:
                attention_mask = attention_mask.masked_fill(across(bias.blocks), _never(attention_mask))
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
        out = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=bias.of(query, key.shape[2], attention_mask),
            dropout_p=self.attention_dropout.p if self.training else 0.0,
            scale=self.inv_norm_factor,
        )
        out = self.dense(out.transpose(1, 2).flatten(2))
        return modeling_bloom.dropout_add(out, residual, self.hidden_dropout, self.training), None

    return forward
