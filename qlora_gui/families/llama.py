"""Llama and Mistral: separate projections, a gated MLP, RMS norms; many other families differ from them in a detail."""

from collections.abc import Sequence

from qlora_gui.families.family import Family, Layer, Linear, Norm, Sizes

TWO_NORMS = ("input_layernorm", "post_attention_layernorm")


def llama_layer(
    sizes: Sizes,
    qkv_bias: bool | None = None,
    out_bias: bool | None = None,
    mlp_bias: bool = False,
    norms: Sequence[str] = TWO_NORMS,
    head_norms: tuple[int, int] | None = None,
) -> Layer:
    """The layer of Llama with these differences; biases of attention are as `attention_bias` of config.json says.

    `head_norms` are the widths of norms on queries and on keys.
    """
    hidden, middle, queries, keys = sizes.hidden, sizes.intermediate, sizes.queries, sizes.keys
    biased = sizes.flag("attention_bias")
    qkv, out = biased if qkv_bias is None else qkv_bias, biased if out_bias is None else out_bias
    on_heads = zip(("self_attn.q_norm", "self_attn.k_norm"), head_norms or (), strict=False)
    return Layer(
        linears=(
            Linear("self_attn.q_proj", hidden, queries, qkv),
            Linear("self_attn.k_proj", hidden, keys, qkv),
            Linear("self_attn.v_proj", hidden, keys, qkv),
            Linear("self_attn.o_proj", queries, hidden, out),
            Linear("mlp.gate_proj", hidden, middle, mlp_bias),
            Linear("mlp.up_proj", hidden, middle, mlp_bias),
            Linear("mlp.down_proj", middle, hidden, mlp_bias),
        ),
        norms=(*(Norm(name, hidden) for name in norms), *(Norm(name, size) for name, size in on_heads)),
        outer_norms=(Norm("norm", hidden),),
        intermediate=middle,
        gated=True,
    )


def llama_with_mlp_bias(sizes: Sizes) -> Layer:
    """The layer of Llama where `mlp_bias` of config.json is read."""
    return llama_layer(sizes, mlp_bias=sizes.flag("mlp_bias"))


def _mistral(sizes: Sizes) -> Layer:
    return llama_layer(sizes, qkv_bias=False, out_bias=False)


FAMILIES = (Family("llama", llama_with_mlp_bias), Family("mistral", _mistral))
