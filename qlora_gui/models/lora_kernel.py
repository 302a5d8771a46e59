"""A 4-bit linear and its LoRA as one step of autograd: the input is saved once, the products are few.

PEFT's own forward casts the input to fp32, clones the result and adds to it, which under autograd saves up to four
tensors of the input's size per linear. Here one is saved, and x @ A ([tokens, rank]).
"""

from types import MethodType
from typing import Any

import bitsandbytes as bnb
import psutil
import torch
from bitsandbytes import functional as quantized
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from torch.nn import functional

from qlora_gui.step_rules import keeps_unpacked


class _LoraProduct(torch.autograd.Function):
    """y = x W^T + scaling * drop(x) A^T B^T + bias, with W frozen in 4 bits.

    x: [tokens, in] in the compute dtype; a: [rank, in], b: [out, rank], bias: [out] or None, in fp32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        bias: torch.Tensor | None,
        linear: Any,
        scaling: float,
        dropout: float,
    ) -> torch.Tensor:
        dropped, mask = _drop(x, dropout) if dropout else (x, None)
        inner = dropped @ a.to(x.dtype).t()  # [tokens, rank]
        del dropped
        weight = dense(linear, x.dtype)  # [out, in]
        out = functional.linear(x, weight, None if bias is None else bias.to(x.dtype))
        del weight
        out.addmm_(inner, b.to(x.dtype).t(), alpha=scaling)
        ctx.save_for_backward(x, a, b, inner, mask)
        ctx.linear, ctx.scaling, ctx.dropout = linear, scaling, dropout
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        x, a, b, inner, mask = ctx.saved_tensors  # mask: bool, of x's shape, or None
        grad = grads[0]  # [tokens, out]
        to_inner = (grad @ b.to(grad.dtype)).mul_(ctx.scaling)  # [tokens, rank]
        # In this order, for a CPU's kernels are slow where the long side comes first: 1.3 to 1.9 times.
        # [out, rank] and [rank, in], in fp32 as a and b are
        to_b = (inner.t() @ grad).t().to(torch.float32, memory_format=torch.contiguous_format).mul_(ctx.scaling)
        to_a = (to_inner.t() @ _dropped(x, mask, ctx.dropout)).float()
        to_bias = grad.sum(0, dtype=torch.float32) if ctx.needs_input_grad[3] else None  # [out]
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = grad @ dense(ctx.linear, grad.dtype)  # [tokens, in]
            if mask is None:
                to_x.addmm_(to_inner, a.to(grad.dtype))
            else:
                _add_dropped(to_x, to_inner @ a.to(grad.dtype), mask, ctx.dropout)
        return to_x, to_a, to_b, to_bias, None, None, None


def dense(linear: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight of a Linear4bit, [out, in], unpacked now, or from `keep_dense`."""
    cached: torch.Tensor | None = getattr(linear, "cached_dense", None)
    if cached is not None:
        return cached
    return quantized.dequantize_4bit(linear.weight.data, _state(linear)).to(dtype)


def _state(linear: Any) -> Any:
    """bitsandbytes' statistics of a packed weight; where weights are sharded the module has them."""
    return getattr(linear.weight, "quant_state", None) or linear.quant_state


def _on_accelerator(x: torch.Tensor) -> bool:
    """Whether x is where the launches of kernels are what a small operation costs."""
    return x.device.type != "cpu"


def _drop(x: torch.Tensor, dropout: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x after dropout, and which of its elements are kept, as bool of its shape."""
    if _on_accelerator(x):
        return torch.native_dropout(x, dropout, True)
    mask = _draw_mask(x, dropout)
    return _dropped(x, mask, dropout), mask


def _draw_mask(x: torch.Tensor, dropout: float) -> torch.Tensor:
    """Which elements dropout keeps on a CPU, as bool of x's shape.

    A CPU draws one number at a time, so each drawn int64 serves four elements, 16 bits each.
    """
    drawn = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    limit = round(dropout * 2**16) - 2**15
    return (drawn.view(torch.int16)[: x.numel()] >= limit).view(x.shape)


def _dropped(x: torch.Tensor, mask: torch.Tensor | None, dropout: float) -> torch.Tensor:
    """x after a dropout that was drawn before."""
    if mask is None:
        return x
    if _on_accelerator(x):
        return torch.ops.aten.native_dropout_backward(x, mask, 1 / (1 - dropout))
    return (x * mask).div_(1 - dropout)


def _add_dropped(out: torch.Tensor, x: torch.Tensor, mask: torch.Tensor, dropout: float) -> None:
    """out += x after a dropout that was drawn before."""
    if _on_accelerator(x):
        out.addcmul_(x, mask, value=1 / (1 - dropout))
    else:
        out += _dropped(x, mask, dropout)


def install(model: torch.nn.Module) -> None:
    """Give every plain 4-bit LoRA linear of a PEFT model the fused forward; others keep PEFT's."""
    for module in model.modules():
        if (
            isinstance(module, LoraLinear4bit)
            and not module.lora_variant
            and isinstance(module.base_layer, bnb.nn.Linear4bit)
        ):
            module.forward = MethodType(_forward, module)


def keep_dense(model: torch.nn.Module) -> bool:
    """On a CPU with memory to spare, keep the 4-bit values unpacked: a tenth of a step is spent on unpacking them.

    The values are the very same.
    """
    linears = [part.base_layer for part in model.modules() if isinstance(part, LoraLinear4bit)]
    weights = sum(linear.in_features * linear.out_features for linear in linears)
    if any(linear.weight.device.type != "cpu" for linear in linears):
        return False
    if not keeps_unpacked(weights, psutil.virtual_memory().available):
        return False
    for linear in linears:
        linear.cached_dense = dense(linear, linear.compute_dtype)
    return True


def _forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    (name,) = self.active_adapters
    linear = self.base_layer
    flat = x.to(linear.compute_dtype or x.dtype).flatten(0, -2)  # [tokens of all rows, in]
    a, b, scaling = self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
    if _on_accelerator(flat) and not (self.training or torch.is_grad_enabled()):
        out = _answered(flat, a, b, linear, scaling)
    else:
        dropout = self.lora_dropout[name].p if self.training and hasattr(self.lora_dropout[name], "p") else 0.0
        out = _LoraProduct.apply(flat, a, b, linear.bias, linear, scaling, dropout)
    return out.view(*x.shape[:-1], -1).to(x.dtype)


def _answered(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, linear: Any, scaling: float) -> torch.Tensor:
    """The product where no gradient is wanted: few tokens are multiplied with the packed weight, as comparing does it.

    Unpacking moves 4.5 bytes per weight, reading it packed half a byte; bitsandbytes chooses by the number of tokens.
    """
    bias = None if linear.bias is None else linear.bias.to(x.dtype)
    out: torch.Tensor = bnb.matmul_4bit(x, linear.weight.data, _state(linear), bias=bias)
    return out.addmm_(x @ a.to(x.dtype).t(), b.to(x.dtype).t(), alpha=scaling)
