"""Attention of short rows on a CPU, computed in fp32 where the model computes in 16 bits.

torch's CPU kernels for attention are slow in 16 bits where rows are short: forward and backward of 8 rows of 60 tokens (9 heads
of 64) take 6.5 ms in bf16 and 2.6 in fp32, casts included, on two cores of an EPYC with AVX-512 (BF16); of 160 tokens 22 and
14 ms; from about 250 on there is nothing to win, from 190 with heads of 128. What is saved for the backward pass stays in 16
bits.
"""

from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

UP_TO, WIDE_UP_TO = 224, 160  # tokens per row; with heads of more than 64


def install() -> None:
    """Let every model of this process that attends through SDPA train so; answering, which has no gradient, stays."""
    AttentionInterface.register("sdpa", _sdpa)


def _sdpa(module: Any, query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """transformers' own function, whose call of torch's attention is answered here where that gains."""
    if not _gains(query, key):
        return sdpa_attention_forward(module, query, key, *args, **kwargs)
    with _InFp32():
        return sdpa_attention_forward(module, query, key, *args, **kwargs)


def _gains(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether a query [rows, heads, tokens, size] is of short rows, in 16 bits on a CPU, and trained through."""
    return (
        query.device.type == "cpu"
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[2] == key.shape[2] <= (UP_TO if query.shape[3] <= 64 else WIDE_UP_TO)
        and query.requires_grad
    )


class _InFp32(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            return _attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """As torch's scaled_dot_product_attention, whose conditions for its fused kernel are asked here once more."""
    other_mask = attn_mask is not None and (attn_mask.requires_grad or attn_mask.dim() not in (2, 4))
    if dropout_p or value.shape[-1] != query.shape[-1] or other_mask:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    out: torch.Tensor = _Attention.apply(query, key, value, attn_mask, is_causal, scale)
    return out


class _Attention(torch.autograd.Function):
    """softmax(scale * q k^T + mask) v in fp32, given back in the dtype of the query.

    query: [rows, heads, tokens, size]; key and value may have fewer heads. Saved are these and the result as they came,
    and the logarithm of every query's sum in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        causal: bool,
        scale: float | None,
    ) -> torch.Tensor:
        # out: [rows, heads, tokens, size]; sums: [rows, heads, tokens]
        out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query.float(), key.float(), value.float(), 0.0, causal, attn_mask=_added(mask), scale=scale
        )
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, mask, out, sums)
        ctx.causal, ctx.scale = causal, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        query, key, value, mask, out, sums = ctx.saved_tensors
        # [rows, heads, tokens, size] each, in fp32 only until this layer's gradients are made
        wide = [part.float() for part in (grads[0], query, key, value, out)]
        # of query, key and value, each of its own shape
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *wide, sums, 0.0, ctx.causal, attn_mask=_added(mask), scale=ctx.scale
        )
        return (*(part.to(query.dtype) for part in gradients), None, None, None)


def _added(mask: torch.Tensor | None) -> torch.Tensor | None:
    """A mask as the kernel takes it, added to the scores in fp32; made twice, so that layers keep the one they share."""
    if mask is None or mask.dtype != torch.bool:
        return None if mask is None else mask.float()
    return torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, -torch.inf)
