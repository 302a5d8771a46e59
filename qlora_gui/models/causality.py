"""Whether a loaded base behaves as a causal language model: tested before anything is built on it."""

from typing import Any

import torch

from qlora_gui.errors import UserError, first_line
from qlora_gui.models import device as devices

_TOKENS = 12
_MOVED = (
    0.05  # of the largest logit: rounding in 16 bits stays well below, a model that sees what comes moves by far more
)


@torch.no_grad()
def check(model: Any, named: str) -> None:
    """Raise UserError where a base does not take text alone, or predicts a token with the help of later ones.

    Two short forward passes, which differ in their last token alone. `named` is how the base is called.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.arange(1, _TOKENS + 1, device=model.device)[None] % vocabulary
    other = ids.clone()
    other[0, -1] = (ids[0, -1] + vocabulary // 2) % vocabulary
    try:
        first, second = (model(input_ids=given, use_cache=False).logits[0, :-1].float() for given in (ids, other))
    except Exception as error:  # what a base makes of text alone is its own
        if devices.ran_out(error):
            raise
        raise UserError(
            f"The base model '{named}' ({type(model).__name__}) does not take text alone ({first_line(error)}): choose "
            "another base."
        ) from error
    if (first - second).abs().max() > _MOVED * first.abs().max():
        raise UserError(
            f"The base model '{named}' ({type(model).__name__}) sees later tokens when it predicts earlier ones, so what "
            "it would learn is no use for writing: choose a base that reads from left to right."
        )
