"""An adapter merged into its base, tensor by tensor: W + scaling B A in fp32, and the trained biases, rounded once.

The names on disk stay those of the base, so whatever reads the base reads the merged model.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes import functional
from transformers import AutoConfig

from qlora_gui.errors import UserError
from qlora_gui.export import weights
from qlora_gui.export.weights import Planned, Stored
from qlora_gui.inference.adapter_file import Adapter, Lora
from qlora_gui.models import text_part

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_OF_4_BITS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", "quant_state")
_LARGEST_HALF = torch.finfo(torch.float16).max


class NotPlain(Exception):
    """This adapter cannot be merged tensor by tensor; the text says why. PEFT can do it on the whole model."""


@dataclass(frozen=True)
class Merged:
    """What is to be written: tensors in the order of the base's files; `untied` if the head has weights of its own now."""

    tensors: list[Planned]
    untied: bool

    @property
    def bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors)


@dataclass(frozen=True)
class Change:
    """What becomes of a stored tensor: a LoRA product added to it, or to what a 4-bit linear holds, or another bias."""

    lora: Lora | None = None
    packed: Any = None
    bias: torch.Tensor | None = None


def plan(folder: Path, adapter: Adapter, dtype: torch.dtype, packed: Mapping[str, Any] | None = None) -> Merged:
    """What to write for an adapter on the base in `folder`, in `dtype` where the base has floats.

    `packed` are the 4-bit linears of a loaded base by module name: their values then take the place of the base's own.
    Raises NotPlain for what one tensor at a time cannot do, and UserError for a base that does not fit the adapter.
    """
    if adapter.beyond:
        raise NotPlain(adapter.beyond.reason)
    stored = {name: part for name, part in weights.listed(folder).items() if not _is_statistic(name)}
    model = _on_meta(folder)
    base = _Base(stored, weights.places(model, list(stored)), set(model.state_dict()), _tied(model))
    changes: dict[str, Change] = {}
    extra: list[Planned] = []
    packed = packed or {}
    for name in sorted({*adapter.loras, *adapter.biases, *packed}):
        lora, linear = adapter.loras.get(name), packed.get(name)
        if lora is not None or linear is not None:
            target = f"{name}.weight"
            if target in base.tied and lora is not None:
                extra.append(base.untied(target, lora, dtype))
            else:
                changes[base.one(target, adapter.name)] = Change(lora, linear)
        if name in adapter.biases:
            changes[base.one(f"{name}.bias", adapter.name)] = Change(bias=adapter.biases[name])
    written = {tensor.name for tensor in extra}
    exact = stays_exact(model, dtype)
    tensors = [
        _planned(name, part, changes.get(name), part.dtype if part.dtype == torch.float32 and exact(name) else dtype)
        for name, part in stored.items()
        if name not in written
    ]
    return Merged(tensors + extra, bool(extra))


@dataclass(frozen=True)
class _Base:
    """A base's tensors on disk, where its parameters come from, the names of all, and those that share another's weights."""

    stored: Mapping[str, Stored]
    places: Mapping[str, weights.Place]
    known: set[str]
    tied: Mapping[str, str]

    def one(self, name: str, adapter: str) -> str:
        """The one tensor on disk that is this parameter. Raises NotPlain where it is made of several, UserError where there is none."""
        if name not in self.known:
            raise UserError(f"The adapter '{adapter}' was trained on another base: this one has no '{name}'.")
        place = self.places.get(name)
        if place is None:
            raise NotPlain(f"'{name}' is not in the base's files under a name of its own")
        if place.converted:
            raise NotPlain(f"transformers makes '{name}' out of several tensors of the base's files")
        return place.stored[0]

    def untied(self, name: str, lora: Lora, dtype: torch.dtype) -> Planned:
        """A head with LoRA that shares its base's embedding: written on its own, for the embedding stays as it is.

        Under the name that the files have for it, where they list it though it is tied.
        """
        shared = self.places.get(self.tied[name])
        if shared is None or len(shared.stored) != 1:
            raise NotPlain(f"'{name}' shares its weights with another module")
        embedding, own = self.stored[shared.stored[0]], self.places.get(name)
        called = own.stored[0] if own else name
        return Planned(called, dtype, embedding.shape, lambda: _changed(embedding, Change(lora), dtype))


