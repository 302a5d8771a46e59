"""BLOOM's attention through SDPA, with centred ALiBi, and its gelu in one operation.

transformers computes BLOOM's attention itself (its class takes no other implementation), with ALiBi as slope * k:
exact in fp32, but in bf16 a score near slope * 1000 has lost its fraction. ALiBi is relative, so slope * (k - q) is
the same softmax with small numbers where they matter.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from transformers.models.bloom import modeling_bloom

from qlora_gui.families.bloom import BLOOM
from qlora_gui.models.attention import Layout, attend, taken


def prepare(model: Any) -> None:
    """BLOOM writes its gelu out, with five temporaries in the backward pass: torch's is the same function in one."""
    for part in model.modules():
        if isinstance(part, modeling_bloom.BloomMLP):
            part.gelu_impl = torch.nn.GELU(approximate="tanh")


def install_attention(model: Any, choice: str) -> None:
    """Attention through SDPA in every layer, or the stock eager one where `choice` asks for it or it is faster."""
    decoder = model.base_model
    bias = Bias(decoder.num_heads, choice)
    decoder.register_forward_pre_hook(bias.begin, with_kwargs=True)
    for block in decoder.h:
        attention = block.self_attention
        attention.forward = MethodType(_forward(bias, attention.forward), attention)


class Bias:
    """BLOOM's additive bias of the running forward pass, [rows or 1, heads, queries, keys], made once for all layers.

    For the eager attention of packed rows it is made too: there stock ALiBi would count places, not positions.
    """

    def __init__(self, heads: int, choice: str) -> None:
        self.heads, self.choice = heads, choice
        self.layout: Layout | None = None
        self.made: tuple[Any, torch.Tensor] | None = None

    def begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Before a forward pass: forget the last bias, and keep the layout that separates the examples."""
        self.made, self.layout = None, taken(kwargs)
        kwargs.pop("position_ids", None)
        return args, kwargs

    def eager(self, hidden: torch.Tensor, keys: int) -> bool:
        """Whether eager attention is asked for, or the faster one for such hidden states and so many keys."""
        faster = hidden.device.type == "cpu" and hidden.dtype != torch.float32 and keys <= BLOOM.cpu_eager_up_to
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


def _forward(bias: Bias, eager: Callable[..., Any]) -> Callable[..., Any]:
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
        out = attend(query, key, value, mask, dropout, self.inv_norm_factor)
        out = self.dense(out.transpose(1, 2).flatten(2))  # [rows, tokens, heads * size]
        return modeling_bloom.dropout_add(out, residual, self.hidden_dropout, self.training), None

    return forward
