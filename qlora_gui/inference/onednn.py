"""Dense fp32 linears on a CPU by oneDNN where it is faster than the matrix library that torch takes for them.

torch gives fp32 products to MKL, which on some CPUs is slow for the few rows that a token of a few columns is (two cores
of an EPYC, three rows of 576 x 49,152: 36 ms, oneDNN 8; of 128 rows 91 and 42). Both are exact to fp32's rounding.
"""

import time
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch.nn import functional

_TRIALS = 8


def install(model: torch.nn.Module) -> bool:
    """Give a model's dense fp32 linears oneDNN's product, if it is faster on this CPU, which is measured on the largest.

    A small one stays in the processor's cache from trial to trial, as it does not while a model answers. For inference:
    there is no gradient. Returns whether it was done.
    """
    linears = [part for part in model.modules() if type(part) is torch.nn.Linear and part.weight.dtype == torch.float32]
    if not linears or linears[0].weight.device.type != "cpu":
        return False
    if not is_faster(max(linears, key=lambda part: part.weight.numel())):
        return False
    for linear in linears:
        linear.forward = MethodType(_forward, linear)
    return True


@torch.no_grad()
def is_faster(linear: torch.nn.Linear) -> bool:
    """Whether three rows take less time; some milliseconds. False where this build of torch has no oneDNN."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    x = torch.ones(3, linear.in_features)
    plain = _seconds(lambda: functional.linear(x, linear.weight, linear.bias))
    return _seconds(lambda: product(x, linear.weight, linear.bias)) < 0.9 * plain


def _seconds(run: Callable[[], Any]) -> float:
    """The quickest of some trials: a disturbance only ever makes a trial slower."""
    took = []
    for _ in range(_TRIALS):
        began = time.perf_counter()
        run()
        took.append(time.perf_counter() - began)
    return min(took)


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x W^T + b for x [..., in], weight [out, in]; [..., out]."""
    out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")
    return out


def _forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    return product(x, self.weight, self.bias) if x.numel() else functional.linear(x, self.weight, self.bias)
