"""OLMo 2: norms after attention and MLP, and on the whole of queries and keys."""

from qlora_gui.families.family import Family, Layer, Sizes
from qlora_gui.families.llama import llama_layer


def _olmo2(sizes: Sizes) -> Layer:
    norms = ("post_attention_layernorm", "post_feedforward_layernorm")
    return llama_layer(sizes, norms=norms, head_norms=(sizes.queries, sizes.keys))


FAMILIES = (Family("olmo2", _olmo2),)
