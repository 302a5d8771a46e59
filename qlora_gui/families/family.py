"""A model family: what is true of it that cannot be learned from its config.json or by probing the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qlora_gui.families import config_sizes


@dataclass(frozen=True)
class Linear:
    """A linear of every layer, by its path in the layer."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Norm:
    """A norm over the last `size` numbers."""

    name: str
    size: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        return self.size * (2 if self.bias else 1)


@dataclass(frozen=True)
class Sizes:
    """What a config.json says of a decoder's widths; the rest of it is in `config`."""

    config: Mapping[str, Any]
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def queries(self) -> int:
        """The width of all queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """The width of all keys, and of all values."""
        return self.kv_heads * self.head_dim

    @property
    def intermediate(self) -> int:
        """The width of the MLP. Raises UserError where config.json does not say."""
        return config_sizes.size(self.config, "intermediate_size")

    def flag(self, name: str) -> bool:
        return bool(self.config.get(name))


@dataclass(frozen=True)
class Layer:
    """`linears` and `norms` of one layer, and the norms outside of the layers, in the order of the forward pass.

    `gated`: the MLP, of the width `intermediate`, multiplies two projections, one of them through the activation.
    """

    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    outer_norms: tuple[Norm, ...]
    intermediate: int
    gated: bool


@dataclass(frozen=True)
class Family:
    """The facts of one `model_type` (or of all that begin like it: `gemma*`). Defaults are what most decoders do.

    layer: its layers exactly, from their sizes; None plans it as a plain decoder, from counts and the simulated step.
    tied, head_dim: what transformers takes where config.json does not say; head_dim 0 is hidden / heads.
    unsupported: why it cannot be trained in 4 bits, to go on after "and".
    position_table: its positions are rows of a table, of learned or fixed numbers: beyond it transformers has none.
    positions: the name in config.json of how many of those are learned.
    template_missing: hub ids that begin so bring no chat template.
    own_logits: the logits are more than head(hidden): no chunked loss (models/chunked_loss.py).
    capped: scores and logits go through a tanh, which keeps its output; SDPA knows none, so attention is eager.
    own_norms: norms by 1 + weight, which models/norms.py leaves as they are: they keep an fp32 copy of their input.
    fused_qkv: one projection for queries, keys and values, whose whole output is kept for the values.
    bias_per_head: the additive mask has numbers of its own for every head (ALiBi), made in fp32 from distances.
    own_attention: transformers has nothing but eager attention for it, and `code` one through SDPA.
    cpu_eager_up_to: tokens per row up to which `attention` auto is eager on a CPU in 16 bits.
    eager_copies: of the scores, [rows, heads, tokens, tokens], that eager attention holds at once in the compute dtype.
    activation_temporaries: of [tokens, intermediate], in the backward pass of transformers' own activation.
    code: the module of models/families/ with its torch parts, where transformers' own do not serve.
    """

    model_type: str
    layer: Callable[[Sizes], Layer] | None = None
    tied: bool = False
    head_dim: int = 0
    unsupported: str = ""
    position_table: bool = False
    positions: str = ""
    template_missing: str = ""
    own_logits: bool = False
    capped: bool = False
    own_norms: bool = False
    fused_qkv: bool = False
    bias_per_head: bool = False
    own_attention: bool = False
    cpu_eager_up_to: int = 0
    eager_copies: int = 2
    activation_temporaries: int = 1
    code: str = ""
