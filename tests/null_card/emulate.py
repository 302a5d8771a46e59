"""True values on the null card: every operator on its tensors is computed by the CPU's kernel on the same bytes.

Memory, streams, checks of devices, autocast, the choice of attention kernels are torch's own CUDA code. Mixing devices
raises as on CUDA. Operators, waits of the host, copies and chosen kernels are counted in `counts`.
"""

import ctypes
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from tests.null_card.kernels import KERNELS

_CARD = "cuda"
# These make or describe tensors and compute nothing: torch's CUDA code does them by itself.
_NATIVE = frozenset(
    "empty.memory_format empty_like.default empty_strided.default new_empty.default new_empty_strided.default "
    "_fused_sdp_choice.default resize_.default set_.source_Storage set_.source_Storage_storage_offset set_.source_Tensor set_.default "
    "is_pinned.default _pin_memory.default record_stream.default lift_fresh.default sym_size.int is_same_size.default "
    "_has_compatible_shallow_copy_type.default _unsafe_view.default _reshape_alias.default".split()
)
_WAITS = frozenset("_local_scalar_dense nonzero equal is_nonzero masked_select unique _unique2 argwhere".split())
_ACROSS = frozenset("copy_ _to_copy index index_put_ _index_put_impl_ _pin_memory is_pinned set_ lift_fresh to".split())
# Whose line an operator is counted for, the most telling first.
_PLACES = (
    "/qlora_gui/",
    "/benchmarks/",
    *(f"site-packages/{name}/" for name in ("transformers", "accelerate", "peft")),
)


@dataclass
class Counts:
    """`operators` by name, `waits` and `copies` by place, `attention` by kernel and `mixed` devices by operator.

    Attention that no fused kernel takes is told as `softmax`: it is written out, with all its scores.
    """

    operators: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    mixed: Counter[str] = field(default_factory=Counter)
    attention: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        for counter in vars(self).values():
            counter.clear()


counts = Counts()


def enter() -> None:
    """From here on, this process computes what is on the card."""
    torch.autograd.set_multithreading_enabled(False)  # the backward pass stays in this thread, where the mode is
    Emulator().__enter__()
    _device_constructors()  # remembers the real torch.tensor, which is replaced next
    plain = torch.tensor

    def tensor(data: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """torch.tensor fills tensors below the dispatcher: made on the CPU, then moved."""
        device = kwargs.pop("device", None)
        made = plain(data, *args, **kwargs)
        return made.to(device) if device is not None else made

    torch.tensor = tensor


def _alias(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor over the bytes of one on the card, which are host memory."""
    storage = tensor.untyped_storage()
    size = storage.nbytes()
    if size == 0 or tensor.numel() == 0:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    raw = (ctypes.c_uint8 * size).from_address(storage.data_ptr())
    out = torch.empty(0, dtype=tensor.dtype)
    bytes_of = torch.frombuffer(raw, dtype=torch.uint8).untyped_storage()
    return out.set_(bytes_of, tensor.storage_offset(), tensor.shape, tensor.stride())


def _onto(device: torch.device, made: Any) -> Any:
    if not isinstance(made, torch.Tensor):
        return made
    out = torch.empty_strided(made.shape, made.stride(), dtype=made.dtype, device=device)
    if made.numel():
        _alias(out).copy_(made)
    return out


def _on_card(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == _CARD


def _place() -> str:
    """File and line that an operator is called from."""
    stack = traceback.extract_stack()[:-3]
    for part in _PLACES:
        for frame in reversed(stack):
            if part in frame.filename:
                return f"{Path(frame.filename).name}:{frame.lineno}"
    return "?"


class Emulator(TorchDispatchMode):
    """While it is entered, operators on tensors of the card are computed on the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.rpartition("::")[2]
        full = f"{name}.{func._overloadname}"
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        on_card = [value for value in tensors if _on_card(value)]
        asked = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if not on_card and (asked is None or asked.type != _CARD):
            return func(*args, **kwargs)
        returns = func._schema.returns
        views = any(part.alias_info is not None and not part.alias_info.is_write for part in returns)
        if full in _NATIVE or views:
            return func(*args, **kwargs)
        _check_devices(full, name, tensors, on_card)
        _count(full, name, args, kwargs, asked)
        device = asked or (on_card[0].device if on_card else None)
        if name == "copy_":
            device = args[0].device
        elif name == "_to_copy":
            device = asked or args[0].device
        made = _computed(func, full, args, kwargs)
        if returns and all(part.alias_info is not None and part.alias_info.is_write for part in returns):
            return _written(func, made, args, kwargs)
        return made if device is None or device.type != _CARD else tree_map(lambda one: _onto(device, one), made)


def _check_devices(full: str, name: str, tensors: list[torch.Tensor], on_card: list[torch.Tensor]) -> None:
    """Raise RuntimeError where CUDA would: only numbers without a dimension may come from the CPU."""
    if name in _ACROSS or not on_card:
        return
    elsewhere = [value for value in tensors if value.device.type == "cpu" and value.numel() > 0]
    if any(value.dim() for value in elsewhere) or len({value.device for value in on_card}) > 1:
        counts.mixed[f"{full} {_place()}"] += 1
        raise RuntimeError(f"Expected all tensors to be on the same device, in {full} at {_place()}")


def _count(full: str, name: str, args: Any, kwargs: Any, asked: torch.device | None) -> None:
    counts.operators[full] += 1
    if name in _WAITS:
        counts.waits[f"{name} {_place()}"] += 1
    if name in ("copy_", "_to_copy"):
        source = (args[1] if name == "copy_" else args[0]).device
        target = args[0].device if name == "copy_" else (asked or source)
        if target.type != source.type:
            counter = counts.waits if source.type == _CARD else counts.copies
            counter[f"{source.type} to {target.type} {_place()}"] += 1
    if name in ("_softmax", "_safe_softmax"):
        counts.attention["softmax"] += 1
    if name.startswith("_scaled_dot_product") and not name.endswith("backward"):
        counts.attention[name.removeprefix("_scaled_dot_product_").removesuffix("_attention")] += 1


def _computed(func: Any, full: str, args: Any, kwargs: Any) -> Any:
    """What the CPU's kernel makes of the same bytes."""
    args, kwargs = tree_map(lambda value: _alias(value) if _on_card(value) else value, (args, dict(kwargs)))
    if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == _CARD:
        kwargs["device"] = torch.device("cpu")
    if kwargs.get("pin_memory"):
        kwargs["pin_memory"] = False
    generator = kwargs.get("generator")
    if isinstance(generator, torch.Generator) and generator.device.type == _CARD:
        kwargs["generator"] = None
    with torch.no_grad():
        return KERNELS.get(full, func)(*args, **kwargs)


def _written(func: Any, made: Any, args: Any, kwargs: Any) -> Any:
    """What an operator wrote in place is what it was given; an `out` of another shape becomes as large as the result."""
    arguments = func._schema.arguments
    writes = [part.alias_info is not None and part.alias_info.is_write for part in arguments]
    given = [value for value, write in zip(args, writes, strict=False) if write]
    given += [kwargs[part.name] for part, write in zip(arguments, writes, strict=True) if write and part.name in kwargs]
    single = len(func._schema.returns) == 1
    for target, value in zip(given, [made] if single else made, strict=False):
        if isinstance(target, torch.Tensor) and isinstance(value, torch.Tensor) and target.shape != value.shape:
            target.resize_(value.shape)
            _alias(target).copy_(value)
    return given[0] if single else tuple(given)
