"""The one base of the compare worker, in 4-bit values, that nothing ever modifies."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import psutil
import torch
from bitsandbytes import functional
from transformers import GenerationConfig

from qlora_gui import hub
from qlora_gui.compare import onednn
from qlora_gui.model import base as bases
from qlora_gui.model import device as devices

Key = tuple[str, str, str, bool]


@dataclass(frozen=True)
class CleanBase:
    """A loaded base with its tokenizer. `eos` are the tokens that end an answer; `proof` says what it is."""

    located: bases.Base
    model: Any
    tokenizer: Any
    eos: frozenset[int]
    proof: dict[str, Any]


def load(key: Key, say: Callable[[str], None]) -> CleanBase:
    """Load (base_model, revision, quant_type, double_quant). Raises UserError when it cannot be had.

    On a CPU it computes in fp32, so that a row's text does not depend on the rows beside it: rounding differs
    with the size of a batch, and bf16's may flip near ties. Where memory allows, the 4-bit values are unpacked once.
    """
    name, revision, quant_type, double_quant = key
    hub.go_offline_if_unreachable()
    say("Finding the base model")
    located = bases.locate(name, revision, say)
    tokenizer = bases.load_tokenizer(located.path)
    device = devices.pick()
    dtype = torch.float32 if device.type == "cpu" else devices.compute_dtype(device)
    say("Loading the base model in 4 bits")
    model = bases.load_model(located.path, quant_type, double_quant, device, dtype, say)
    unpacked = device.type == "cpu" and unpack_if_it_fits(model)
    if unpacked:
        onednn.install(model)
    proof = {
        "base": located.name,
        "revision": located.revision,
        "base_fingerprint": located.fingerprint,
        "quantization": quant_type
        + (", double quantization" if double_quant else "")
        + (", unpacked" if unpacked else ""),
        "computed_in": f"{str(dtype).removeprefix('torch.')} on {device.type}",
    }
    named = model.generation_config.eos_token_id
    eos = {tokenizer.eos_token_id, *([named] if isinstance(named, int) else named or [])}
    model.generation_config = GenerationConfig()  # a base's own penalties and temperature are no part of a comparison
    return CleanBase(located, model, tokenizer, frozenset(eos), proof)


def unpack_if_it_fits(model: torch.nn.Module) -> bool:
    """Replace 4-bit linears by dense ones of the very same values, unless that takes half of the free memory.

    A CPU spends most of a token on unpacking: 25 tokens of the 135M demo took 0.9 s so, 1.5 s packed (one row).
    """
    linears = {name: part for name, part in model.named_modules() if isinstance(part, bnb.nn.Linear4bit)}
    needed = 4 * sum(part.in_features * part.out_features for part in linears.values())
    if needed > psutil.virtual_memory().available / 2:
        return False
    for name, packed in linears.items():
        dense = torch.nn.Linear(packed.in_features, packed.out_features, bias=packed.bias is not None, device="meta")
        weight = functional.dequantize_4bit(packed.weight.data, packed.weight.quant_state).to(packed.compute_dtype)
        dense.weight = torch.nn.Parameter(weight, requires_grad=False)
        if packed.bias is not None:
            dense.bias = torch.nn.Parameter(packed.bias.data.to(packed.compute_dtype), requires_grad=False)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, dense.eval())
    return True
