"""Families whose plain 4-bit training fails in transformers itself, or is not possible here."""

from qlora_gui.families.family import Family

_MAMBA = "its Mamba layers compute with their weights directly, which 4-bit weights do not allow"

FAMILIES = (
    Family("falcon", unsupported="its linear layers are of a class of its own, which bitsandbytes does not quantize"),
    Family("falcon_mamba", unsupported=_MAMBA),
    Family("mamba", unsupported=_MAMBA),
    Family("llama4_text", unsupported="transformers lays its experts out in another way once they are quantized"),
    Family(
        "rwkv",
        unsupported="it rewrites its weights between training and answering, which 4-bit weights do not allow",
    ),
)
