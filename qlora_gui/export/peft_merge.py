"""Merging by PEFT itself, on the whole base in 16 bits: for adapters on what no single tensor of the base's files is."""

from pathlib import Path

import psutil
import torch
from peft import PeftModel
from transformers import AutoConfig

from qlora_gui.errors import UserError, first_line
from qlora_gui.export.weights import SHARD_BYTES
from qlora_gui.formatting import gigabytes
from qlora_gui.models import text_part


def merge(base: Path, adapter: Path, out: Path, dtype: torch.dtype) -> None:
    """Write the merged weights into `out`, with transformers' config. Raises UserError where memory is too short, or PEFT refuses."""
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    free = psutil.virtual_memory().available
    if 1.2 * size > free:
        raise UserError(
            f"This adapter can only be merged on the whole base in memory, which takes about {gigabytes(int(1.2 * size))}; "
            f"{gigabytes(free)} are free."
        )
    auto = text_part.auto_class(AutoConfig.from_pretrained(str(base), trust_remote_code=False))
    model = auto.from_pretrained(str(base), dtype=dtype, trust_remote_code=False, use_safetensors=True)
    try:
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        raise UserError(f"PEFT cannot merge the adapter '{adapter.name}': {first_line(error)}") from error
    merged.save_pretrained(str(out), max_shard_size=SHARD_BYTES)
