"""Granite: Llama with scaled logits."""

from qlora_gui.families.family import Family
from qlora_gui.families.llama import llama_with_mlp_bias

FAMILIES = (Family("granite", llama_with_mlp_bias, own_logits=True),)