def stays_exact(model: Any, dtype: torch.dtype) -> Callable[[str], bool]:
    """Which parameters stay in fp32 in a model of `dtype`, because the architecture computes with them so (routers, mostly)."""
    modules = set(model._keep_in_fp32_modules_strict or ())
    if dtype == torch.float16:
        modules |= set(model._keep_in_fp32_modules or ())
    return lambda name: any(f".{module}." in f".{name}." for module in modules)


def _is_statistic(name: str) -> bool:
    """Whether it belongs to a weight that is stored in 4 bits."""
    module, _, statistic = name.partition(".weight.")
    return bool(module) and statistic.startswith(_OF_4_BITS)


def _on_meta(folder: Path) -> Any:
    kind, config = text_part.model_class(AutoConfig.from_pretrained(str(folder), trust_remote_code=False))
    with torch.device("meta"):
        return kind._from_config(config, dtype=torch.bfloat16)


def _tied(model: Any) -> dict[str, str]:
    """Parameters that have no weights of their own: name -> the name of the one they share."""
    tied = model.all_tied_weights_keys
    return dict(tied) if isinstance(tied, Mapping) else dict.fromkeys(tied, "")


def _planned(name: str, part: Stored, change: Change | None, dtype: torch.dtype) -> Planned:
    floating = part.dtype.is_floating_point and part.dtype.itemsize >= 2
    if change is None:
        own = dtype if floating else part.dtype
        return Planned(name, own, part.shape, lambda: fitting(part.read(), own, name))
    if change.bias is not None:
        bias = change.bias
        if bias.shape != torch.Size(part.shape):
            raise UserError(
                f"The adapter has a bias of {tuple(bias.shape)} for '{name}', which is {part.shape} in the base."
            )
        return Planned(name, dtype, part.shape, lambda: fitting(bias, dtype, name))
    if change.packed is not None:
        linear = change.packed
        shape = (linear.out_features, linear.in_features)
        return Planned(name, dtype, shape, lambda: _changed(part, change, dtype))
    if not floating:
        raise UserError(
            f"The base stores '{name}' in {str(part.dtype).removeprefix('torch.')}, so there are no 16-bit weights to merge "
            "onto: merge onto the trained weights (--onto trained), or name the base in 16 bits with --base."
        )
    return Planned(name, dtype, part.shape, lambda: _changed(part, change, dtype))


def _changed(part: Stored, change: Change, dtype: torch.dtype) -> torch.Tensor:
    """[out, in] in `dtype`: the stored values, or those that a 4-bit linear holds, and the LoRA product, added in fp32."""
    if change.packed is not None:
        linear = change.packed
        values = functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state).cpu()
    else:
        values = part.read()
    if change.lora is None:
        return fitting(values, dtype, part.name)
    lora = change.lora
    outputs, inputs = values.shape
    if (lora.b.shape[0], lora.a.shape[1]) != (outputs, inputs):
        raise UserError(
            f"The adapter was trained on another base: '{part.name}' is {inputs} x {outputs} here, "
            f"{lora.a.shape[1]} x {lora.b.shape[0]} there."
        )
    merged = torch.empty(outputs, inputs, dtype=dtype)
    for rows in weights.in_pieces(outputs, inputs):
        exact = values[rows].float() + lora.b[rows] @ lora.a * lora.scaling  # [some of out, in]
        merged[rows] = fitting(exact, dtype, part.name)
    return merged


def fitting(values: torch.Tensor, dtype: torch.dtype, name: str) -> torch.Tensor:
    """The values in `dtype`. Raises UserError where fp16 does not reach that far: it would be infinite."""
    if dtype == torch.float16 and values.is_floating_point() and values.numel():
        largest = float(values.abs().max())
        if math.isfinite(largest) and largest > _LARGEST_HALF:
            raise UserError(f"'{name}' has values up to {largest:.3g}, beyond what fp16 holds: choose bf16.")
    return values.to(dtype)


def write(
    merged: Merged, folder: Path, progress: Callable[[int, int], None], shard_bytes: int = weights.SHARD_BYTES
) -> None:
    """Write the weights into `folder`; `progress` gets bytes written and of how many. Raises OSError and UserError."""
    done = 0

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        progress(done, merged.bytes)

    weights.write(folder, merged.tensors, wrote, shard_bytes)
