"""Qwen 2 and 3: biases on queries, keys and values, or norms on queries and keys."""

from qlora_gui.families.family import Family, Layer, Sizes
from qlora_gui.families.llama import llama_layer


def _qwen2(sizes: Sizes) -> Layer:
    return llama_layer(sizes, qkv_bias=True, out_bias=False)


def _qwen3(sizes: Sizes) -> Layer:
    return llama_layer(sizes, head_norms=(sizes.head_dim, sizes.head_dim))


FAMILIES = (Family("qwen2", _qwen2), Family("qwen3", _qwen3, head_dim=128))
