"""Which linears of a base get LoRA: those of its text part that PEFT can put it on, now and when the adapter is loaded."""

import re
from dataclasses import dataclass, field
from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers.pytorch_utils import Conv1D

from qlora_gui.errors import UserError
from qlora_gui.models import text_part

_EXPERTS = "PEFT takes these names for the experts and would train those"
_MAMBA = "PEFT cannot put LoRA on it in this architecture, whose kernels read its weight themselves"


@dataclass(frozen=True)
class Targets:
    """`modules` as PEFT takes them; `left_out`: names of linears that all-linear would have meant, by the reason."""

    modules: str | list[str]
    left_out: dict[str, list[str]] = field(default_factory=dict)


def resolve(model: Any, wanted: str | list[str], dropout: float) -> Targets:
    """`wanted` is a run's target_modules. Raises UserError for names that the base does not have, or PEFT refuses."""
    names = linears(model)
    if wanted != "all-linear":
        _check(model, list(wanted), names, dropout)
        return Targets(_within_text(model, list(wanted)))
    left_out: dict[str, list[str]] = {}
    for name in names:
        if reason := _refusal(model, name):
            left_out.setdefault(reason, []).append(name)
    remaining = [name for name in names if not any(name in part for part in left_out.values())]
    if not left_out and not text_part.prefix(model) and not _means_experts("all-linear", model):
        return Targets("all-linear")
    return Targets(_within_text(model, remaining), left_out)


def linears(model: Any) -> list[str]:
    """The last parts of the names of the text part's linears, without the head, sorted."""
    head, prefix = model.get_output_embeddings(), text_part.prefix(model)
    names = {
        name.rpartition(".")[2]
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear | Conv1D) and part is not head and name.startswith(prefix)
    }
    return sorted(names)


def _within_text(model: Any, names: list[str]) -> str | list[str]:
    """A pattern that leaves a vision part alone, also where the adapter is loaded into a base that has it."""
    prefix = text_part.prefix(model)
    if not prefix:
        return names
    inside = rf"(?={re.escape(prefix)})(.*\.)?({'|'.join(map(re.escape, names))})"
    head = _head(model)  # beside the decoder, where there is one
    return rf"{inside}|{re.escape(head)}" if any(_means(name, head) for name in names) else inside


def _head(model: Any) -> str:
    head = model.get_output_embeddings()
    return next((name for name, part in model.named_modules() if part is head), "")


def _means(name: str, module: str) -> bool:
    """Whether PEFT takes a name of target_modules for this module."""
    return module == name or module.endswith(f".{name}")


def _refusal(model: Any, name: str) -> str:
    """Why PEFT does not put LoRA on linears of this name; "" where it does."""
    if _means_experts([name], model):
        return _EXPERTS
    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name)
    except ValueError:
        return _MAMBA
    return ""


def _means_experts(modules: str | list[str], model: Any) -> bool:
    """Whether PEFT makes of these names LoRA on the experts' parameters, as all-linear of transformers 4 had it."""
    probe = LoraConfig(target_modules=modules)
    try:
        convert_peft_config_for_transformers(probe, model, None)
    except ValueError:  # only some of the names that belong together
        return True
    return bool(probe.target_parameters)


def _check(model: Any, wanted: list[str], names: list[str], dropout: float) -> None:
    prefix, head = text_part.prefix(model), _head(model)
    modules = {name: part for name, part in model.named_modules() if name.startswith(prefix) or name == head}
    refused = {name: _refusal(model, name.rpartition(".")[2]) for name in wanted}
    for name, reason in refused.items():
        meant = [part for module, part in modules.items() if _means(name, module)]
        # One of several kinds of layers may hold something else by that name: PEFT takes all or none.
        if reason != _EXPERTS and not (meant and all(isinstance(part, torch.nn.Linear | Conv1D) for part in meant)):
            raise UserError(f"LoRA cannot be put on {name}: this base has the linears {', '.join(names)}.")
        if reason == _MAMBA:
            raise UserError(f"LoRA cannot be put on {name}: {reason}. Leave it out.")
    experts = [name for name, reason in refused.items() if reason == _EXPERTS]
    if experts and dropout:
        raise UserError(
            f"LoRA on {', '.join(experts)} is LoRA on the experts, which takes no dropout: set dropout to 0, or leave "
            "these names out."
        )


@dataclass(frozen=True)
class In16Bits:
    """Weight matrices of a base that are not in 4 bits, embeddings and head aside: of linears, and of all else
    (experts, mostly), in bytes and as shares of all weights.
    """

    linears: int
    linears_share: float
    others: int
    others_share: float


def weights_in_16_bits(model: torch.nn.Module) -> In16Bits:
    """The part of a base's weights that is not quantized."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    counted, size, quantized = {True: 0, False: 0}, {True: 0, False: 0}, 0
    for part in model.modules():
        if isinstance(part, bnb.nn.Linear4bit):
            quantized += part.in_features * part.out_features
        elif part is not head and not isinstance(part, torch.nn.Embedding):
            is_linear = isinstance(part, torch.nn.Linear)
            matrices = [matrix for matrix in part.parameters(recurse=False) if matrix.ndim > 1]
            counted[is_linear] += sum(matrix.numel() for matrix in matrices)
            size[is_linear] += sum(matrix.nbytes for matrix in matrices)
    whole = max(quantized + sum(counted.values()), 1)
    return In16Bits(size[True], counted[True] / whole, size[False], counted[False] / whole)
