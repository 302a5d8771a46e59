"""Norms whose weights stay fp32 while the stream around them stays in the compute dtype.

A stock RMSNorm under autograd keeps an fp32 copy of its input, and an fp32 weight turns its output fp32. Here the
input is kept as it came, with one number a token, and the rest is computed again in the backward pass.
"""

from types import MethodType
from typing import Any

import torch
from torch.nn import functional


class _RMSNorm(torch.autograd.Function):
    """x * rsqrt(mean(x^2) + eps) * weight in fp32, given back in x's dtype (Zhang and Sennrich, 1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normed = x.float() * scale
        wide = grads[0].float() * weight
        along = (wide * normed).mean(-1, keepdim=True)
        return wide.sub_(normed.mul_(along)).mul_(scale).to(x.dtype), None, None


class _LayerNorm(torch.autograd.Function):
    """torch's layer norm in fp32, given back in x's dtype; its bias may be trained."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
        out, mean, rstd = torch.native_layer_norm(x.float(), weight.shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], False, ctx.needs_input_grad[2]]
        to_x, _, to_bias = torch.ops.aten.native_layer_norm_backward(
            grads[0].float(), x.float(), weight.shape, mean, rstd, weight, bias, wanted
        )
        return (to_x.to(x.dtype) if wanted[0] else None), None, to_bias, None


def widen(model: torch.nn.Module) -> None:
    """Make the weights of every norm fp32; layer norms and RMS norms then give back the dtype they were given."""
    for module in model.modules():
        if "norm" not in type(module).__name__.lower():
            continue
        module.float()
        if type(module) is torch.nn.LayerNorm and module.elementwise_affine and module.bias is not None:
            module.forward = MethodType(_layer_norm, module)  # type: ignore[method-assign]
        elif _is_rms_norm(module):
            module.forward = MethodType(_rms_norm, module)  # type: ignore[method-assign]


def _layer_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = _LayerNorm.apply(x, self.weight, self.bias, self.eps)
    return out


def _rms_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = _RMSNorm.apply(x, self.weight, self.variance_epsilon)
    return out


@torch.no_grad()
def _is_rms_norm(module: Any) -> bool:
    """Whether a module computes exactly an RMS norm: asked by trying, for some (1 + weight) do not."""
    if not hasattr(module, "variance_epsilon") or [name for name, _ in module.named_parameters()] != ["weight"]:
        return False
    weight = module.weight
    x = torch.linspace(-2, 3, weight.numel(), dtype=weight.dtype, device=weight.device)[None]
    expected = functional.rms_norm(x, weight.shape, weight, module.variance_epsilon)
    return bool(torch.allclose(module(x), expected, rtol=1e-5, atol=1e-6))
