"""Norms whose weights stay fp32 while the stream around them stays in the compute dtype.

A stock RMSNorm under autograd saves an fp32 copy of its input, and an fp32 weight turns its output fp32. Here the
input is saved as it came, with one number per token, and the rest is recomputed in the backward pass.
"""

import inspect
import re
from types import MethodType
from typing import Any

import torch
from torch.nn import functional


class _RMSNorm(torch.autograd.Function):
    """x * rsqrt(mean(x^2) + eps) * weight in fp32, given back in x's dtype (Zhang and Sennrich, 1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.to(torch.float32, copy=True)
        scale = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()  # [..., 1]
        ctx.save_for_backward(x, weight, scale)
        return wide.mul_(scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        normed = x.to(torch.float32, copy=True).mul_(scale)
        wide = grads[0].to(torch.float32, copy=True).mul_(weight)
        along = (wide * normed).mean(-1, keepdim=True)
        return wide.addcmul_(normed, along, value=-1).mul_(scale).to(x.dtype), None, None


class _LayerNorm(torch.autograd.Function):
    """torch's layer norm in fp32, given back in x's dtype; its bias may be absent or trained."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
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
    """Make the weights of every norm fp32; all then give back the dtype they were given.

    What is plainly a layer norm or an RMS norm gets the forward above. All others (gated ones, 1 + weight, a weight a
    head) keep their own: they are given fp32, so that fp32 weights fit, and their result goes back. Where a layer takes
    the dtype of its norm's weight for that of the stream (Mamba-2, Nemotron-H), the weight stays as it is.
    """
    asking = {kind for kind in {type(module) for module in model.modules()} if _asks_for_its_dtype(kind)}
    asked = {id(child) for module in model.modules() if type(module) in asking for child in module.children()}
    for module in model.modules():
        if "norm" not in type(module).__name__.lower() or any(True for _ in module.children()):
            continue
        if id(module) not in asked:
            module.float()
        if type(module) is torch.nn.LayerNorm and module.elementwise_affine:
            module.forward = MethodType(_layer_norm, module)  # type: ignore[method-assign]
        elif _is_rms_norm(module):
            module.forward = MethodType(_rms_norm, module)  # type: ignore[method-assign]
        else:
            _InFp32(module)


def _asks_for_its_dtype(layer: type[torch.nn.Module]) -> bool:
    """Whether a layer's forward makes its stream the dtype that the weight of its norm has."""
    try:
        return re.search(r"norm\w*\.weight\.dtype", inspect.getsource(layer.forward)) is not None
    except (OSError, TypeError):  # there is no source to read
        return False


def _layer_norm(self: Any, input: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = _LayerNorm.apply(input, self.weight, self.bias, self.eps)
    return out


def _rms_norm(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)
    return out


class _InFp32:
    """Hooks around a norm's own forward: its first argument, which is what it norms, in fp32, its result as given."""

    def __init__(self, norm: torch.nn.Module) -> None:
        self.first = list(inspect.signature(norm.forward).parameters)[:1]
        self.given: torch.dtype | None = None
        norm.register_forward_pre_hook(self.before, with_kwargs=True)
        norm.register_forward_hook(self.after)

    def before(self, norm: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            self.given = args[0].dtype
            return (args[0].float(), *args[1:]), kwargs
        for name in self.first:
            self.given = kwargs[name].dtype
            kwargs = kwargs | {name: kwargs[name].float()}
        return args, kwargs

    def after(self, norm: Any, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        return out.to(self.given)


@torch.no_grad()
def _is_rms_norm(module: Any) -> bool:
    """Whether a module computes exactly an RMS norm, of nothing but its input: tested on one vector."""
    if not hasattr(module, "variance_epsilon") or [name for name, _ in module.named_parameters()] != ["weight"]:
        return False
    weight = module.weight
    if weight.ndim != 1 or len(inspect.signature(module.forward).parameters) != 1:  # a matrix; a gate
        return False
    x = torch.linspace(-2, 3, weight.numel(), dtype=weight.dtype, device=weight.device)[None]
    expected = functional.rms_norm(x, weight.shape, weight, module.variance_epsilon)
    return bool(torch.allclose(module(x), expected, rtol=1e-5, atol=1e-6))
