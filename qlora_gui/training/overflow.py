"""How near a base comes to the limit of fp16: the largest number that its layers hand on, watched while it is measured."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer


class Largest:
    """The largest absolute value so far, kept on its device: only `value` waits for it."""

    def __init__(self) -> None:
        self._largest: torch.Tensor | None = None

    def add(self, hidden: torch.Tensor) -> None:
        here = hidden.detach().abs().amax()
        self._largest = here if self._largest is None else torch.maximum(self._largest, here)

    @property
    def value(self) -> float | None:
        """None where nothing was seen; infinity or NaN where it overflowed."""
        return None if self._largest is None else float(self._largest)


@contextmanager
def watched(model: Any, dtype: torch.dtype) -> Iterator[Largest]:
    """While this lasts, note what the layers of a model that computes in fp16 give out; in other formats nothing.

    These are the sums of the residual stream, which are where bases that were trained in bf16 grow largest.
    """
    largest = Largest()

    def note(layer: Any, args: Any, out: Any) -> None:
        largest.add(out[0] if isinstance(out, tuple) else out)

    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    hooks = [layer.register_forward_hook(note) for layer in layers if dtype == torch.float16]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()
