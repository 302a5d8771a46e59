"""Counts the bytes of every tensor storage alive while a step runs, on fake tensors as on real ones."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from bitsandbytes.backends.default.ops import _gemm_4bit_default_impl
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA_BLOCK = 512  # bytes: torch's CUDA allocator rounds every request up to a multiple of this
Place = tuple[str, int]  # a phase of the step, and the number of the layer in it


class LiveBytes(TorchDispatchMode):
    """Sees every operation below autograd, so temporaries, saved tensors, gradients and states alike.

    `live` is the sum of all storages alive now, each rounded up to `block` bytes; `peaks` is its highest
    value at every place that `at` named. What a kernel allocates for itself inside is not seen.
    """

    def __init__(self, block: int = CUDA_BLOCK):
        super().__init__()
        self.block = block
        self.live = 0
        self.place: Place = ("start", 0)
        self.peaks: dict[Place, int] = {}
        self._known: dict[int, weakref.ref[Any]] = {}

    def at(self, phase: str, layer: int = 0) -> None:
        """From now on peaks belong to this place."""
        self.place = (phase, layer)
        self._note()

    def watch(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that were made before."""
        for tensor in tensors:
            self._add(tensor.untyped_storage())
        self._note()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.bitsandbytes.gemm_4bit.default:
            # From some hundred tokens on, CUDA does this as it is done here: the weight is dequantized into a
            # buffer, then multiplied. The operation as a whole would hide the buffer.
            with self:
                return _gemm_4bit_default_impl(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf.untyped_storage())
        self._note()
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)  # torch keeps one Python object per storage for as long as the storage lives
        if key in self._known:
            return
        size = -(-storage.nbytes() // self.block) * self.block

        def forget(_: Any) -> None:
            self.live -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, forget)
        self.live += size

    def _note(self) -> None:
        self.peaks[self.place] = max(self.peaks.get(self.place, 0), self.live)
