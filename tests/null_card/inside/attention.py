"""Which attention kernels torch takes on a card, by itself and once a base is loaded."""

from pathlib import Path
from typing import Any

import torch

from qlora_gui.inference import clean_base
from qlora_gui.models import base as bases
from qlora_gui.models import device as devices
from tests.null_card.emulate import counts

_KERNELS = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn"}


def picked() -> dict[str, str]:
    """The kernel for 2 rows of 448 tokens in the card's own format, under a mask and causal, as torch is set now."""
    dtype = devices.compute_dtype(torch.device("cuda", 0))
    query = torch.empty(2, 8, 448, 64, dtype=dtype, device="cuda", requires_grad=True)
    mask = torch.empty(2, 1, 448, 448, dtype=dtype, device="cuda")
    return {
        "name": torch.cuda.get_device_name(),
        "masked": _KERNELS[torch._fused_sdp_choice(query, query, query, attn_mask=mask)],
        "causal": _KERNELS[torch._fused_sdp_choice(query, query, query, is_causal=True)],
    }


def picked_after_loading(base: str) -> dict[str, dict[str, str]]:
    """`picked` before and after a base is loaded in 4 bits."""
    before = picked()
    device = devices.pick()
    bases.load_model(base, "nf4", True, device, devices.compute_dtype(device), lambda text: None)
    return {"before": before, "after": picked()}


def compared(base: str, tokens: int) -> dict[str, float]:
    """How far logits are off those of the same 4-bit values in fp32, as a share of their norm, for so many tokens.

    `compare` is the base of the compare worker, `stock` what transformers makes of it in the same number format.
    """
    device = devices.pick()
    ids = torch.randint(10, 900, (1, tokens), generator=torch.Generator().manual_seed(0))
    exact = bases.load_model(base, "nf4", True, torch.device("cpu"), torch.float32, lambda text: None)
    stock = bases.load_model(base, "nf4", True, device, devices.compute_dtype(device), lambda text: None)
    compare = clean_base.load((base, "", "nf4", True), lambda text: None).model
    with torch.no_grad():
        wanted = exact(ids).logits
        found = {
            name: model(ids.to(device)).logits.float().cpu() for name, model in (("compare", compare), ("stock", stock))
        }
    return {name: float((logits - wanted).norm() / wanted.norm()) for name, logits in found.items()}


def kernels_of_an_answer(base: str, adapters: list[str]) -> dict[str, Any]:
    """Attention kernels that Compare uses for one answer of every column, and what ran out or mixed devices."""
    from qlora_gui.inference import protocol
    from qlora_gui.inference.columns import Columns
    from qlora_gui.inference.sampling import Decoding

    columns = Columns()
    columns.load((base, "", "nf4", True), [Path(adapter) for adapter in adapters], lambda text: None)
    counts.clear()
    events: list[Any] = []
    asked = [[{"role": "user", "content": "Where is my parcel?"}]] * (1 + len(adapters))
    columns.answer(asked, Decoding(max_new_tokens=6, greedy=True), events.append, lambda: False)
    return {"attention": dict(counts.attention), "answers": sum(isinstance(event, protocol.Ended) for event in events)}
