"""Phi-3: one projection for queries, keys and values, and one for both halves of the gated MLP; of Phi's experts none is trained."""

from qlora_gui.families.family import Family, Layer, Linear, Norm, Sizes


def _phi3(sizes: Sizes) -> Layer:
    hidden, middle = sizes.hidden, sizes.intermediate
    return Layer(
        linears=(
            Linear("self_attn.qkv_proj", hidden, sizes.queries + 2 * sizes.keys),
            Linear("self_attn.o_proj", sizes.queries, hidden),
            Linear("mlp.gate_up_proj", hidden, 2 * middle),
            Linear("mlp.down_proj", middle, hidden),
        ),
        norms=(Norm("input_layernorm", hidden), Norm("post_attention_layernorm", hidden)),
        outer_norms=(Norm("norm", hidden),),
        intermediate=middle,
        gated=True,
    )


FAMILIES = (
    Family("phi3", _phi3, fused_qkv=True),
    Family(
        "phimoe",
        unsupported="its router is a linear layer that it uses in a way which 4-bit weights do not allow",
    ),
)
