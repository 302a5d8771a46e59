"""On the CPU, let operations allocate as they do on CUDA, and answer what fake tensors, having no values, cannot."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch._subclasses import FakeTensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import masking_utils

from qlora_gui.models import attention as attentions
from qlora_gui.models import chunked_loss, lora_kernel, short_rows

# What CUDA's autocast does in fp32 and the CPU's does not (aten/src/ATen/autocast_mode.h), as far as models use it.
# The list of what is done in 16 bits (linear, matmul, bmm, ...) is the same on both.
FP32 = {
    *"layer_norm group_norm pow __pow__ __rpow__ rsqrt reciprocal exp expm1 log log1p log2 log10 logsumexp".split(),
    *"softmax log_softmax cross_entropy nll_loss norm softplus cosine_similarity".split(),
}
FP32_RESULT = {"sum", "cumsum", "cumprod", "prod"}  # the kernel widens while it reads: no copy of the input


class CudaRules(TorchFunctionMode):
    """While it is entered, functions called from Python follow CUDA where that changes what is kept in memory.

    Fake tensors have no values. Questions about them get the answer that costs the most memory, but for two: whether
    results are equal, which is asked of the logits only, and whether a mask is merely causal.
    """

    def __init__(self, plain_logits: bool, only_causal: bool):
        super().__init__()
        self.plain_logits, self.only_causal = plain_logits, only_causal

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            return attention(*args, **kwargs)
        if name == "dropout" and args and isinstance(args[0], torch.Tensor):
            return dropout(*args, **kwargs)
        if name in self._unknown and args and (isinstance(args[0], FakeTensor) or args[0].is_meta):
            return self._unknown[name](self, *args)
        if torch.is_autocast_enabled("cpu"):
            if name in FP32:
                args = [_to(arg, torch.float32) for arg in args]
                kwargs = {key: _to(value, torch.float32) for key, value in kwargs.items()}
            elif name in FP32_RESULT and args[0].dtype == torch.get_autocast_dtype("cpu"):
                kwargs = {"dtype": torch.float32} | kwargs
        return func(*args, **kwargs)

    def _all_places(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros(tensor.numel(), tensor.dim(), dtype=torch.int64)

    def _equal(self, tensor: torch.Tensor, other: torch.Tensor) -> bool:
        return self.only_causal if tensor.dtype == torch.bool else self.plain_logits

    _unknown: ClassVar[dict[str, Any]] = {
        "__contains__": lambda self, *tensor_and_word: False,  # is there padding?
        "item": lambda self, tensor: 1,  # an optimizer's step count: changes no size
        "__bool__": lambda self, tensor: True,  # does every row hold only one example? asked where none is packed
        "nonzero": _all_places,  # which tokens are learned from
        "data_ptr": lambda self, tensor: id(tensor.untyped_storage()),
        "equal": _equal,
        "allclose": lambda self, *others, **tolerance: True,
    }


@contextlib.contextmanager
def cuda_rules(plain_logits: bool = True, only_causal: bool = True, flash: bool = True) -> Iterator[None]:
    """Enter the rules, and let code that asks what it runs on choose as on CUDA.

    `plain_logits`: the logits are head(hidden), so the loss can be chunked (models/chunked_loss.py). `only_causal`: no row is
    padded on the left or packed, so attention needs no mask of its own. `flash`: the GPU has flash attention.
    """
    autocast, tracing, rows = torch.is_autocast_enabled, masking_utils.is_tracing, chunked_loss.chunk_rows
    answers: list[tuple[Any, str, Any]] = [
        (torch, "is_autocast_enabled", lambda device="cpu": autocast(device)),  # PEFT asks for CUDA's by naming none
        # transformers makes every mask for tensors that have no values
        (masking_utils, "is_tracing", lambda tensor=None: tracing(tensor) and not only_causal),
        (chunked_loss, "chunk_rows", lambda vocabulary, device: rows(vocabulary, "cuda")),
        (chunked_loss, "_product", lambda rows, weight, out: torch.mm(rows, weight, out=out)),
        (lora_kernel, "_on_accelerator", lambda x: True),
        (attentions, "_takes_groups", lambda key, value: flash),
        (attentions, "CPU_QUERIES", sys.maxsize),
        (short_rows, "_gains", lambda query, key: False),
    ]
    with contextlib.ExitStack() as stack:
        for module, name, answer in answers:
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, answer)
        stack.enter_context(CudaRules(plain_logits, only_causal))
        yield


def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """CUDA's dropout saves a mask of one byte per element; the CPU's saves the noise in the input's format."""
    if not training or p == 0:
        return input
    return torch.ops.aten.native_dropout(input, p, True)[0]


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """The storages of scaled_dot_product_attention's fused CUDA kernels; its values are zeros.

    query: [rows, heads, tokens, size]; key and value may have fewer heads. A mask becomes an additive one.
    """
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        query, key, value, attn_mask = (_to(part, dtype) for part in (query, key, value, attn_mask))
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype)
        if over := attn_mask.shape[-1] % 8:  # the memory-efficient kernel wants aligned rows: a copy for every layer
            attn_mask = functional.pad(attn_mask, (0, 8 - over))[..., : -(8 - over)]
    out: torch.Tensor = _Attention.apply(query, key, value, attn_mask)
    return out


class _Attention(torch.autograd.Function):
    """Saves what the flash and the memory-efficient kernels save: inputs, output, and a sum per head and token."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: Any) -> torch.Tensor:
        rows, heads, tokens, _ = query.shape
        out = query.new_zeros(rows, tokens, heads, value.shape[-1]).transpose(1, 2)  # [rows, heads, tokens, size]
        sums = query.new_zeros(rows, heads, tokens, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, bias, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, _bias, _out, sums = ctx.saved_tensors
        inside = [torch.zeros_like(sums), torch.zeros_like(query, dtype=torch.float32)]  # row sums; dQ, summed in fp32
        groups = query.shape[1] // key.shape[1]
        gradients = [torch.zeros_like(query), *(_shared(part, groups) for part in (key, value))]
        del inside
        return (*gradients, None)


def _shared(part: torch.Tensor, groups: int) -> torch.Tensor:
    """The gradient of a key or value: made for every query head, then summed over those that share it."""
    if groups == 1:
        return torch.zeros_like(part)
    rows, heads, tokens, size = part.shape
    return part.new_zeros(rows, heads, groups, tokens, size).sum(2)


def _to(value: Any, dtype: torch.dtype) -> Any:
    is_other = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype != torch.float64
    return value.to(dtype) if is_other else value
