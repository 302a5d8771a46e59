"""Operators that exist on CUDA only, or do more there, computed on the CPU: what the emulator calls in their place."""

import math
from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten


def _scores(query: Any, key: Any, bias: Any, causal: bool, scale: float) -> torch.Tensor:
    """[rows, heads, queries, keys] in fp32."""
    scores = (query.float() @ key.float().transpose(-1, -2)) * scale
    if bias is not None:
        scores = scores + bias.float()
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    return scores


def _repeated(query: Any, key: Any, value: Any) -> tuple[Any, Any]:
    groups = query.shape[1] // key.shape[1]
    if groups == 1:
        return key, value
    return key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


def _output(scores: Any, sums: Any, value: Any, like: Any) -> torch.Tensor:
    """The heads lie beside each other for every token, as the kernels leave them."""
    out = ((scores - sums).exp() @ value.float()).to(like.dtype)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


def _gradients(
    grad: Any, query: Any, key: Any, value: Any, bias: Any, causal: bool, scale: float
) -> tuple[Any, Any, Any, Any]:
    """Of query, key, value (of every query head) and bias."""
    scores = _scores(query, key, bias, causal, scale)
    shares = (scores - scores.logsumexp(-1, keepdim=True)).exp()
    out_grad = grad.float()
    of_value = shares.transpose(-1, -2) @ out_grad
    of_shares = out_grad @ value.float().transpose(-1, -2)
    of_scores = shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True))
    of_query = (of_scores @ key.float() * scale).to(query.dtype)
    of_key = (of_scores.transpose(-1, -2) @ query.float() * scale).to(key.dtype)
    return of_query, of_key, of_value.to(value.dtype), of_scores


def _summed(part: Any, groups: int) -> Any:
    """Gradients of all query heads that share a key or value -> one for each."""
    if groups == 1:
        return part
    return part.reshape(part.shape[0], -1, groups, *part.shape[2:]).float().sum(2).to(part.dtype)


def _number() -> torch.Tensor:
    return torch.zeros((), dtype=torch.int64)


def efficient(
    query: Any,
    key: Any,
    value: Any,
    bias: Any,
    sums: bool,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: Any = None,
) -> tuple[Any, ...]:
    """The memory-efficient kernel, with its own checks of the bias (transformers/cuda/attention.cu in torch)."""
    assert dropout == 0.0
    if bias is not None:
        assert bias.dtype == query.dtype, (bias.dtype, query.dtype)
        assert bias.stride(-1) == 1 and all(step % 4 == 0 for step in bias.stride()[:-1]), bias.stride()
        assert bias.shape == (*query.shape[:3], key.shape[2]), (bias.shape, query.shape)
    scores = _scores(query, key, bias, causal, scale or query.shape[-1] ** -0.5)
    found = scores.logsumexp(-1)
    out = _output(scores, found[..., None], value, query)
    return out, (found if sums else found[..., :0]), _number(), _number()


def efficient_backward(
    grad: Any, query: Any, key: Any, value: Any, bias: Any, out: Any, sums: Any, seed: Any, offset: Any,
    dropout: float, wanted: Any, causal: bool = False, *, scale: Any = None,
) -> tuple[Any, ...]:  # fmt: skip
    parts = _gradients(grad, query, key, value, bias, causal, scale or query.shape[-1] ** -0.5)
    return *parts[:3], (parts[3].to(query.dtype) if wanted[3] else torch.empty(0))


def flash(
    query: Any,
    key: Any,
    value: Any,
    dropout: float = 0.0,
    causal: bool = False,
    debug: bool = False,
    *,
    scale: Any = None,
) -> tuple[Any, ...]:
    keys, values = _repeated(query, key, value)
    scores = _scores(query, keys, None, causal, scale or query.shape[-1] ** -0.5)
    sums = scores.logsumexp(-1)
    out = _output(scores, sums[..., None], values, query)
    return out, sums, None, None, query.shape[2], key.shape[2], _number(), _number(), torch.empty(0)


