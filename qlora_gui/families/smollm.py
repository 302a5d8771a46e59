"""SmolLM 3: Llama with tied embeddings."""

from qlora_gui.families.family import Family
from qlora_gui.families.llama import llama_with_mlp_bias

FAMILIES = (Family("smollm3", llama_with_mlp_bias, tied=True),)
