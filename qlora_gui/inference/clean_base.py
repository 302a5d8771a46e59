"""The one base of the compare worker, in 4-bit values, that nothing ever modifies."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import bitsandbytes as bnb
import psutil
import torch
from bitsandbytes import functional
from transformers import GenerationConfig

from qlora_gui import hardware, hub
from qlora_gui.data.chat import Chat
from qlora_gui.inference import model_probe, onednn
from qlora_gui.inference.model_probe import Reading
from qlora_gui.models import ask_torch, attention, causality, chats, quantized_cache, vocabulary
from qlora_gui.models import base as bases
from qlora_gui.models import device as devices
from qlora_gui.models.quantized_cache import Quantization

Key = tuple[str, str, str, bool]


@dataclass(frozen=True)
class CleanBase:
    """A loaded base with its tokenizer. `eos` are the tokens that end an answer; `proof` says what it is.

    `reading` is how it reads batches; it is probed on the clean base, once. `quantization` is the real one.
    """

    located: bases.Base
    model: Any
    tokenizer: Any
    eos: frozenset[int]
    proof: dict[str, Any]
    quantization: Quantization
    reading: Reading = field(default_factory=Reading)

    def check_ids(self, rows: Iterable[Sequence[int]]) -> None:
        """Raise UserError where a token of these rows, or the one for padding, has no embedding."""
        tokens = self.model.get_input_embeddings().num_embeddings
        vocabulary.check(rows, self.tokenizer, tokens, self.located.name)


def load(key: Key, say: Callable[[str], None]) -> CleanBase:
    """Load (base_model, revision, quant_type, double_quant). Raises UserError when it cannot be had.

    On a CPU it computes in fp32, so that a row's text does not depend on the rows beside it: rounding differs
    with the size of a batch, and bf16's may flip near ties. Where memory allows, the 4-bit values are unpacked once.
    """
    name, revision, quant_type, double_quant = key
    hub.go_offline_if_unreachable()
    say("Finding the base model")
    located = bases.locate(name, revision, say)
    tokenizer = bases.load_tokenizer(located.path, or_first=True)  # adapters bring the one they were trained with
    device = devices.pick()
    if device.type == "cpu" and (trouble := hardware.trouble(ask_torch.view())):
        say(trouble)
    dtype = torch.float32 if device.type == "cpu" else devices.compute_dtype(device)
    devices.keep_on_card(device)
    say("Loading the base model in 4 bits")
    model = bases.load_model(located.path, quant_type, double_quant, device, dtype, say)
    if device.type != "cpu":  # there it is fp32, in which transformers' own BLOOM is exact
        attention.install(model, "auto")  # as in training: BLOOM's own attention is 9% off in 16 bits at 512 tokens
    causality.check(model, located.name)
    quantization = quantized_cache.quantization_of(model)  # a base stored in 4 bits keeps its own kind
    unpacked = device.type == "cpu" and unpack_if_it_fits(model)
    if unpacked:
        onednn.install(model)
    proof = {
        "base": located.name,
        "revision": located.revision,
        "base_fingerprint": located.fingerprint,
        "quantization": quantization.quant_type
        + (", double quantization" if quantization.double_quant else "")
        + (", unpacked" if unpacked else ""),
        "computed_in": f"{str(dtype).removeprefix('torch.')} on {device.type}",
    }
    eos = Chat(tokenizer, ends=chats.base_ends(located.path)).ends
    model.generation_config = GenerationConfig()  # a base's own penalties and temperature are no part of a comparison
    return CleanBase(located, model, tokenizer, eos, proof, quantization, model_probe.ask(model))


def trained_in(base: CleanBase, trained_on: Mapping[str, Any]) -> Quantization | None:
    """The quantization that an adapter was trained in, by what its folder says; None where it says nothing.

    For this very base, stored in 4 bits, it is the stored one: older runs recorded the one that was asked for.
    """
    if trained_on.get("quant_type") is None:
        return None
    if trained_on.get("fingerprint") == base.located.fingerprint and quantized_cache.stored(base.model):
        return base.quantization
    return Quantization(trained_on["quant_type"], bool(trained_on.get("double_quant")))


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
