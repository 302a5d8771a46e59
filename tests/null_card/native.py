"""torch's own CUDA code from end to end on the null card, its kernels counted and not run: memory is true, values are not.

The caching allocator sees the real shapes, so a 7B base takes minutes and hardly any memory of the machine. Questions
about values get the answer that is usual or that costs the most memory.
"""

import ctypes
from typing import Any

import torch


def enter() -> None:
    """From here on, nobody reads values that nobody computed."""
    from transformers import masking_utils

    from qlora_gui.models import chunked_loss

    torch.equal = lambda one, other: True  # type: ignore[assignment]
    torch.allclose = lambda *others, **tolerance: True  # type: ignore[assignment]
    torch.Tensor.nonzero = _all_places  # type: ignore[method-assign, assignment]
    chunked_loss.alike = lambda one, other: one.shape == other.shape
    masking_utils.find_packed_sequence_indices = lambda positions: None


def _all_places(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Every place counts: which tokens are learned from. Their number is waited for, as ever."""
    torch.cuda.current_stream(tensor.device).synchronize()
    return torch.empty(tensor.numel(), tensor.dim(), dtype=torch.int64, device=tensor.device)


def launches() -> int:
    """Kernels launched so far, matrix products among them."""
    products = _counter("nullcuda_products", "libcublas.so.13") + _counter("nullcuda_lt_products", "libcublasLt.so.13")
    return _counter("nullcuda_launches") + products


def waits() -> int:
    """How often the host has waited for the card so far."""
    return _counter("nullcuda_syncs")


def _counter(name: str, library: str = "libcudart.so.13") -> int:
    function = getattr(ctypes.CDLL(library), name)
    function.restype = ctypes.c_size_t
    return int(function())
