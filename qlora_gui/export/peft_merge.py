"""Merging by PEFT itself, on the whole base in 16 bits: for adapters that are no sum with single tensors of the base's files."""

import math
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig

from qlora_gui.errors import UserError, first_line
from qlora_gui.export import weights
from qlora_gui.export.merge import fitting, stays_exact
from qlora_gui.export.weights import SHARD_BYTES
from qlora_gui.formatting import gigabytes
from qlora_gui.inference import peft_lane, selftest
from qlora_gui.inference.adapter_file import Adapter
from qlora_gui.models import device as devices
from qlora_gui.models import text_part

_LOOK = 16  # tokens, to see that the merge is what the adapter computes


def size(base: Path, adapter: Path) -> int:
    """What the merged weights take, in bytes: at most the base's and the adapter's together, where it has modules of its own."""
    return sum(file.stat().st_size for folder in (base, adapter) for file in folder.glob("*.safetensors"))


@torch.no_grad()
def merge(base: Path, adapter: Adapter, out: Path, dtype: torch.dtype) -> bool:
    """Write the merged weights into `out`, with transformers' config. Returns whether head and embedding shared weights, and do no more.

    In fp32, rounded once, where memory suffices for that, and then checked to be what PEFT computes with the adapter; else in
    `dtype`. Raises UserError where memory is too short, PEFT refuses or merges to something else, or fp16 does not hold it.
    """
    model = _load(base, adapter, dtype)
    tied, checked = _shared(model), model.dtype == torch.float32
    _untie(model, adapter)
    try:
        wrapped = peft_lane.wrapped(model, adapter.folder)
        before = _logits(wrapped) if checked else torch.ones(1)
        with warnings.catch_warnings(record=True):  # that the head is untied now is said by whoever asked
            merged = wrapped.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        if devices.ran_out(error):
            raise
        raise UserError(f"PEFT cannot merge the adapter '{adapter.name}': {first_line(error)}") from error
    apart = float((_logits(merged) - before).abs().max() / before.abs().max().clamp_min(1e-6)) if checked else 0.0
    if not apart <= selftest.tolerance(torch.float32, model.config.get_text_config().num_hidden_layers):
        raise UserError(
            f"PEFT cannot merge the adapter '{adapter.name}': the logits of what it makes differ by {apart:.1%} from the adapter's."
        )
    still = _shared(merged)
    exact = stays_exact(merged, dtype)
    for name, part in merged.named_parameters():
        part.data = part.data if exact(name) else fitting(part.data, dtype, name)
    if still:
        merged.get_output_embeddings().weight = merged.get_input_embeddings().weight
    merged.save_pretrained(str(out), max_shard_size=SHARD_BYTES)
    return tied and not still


def _load(base: Path, adapter: Adapter, dtype: torch.dtype) -> Any:
    """The base on the CPU, in fp32 where memory suffices for that, else in `dtype`. Raises UserError where it fits in neither."""
    numbers = sum(math.prod(part.shape) for part in weights.listed(base).values())
    own = 2 * sum(file.stat().st_size for file in adapter.folder.glob("*.safetensors"))  # as stored, and in fp32
    free = psutil.virtual_memory().available
    if 1.2 * 2 * numbers + own > free:
        raise UserError(
            "This adapter can only be merged on the whole base in memory, which takes about "
            f"{gigabytes(int(1.2 * 2 * numbers + own))}; {gigabytes(free)} are free."
        )
    auto = text_part.auto_class(AutoConfig.from_pretrained(str(base), trust_remote_code=False))
    fits = 1.2 * 4 * numbers + own < free
    return auto.from_pretrained(
        str(base), dtype=torch.float32 if fits else dtype, trust_remote_code=False, use_safetensors=True
    ).eval()


def _logits(model: Any) -> torch.Tensor:
    """Those of a short row, [tokens, vocabulary] in fp32."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, _LOOK + 1, device=model.device)[None] % vocabulary
    logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0].float()
    return logits


def _shared(model: Any) -> bool:
    """Whether head and embedding are the same weights."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight.data_ptr() == embedding.weight.data_ptr()


def _untie(model: Any, adapter: Adapter) -> None:
    """Give the head weights of its own where the adapter has tokens of its own for it: PEFT's merge would put them into both."""
    head = model.get_output_embeddings()
    names = {name for name, part in model.named_modules() if part is head}
    if names & adapter.beyond.tokens.keys() and _shared(model):
        head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        for config in {id(part): part for part in (model.config, model.config.get_text_config())}.values():
            config.tie_word_embeddings = False
