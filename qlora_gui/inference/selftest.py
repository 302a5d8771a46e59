"""Whether an active adapter computes what PEFT computes: one short row, tested at load, reported in the column's proof."""

from dataclasses import dataclass

import torch

from qlora_gui.errors import UserError, first_line
from qlora_gui.inference import model_probe
from qlora_gui.inference.adapter_file import Adapter
from qlora_gui.inference.clean_base import CleanBase
from qlora_gui.inference.multi_lora import BASE, MultiLora
from qlora_gui.inference.peft_lane import Lane
from qlora_gui.models import chunked_loss
from qlora_gui.models import device as devices

# The largest difference of logits, as a share of the largest logit, that rounding explains (`model_probe.by_depth`).
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_LONGEST = 300  # characters of what PEFT says
_TEXT = "The parcel never came, and the shop does not answer."


@dataclass(frozen=True)
class Result:
    """Largest difference to PEFT's logits, and largest difference that the adapter makes to the base's.

    Both as shares of the largest logit: the first says little where the second is not much larger.
    """

    difference: float
    effect: float


@torch.no_grad()
def run(base: CleanBase, multi_lora: MultiLora, number: int, adapter: Adapter) -> Result:
    """Compare one active adapter with PEFT, on its row and on a row of the base in one batch.

    An adapter that cannot share a batch gets PEFT's own form as its lane instead. Raises UserError beyond rounding, or
    when PEFT cannot load the adapter. PEFT's wrapper is on the base for one forward pass only; afterwards the base is checked
    to be the same to the bit, with a RuntimeError where it is not.
    """
    ids = torch.tensor([base.tokenizer(_TEXT, add_special_tokens=False)["input_ids"]], device=base.model.device)
    ids = torch.cat([ids, ids.flip(1)])  # [2, tokens]
    before = base.model(input_ids=ids).logits  # [2, tokens, vocabulary], as all below
    theirs = before
    failure: Exception | None = None
    try:
        lane = Lane(base.model, adapter)
        with lane.activate():
            theirs = base.model(input_ids=ids).logits
    except Exception as error:  # PEFT raises what it likes for a config it dislikes; the check below comes first
        failure = error
    if not _unchanged(base, ids, before):
        raise RuntimeError(f"the base changed while the adapter '{adapter.name}' was tested") from failure
    reason = multi_lora.apart.get(number)
    if failure is not None and devices.ran_out(failure):
        raise failure
    if failure is not None:
        why = f"{reason}, and " * bool(reason)
        raise UserError(
            f"The adapter '{adapter.name}' cannot be compared: {why}PEFT refuses it ({_short(first_line(failure))})."
        ) from failure
    largest = theirs.abs().max().clamp_min(1e-6)
    effect = float((theirs - before)[1].abs().max() / largest)
    if reason:
        multi_lora.lanes[number] = lane
        return Result(0.0, effect)
    with multi_lora.activate([BASE, number]):
        ours = base.model(input_ids=ids).logits
    result = Result(float((ours - torch.stack([before[0], theirs[1]])).abs().max() / largest), effect)
    if not result.difference <= tolerance(theirs.dtype, base.model.config.get_text_config().num_hidden_layers):
        raise UserError(
            f"The adapter '{adapter.name}' cannot be compared: its answers differ from PEFT's by {result.difference:.1%}."
        )
    return result


def _short(text: str) -> str:
    """PEFT lists every missing tensor: some are enough."""
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def tolerance(dtype: torch.dtype, layers: int) -> float:
    """The largest difference of logits, as a share of the largest logit, that rounding explains."""
    return _TOLERANCE[dtype] * model_probe.by_depth(layers)


def _unchanged(base: CleanBase, ids: torch.Tensor, before: torch.Tensor) -> bool:
    """Whether the base gives the logits that it gave: to the bit, unless it does not do so twice in a row either."""
    after, again = (base.model(input_ids=ids).logits for _ in range(2))
    if torch.equal(before, after) or torch.equal(after, again):
        return torch.equal(before, after)
    return chunked_loss.alike(after, before)
