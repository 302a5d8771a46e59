"""Gemma: norms by 1 + weight, tied embeddings, wide heads; from the second on four norms in a layer."""

from dataclasses import replace

from qlora_gui.families.family import Family, Layer, Sizes
from qlora_gui.families.llama import TWO_NORMS, llama_layer

_FOUR_NORMS = (*TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_ANY = Family("gemma*", head_dim=256, own_norms=True)
_TIED = replace(_ANY, tied=True)


def _gemma2(sizes: Sizes) -> Layer:
    return llama_layer(sizes, norms=_FOUR_NORMS)


def _gemma3(sizes: Sizes) -> Layer:
    return llama_layer(sizes, norms=_FOUR_NORMS, head_norms=(sizes.head_dim, sizes.head_dim))


FAMILIES = (
    replace(_TIED, model_type="gemma", layer=llama_layer),
    replace(_TIED, model_type="gemma2", layer=_gemma2, own_logits=True, capped=True),
    replace(_TIED, model_type="gemma3_text", layer=_gemma3),
    replace(
        _ANY,
        model_type="gemma3n_text",
        unsupported="it clamps the weights of its linears, which 4-bit weights do not allow",
    ),
    _ANY,
)
