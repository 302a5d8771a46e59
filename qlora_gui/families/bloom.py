"""BLOOM: ALiBi in place of positions, attention of its own, a gelu written out, and large tied embeddings.

models/families/bloom.py has its attention and its activation as they are trained here.
"""

from qlora_gui.families.family import Family, Layer, Linear, Norm, Sizes


def _layer(sizes: Sizes) -> Layer:
    hidden = sizes.hidden
    return Layer(
        linears=(
            Linear("self_attention.query_key_value", hidden, 3 * hidden, True),
            Linear("self_attention.dense", hidden, hidden, True),
            Linear("mlp.dense_h_to_4h", hidden, 4 * hidden, True),
            Linear("mlp.dense_4h_to_h", 4 * hidden, hidden, True),
        ),
        norms=(Norm("input_layernorm", hidden, True), Norm("post_attention_layernorm", hidden, True)),
        outer_norms=(Norm("word_embeddings_layernorm", hidden, True), Norm("ln_f", hidden, True)),
        intermediate=4 * hidden,
        gated=False,
    )


BLOOM = Family(
    "bloom",
    _layer,
    tied=True,
    template_missing="bigscience/bloom",
    bias_per_head=True,
    own_attention=True,
    cpu_eager_up_to=128,  # there it is faster in 16 bits; in fp32 never (benchmarks/bloom_attention.py)
    eager_copies=3,  # a layer also gives back its probabilities: they stay until the next layer has its own
    activation_temporaries=5,  # bloom_gelu_back: tanh, its complement, half of x, the inner derivative and its product
    code="bloom",
)
FAMILIES = (BLOOM,)
