"""Does a row adapter give what PEFT gives? One short row, asked at load, answered in the column's proof."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel

from qlora_gui.compare.adapter_file import Adapter
from qlora_gui.compare.clean_base import CleanBase
from qlora_gui.compare.rows import RowAdapters
from qlora_gui.errors import UserError

# The largest difference of logits, as a share of the largest logit, that rounding explains.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_TEXT = "The parcel never came, and the shop does not answer."


@torch.no_grad()
def difference(base: CleanBase, rows: RowAdapters, number: int, adapter: Adapter) -> float:
    """Largest difference to PEFT's logits, relative to the largest logit. Raises UserError beyond rounding.

    The base wears PEFT's wrapper for this one forward only; that it is the same to the bit afterwards is checked.
    """
    ids = torch.tensor([base.tokenizer(_TEXT, add_special_tokens=False)["input_ids"]], device=base.model.device)
    before = base.model(input_ids=ids).logits
    with rows.worn([number]):
        ours = base.model(input_ids=ids).logits
    with _wrapped(base.model, adapter) as wrapped:
        theirs = wrapped(input_ids=ids).logits
    if not torch.equal(before, base.model(input_ids=ids).logits):
        raise RuntimeError(f"the base changed while the adapter '{adapter.name}' was tested")
    share = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6))
    if not share <= _TOLERANCE[theirs.dtype]:
        raise UserError(
            f"The adapter '{adapter.name}' cannot be compared: its answers differ from PEFT's by {share:.1%}."
        )
    return share


@contextmanager
def _wrapped(model: Any, adapter: Adapter) -> Iterator[Any]:
    """The model in PEFT's wrapper; afterwards its own modules and biases again, whatever happened."""
    modules = dict(model.named_modules())
    kept = {name: modules[name].bias.detach().clone() for name in adapter.biases}
    wrapped = None
    try:
        wrapped = PeftModel.from_pretrained(model, str(adapter.folder), adapter_name="ad0").eval()
        yield wrapped
    finally:
        if wrapped is not None:
            wrapped.unload()
        for name, bias in kept.items():
            modules[name].bias.data.copy_(bias)
            modules[name].bias.requires_grad_(False)
        if hasattr(model, "peft_config"):
            del model.peft_config
