"""How a model reads a batch and what it remembers of it, determined by trying: no list of architectures is complete."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DummyLayer, DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer

from qlora_gui.models import device as devices
from qlora_gui.models import rope

# Layers whose memory is keys and values by token, and nothing else. States of recurrent and convolutional layers have
# taken in every token that was read, and cannot be taken back to an earlier one.
_BY_TOKEN = (DynamicLayer, DynamicSlidingWindowLayer, DynamicIndexedLayer, DummyLayer)
_TOKENS, _PADDING = 8, 3
# The largest difference of logits, as a share of the largest logit, that rounding explains in up to so many layers.
_LAYERS = 32
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}


@dataclass(frozen=True)
class Reading:
    """What may be done with a model's batches, and what they cost.

    `left_padding`: a row that is padded on the left gives what it gives alone. `croppable`: what was read can be cut
    back to an earlier token. `token_bytes` and `row_bytes`: what a row keeps of each token, and besides. `alike_up_to`:
    the tokens beyond which a row changes how those beside it are read (`models.rope`); None where none does.
    """

    left_padding: bool = True
    croppable: bool = True
    token_bytes: int = 1
    row_bytes: int = 0
    alike_up_to: int | None = None

    def is_apart(self, tokens: int) -> bool:
        """Whether a row that gets so long can be read only beside rows of its own length."""
        return self.alike_up_to is not None and tokens > self.alike_up_to

    def bytes_per_row(self, tokens: int) -> int:
        """What a row of so many tokens keeps, in bytes, at least 1."""
        return max(tokens * self.token_bytes + self.row_bytes, 1)


def takes_positions(model: Any) -> bool:
    """Whether a causal LM takes positions: BLOOM does not, it counts by its mask."""
    return "position_ids" in inspect.signature(model.base_model.forward).parameters


def positions(model: Any, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """The argument that tells a model where each token of a padded batch stands; mask: [rows, tokens]."""
    return {"position_ids": (mask.cumsum(1) - 1).clamp_min(0)} if takes_positions(model) else {}


@torch.no_grad()
def ask(model: Any) -> Reading:
    """Find out how a causal LM reads; three short forward passes."""
    ids = torch.arange(1, _TOKENS + 1, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    out = model(input_ids=ids, use_cache=True)
    cache = _cache(out)
    token_bytes, row_bytes = _sizes(cache)
    padded = _padded(model, ids)
    left = padded is not None and _equal(model, padded[0, -1], out.logits[0, -1])
    croppable = left and _by_token(cache) and _crops(model, ids, out.logits[0, -1])
    return Reading(left, croppable, token_bytes, row_bytes, rope.alike_up_to(model.config))


def fresh_cache(model: Any) -> DynamicCache:
    """An empty cache that can be cut back: sliding layers keep what they would have dropped until then."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.activate_past_recording()
    return cache


def _cache(out: Any) -> Any:
    return getattr(out, "past_key_values", None) or getattr(out, "cache_params", None)


def _by_token(cache: Any) -> bool:
    return type(cache) is DynamicCache and all(type(layer) in _BY_TOKEN for layer in cache.layers)


def _sizes(cache: Any) -> tuple[int, int]:
    """Bytes by token and bytes by row, of a cache of one row of _TOKENS tokens; a model may keep none, or elsewhere."""
    by_token = by_row = 0
    for layer in getattr(cache, "layers", ()):
        for name, value in vars(layer).items():
            for part in value.values() if isinstance(value, dict) else (value,):
                if not isinstance(part, torch.Tensor) or part.ndim == 0:
                    continue
                if name in ("keys", "values", "indexer_keys"):
                    by_token += part.nbytes
                else:
                    by_row += part.nbytes
    return by_token // _TOKENS, by_row


def _padded(model: Any, ids: torch.Tensor) -> torch.Tensor | None:
    """The logits of a row that is padded on the left; None where the model does not take that."""
    mask = torch.ones(1, _PADDING + ids.shape[1], dtype=torch.long, device=ids.device)
    mask[:, :_PADDING] = 0
    filled = torch.cat([torch.zeros_like(ids[:, :_PADDING]), ids], dim=1)
    try:
        logits: torch.Tensor = model(
            input_ids=filled, attention_mask=mask, use_cache=False, **positions(model, mask)
        ).logits
    except Exception as error:  # what a model raises for a mask that it does not know is its own affair
        if devices.ran_out(error):
            raise
        return None
    return logits


def _crops(model: Any, ids: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether a row that was read further, cut back and read on gives what it gives at once."""
    try:
        beyond = torch.cat([ids, ids.flip(1)], dim=1)
        cache = fresh_cache(model)
        model(input_ids=beyond, past_key_values=cache, use_cache=True)
        cache.crop(-(ids.shape[1] + 1))
        mask = torch.ones_like(ids)
        last = {name: value[:, -1:] for name, value in positions(model, mask).items()}
        again = model(input_ids=ids[:, -1:], attention_mask=mask, past_key_values=cache, use_cache=True, **last)
    except Exception as error:
        if devices.ran_out(error):
            raise
        return False
    return _equal(model, again.logits[0, -1], expected)


def _equal(model: Any, actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """By the number format of the model's embeddings, for logits may be of a finer one than what they were made from, and by its
    depth."""
    actual, expected = actual.float(), expected.float()
    difference = (actual - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None) or _LAYERS
    return bool(difference <= _TOLERANCE[model.get_input_embeddings().weight.dtype] * by_depth(layers))


def by_depth(layers: int) -> float:
    """How many times as much rounding a model of so many layers may show: errors of single roundings add up like a random walk,
    so that they grow with the square root."""
    return max(layers / _LAYERS, 1.0) ** 0.5
