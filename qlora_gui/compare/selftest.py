"""Does a row adapter give what PEFT gives? One short row, asked at load, answered in the column's proof."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from qlora_gui.compare.adapter_file import Adapter
from qlora_gui.compare.clean_base import CleanBase
from qlora_gui.compare.rows import RowAdapters
from qlora_gui.errors import UserError, first_line

# The largest difference of logits, as a share of the largest logit, that rounding explains.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_TEXT = "The parcel never came, and the shop does not answer."


@dataclass(frozen=True)
class Result:
    """Largest difference to PEFT's logits, and largest difference that the adapter makes to the base's.

    Both as shares of the largest logit: the first says little where the second is not much larger.
    """

    difference: float
    effect: float


@torch.no_grad()
def run(base: CleanBase, rows: RowAdapters, number: int, adapter: Adapter) -> Result:
    """Hold one row adapter against PEFT. Raises UserError beyond rounding, or when PEFT cannot load the adapter.

    The base wears PEFT's wrapper for one forward only; that it is the same to the bit afterwards is checked, and a
    RuntimeError where it is not.
    """
    ids = torch.tensor([base.tokenizer(_TEXT, add_special_tokens=False)["input_ids"]], device=base.model.device)
    before = base.model(input_ids=ids).logits
    with rows.worn([number]):
        ours = base.model(input_ids=ids).logits
    failure: Exception | None = None
    theirs = ours
    try:
        with _wrapped(base.model, adapter) as wrapped:
            theirs = wrapped(input_ids=ids).logits
    except Exception as error:  # PEFT raises what it likes for a config it dislikes; the check below comes first
        failure = error
    if not torch.equal(before, base.model(input_ids=ids).logits):
        raise RuntimeError(f"the base changed while the adapter '{adapter.name}' was tested") from failure
    if failure is not None:
        reason = first_line(failure)
        raise UserError(f"The adapter '{adapter.name}' cannot be compared: PEFT refuses it ({reason}).") from failure
    largest = theirs.abs().max().clamp_min(1e-6)
    found = Result(float((ours - theirs).abs().max() / largest), float((theirs - before).abs().max() / largest))
    if not found.difference <= _TOLERANCE[theirs.dtype]:
        raise UserError(
            f"The adapter '{adapter.name}' cannot be compared: its answers differ from PEFT's by {found.difference:.1%}."
        )
    return found


@contextmanager
def _wrapped(model: Any, adapter: Adapter) -> Iterator[Any]:
    """The model in PEFT's wrapper; afterwards its own modules and biases again, whatever happened."""
    children = [(part, name, child) for part in model.modules() for name, child in part.named_children()]
    modules = dict(model.named_modules())
    kept = {name: modules[name].bias.detach().clone() for name in adapter.biases}
    try:
        yield PeftModel.from_pretrained(model, str(adapter.folder), adapter_name="ad0").eval()
    finally:
        # By hand and not by `unload()`: where from_pretrained fails half-way there is no wrapper to unload.
        for part, name, child in children:
            setattr(part, name, child)
        for name, bias in kept.items():
            modules[name].bias.data.copy_(bias)
            modules[name].bias.requires_grad_(False)
        if hasattr(model, "peft_config"):
            del model.peft_config