def flash_backward(
    grad: Any, query: Any, key: Any, value: Any, out: Any, sums: Any, first_queries: Any, first_keys: Any, queries: Any,
    keys: Any, dropout: float, causal: bool, seed: Any, offset: Any, *, scale: Any = None,
) -> tuple[Any, ...]:  # fmt: skip
    groups = query.shape[1] // key.shape[1]
    all_keys, all_values = _repeated(query, key, value)
    scale = scale or query.shape[-1] ** -0.5
    of_query, of_key, of_value, _ = _gradients(grad, query, all_keys, all_values, None, causal, scale)
    return of_query, _summed(of_key, groups), _summed(of_value, groups)


def cudnn(
    query: Any, key: Any, value: Any, bias: Any, sums: bool, dropout: float = 0.0, causal: bool = False,
    debug: bool = False, *, scale: Any = None,
) -> tuple[Any, ...]:  # fmt: skip
    keys, values = _repeated(query, key, value)
    scores = _scores(query, keys, bias, causal, scale or query.shape[-1] ** -0.5)
    found = scores.logsumexp(-1, keepdim=True)
    out = _output(scores, found, values, query)
    kept = found if sums else found[..., :0, :]
    return out, kept, None, None, query.shape[2], key.shape[2], _number(), _number(), torch.empty(0)


def cudnn_backward(
    grad: Any, query: Any, key: Any, value: Any, out: Any, sums: Any, seed: Any, offset: Any, bias: Any,
    first_queries: Any, first_keys: Any, queries: Any, keys: Any, dropout: float, causal: bool, *, scale: Any = None,
) -> tuple[Any, ...]:  # fmt: skip
    groups = query.shape[1] // key.shape[1]
    all_keys, all_values = _repeated(query, key, value)
    bias = bias if bias is not None and bias.numel() else None
    scale = scale or query.shape[-1] ** -0.5
    of_query, of_key, of_value, _ = _gradients(grad, query, all_keys, all_values, bias, causal, scale)
    return of_query, _summed(of_key, groups), _summed(of_value, groups)


def fused_adamw(*args: Any, **kwargs: Any) -> Any:
    """On CUDA the fused step unscales gradients itself, and does nothing where one of them is infinite."""
    scale, infinite = kwargs.pop("grad_scale", None), kwargs.pop("found_inf", None)
    if infinite is not None and infinite.item():
        return None
    if scale is not None:
        for grad in args[1]:
            grad.div_(scale)
    return aten._fused_adamw_.default(*args, **kwargs)


def softmax(values: Any, dimension: int, half_to_float: bool) -> Any:
    return aten._softmax.default(values.float() if half_to_float else values, dimension, False)


def log_softmax(values: Any, dimension: int, half_to_float: bool) -> Any:
    return aten._log_softmax.default(values.float() if half_to_float else values, dimension, False)


def gemm_4bit(*args: Any, **kwargs: Any) -> Any:
    """bitsandbytes' product with packed weights, by its plain form: the CPU's own wants weights packed otherwise."""
    from bitsandbytes.backends.default.ops import _gemm_4bit_default_impl

    names = "bias absmax_8bit absmax_code absmax_offset".split()
    return _gemm_4bit_default_impl(*args[:6], **(dict(zip(names, args[6:], strict=False)) | kwargs))


KERNELS: dict[str, Callable[..., Any]] = {
    "_scaled_dot_product_efficient_attention.default": efficient,
    "_scaled_dot_product_efficient_attention_backward.default": efficient_backward,
    "_scaled_dot_product_flash_attention.default": flash,
    "_scaled_dot_product_flash_attention_backward.default": flash_backward,
    "_scaled_dot_product_cudnn_attention.default": cudnn,
    "_scaled_dot_product_cudnn_attention_backward.default": cudnn_backward,
    "_fused_adamw_.default": fused_adamw,
    "_softmax.default": softmax,
    "_log_softmax.default": log_softmax,
    "gemm_4bit.default": gemm_4bit,
}
