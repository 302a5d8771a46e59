"""The shape of a base: its linears, norms and sizes, read from its config.json alone, never from its weights."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qlora_gui import families
from qlora_gui.families.config_sizes import optional, size
from qlora_gui.families.family import Family, Layer, Linear, Norm, Sizes

_HEAD = 64  # the width of a head where there is none: states of Mamba's kind


@dataclass(frozen=True)
class Shape:
    """A causal LM. `linears` and `norms` are those of one layer; `outer_norms` stand outside the layers.

    `exact` is whether the family's own layer is counted (families/), and not a plain decoder of the same sizes.

    `experts` are parameters of experts in all layers, which stay in 16 bits. `counted` are the weights in 4 bits and all
    parameters where those were counted on the model itself (memory/known_models.py): then they are used instead of the sums here.
    `stored_double` is whether a base that is stored in 4 bits has double quantization, which no setting changes; else None.
    """

    model_type: str
    exact: bool
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    gated: bool
    linears: tuple[Linear, ...]
    norms: tuple[Norm, ...]
    outer_norms: tuple[Norm, ...]
    positions: int = 0  # rows of a learned position embedding
    experts: int = 0
    counted: tuple[int, int] | None = None
    stored_double: bool | None = None

    @property
    def rough(self) -> bool:
        """Whether an unknown architecture was taken as a plain decoder of the same sizes."""
        return not self.exact and self.counted is None

    @property
    def family(self) -> Family:
        """What is known of its model type."""
        return families.find(self.model_type)

    @property
    def embedding(self) -> int:
        """Parameters of the embeddings: one matrix, also used as head where they are tied."""
        return (self.vocab + self.positions) * self.hidden

    @property
    def head(self) -> int:
        """Parameters of a head of its own; 0 where it is tied to the embedding."""
        return 0 if self.tied else self.vocab * self.hidden

    @property
    def listed_weights(self) -> int:
        """Weights of `linears` in all layers."""
        return self.layers * sum(linear.weights for linear in self.linears)

    @property
    def linear_weights(self) -> int:
        """Weights that are in 4 bits."""
        return self.counted[0] if self.counted else self.listed_weights

    @property
    def linear_biases(self) -> int:
        return self.layers * sum(linear.outputs for linear in self.linears if linear.bias)

    @property
    def norm_parameters(self) -> int:
        return self.layers * sum(norm.parameters for norm in self.norms) + sum(
            norm.parameters for norm in self.outer_norms
        )

    @property
    def norm_biases(self) -> int:
        inside = self.layers * sum(norm.size for norm in self.norms if norm.bias)
        return inside + sum(norm.size for norm in self.outer_norms if norm.bias)

    @property
    def parameters(self) -> int:
        """All of them, as `model.num_parameters()` counts."""
        return self.counted[1] if self.counted else self._listed + self.experts

    @property
    def beyond(self) -> int:
        """Parameters that are in 16 bits besides embeddings, head, biases and norms; below 0 where those are too many."""
        return self.parameters - self.linear_weights - (self._listed - self.listed_weights)

    @property
    def _listed(self) -> int:
        return self.embedding + self.head + self.listed_weights + self.linear_biases + self.norm_parameters


def read(config: Mapping[str, Any]) -> Shape:
    """The shape that a config.json describes.

    Families with a layer of their own are exact; other decoders, mixtures of experts among them, are taken as plain ones
    with the same sizes. Raises UserError where sizes are missing.
    """
    return replace(_read(config), stored_double=stored(config).get("double_quant"))


def stored(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `quant_type` and `double_quant` of a base whose config.json says that it is stored in 4 bits; else empty."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping) or not (
        quantization.get("load_in_4bit") or quantization.get("_load_in_4bit")
    ):
        return {}
    return {
        "quant_type": quantization.get("bnb_4bit_quant_type", "fp4"),  # transformers' default
        "double_quant": bool(quantization.get("bnb_4bit_use_double_quant", False)),
    }


def _read(config: Mapping[str, Any]) -> Shape:
    inner = config.get("text_config")
    if isinstance(inner, Mapping):  # a model of text and images: the language part is what is trained
        tied = config.get("tie_word_embeddings")  # the outer value decides where there is one
        config = {**inner, "tie_word_embeddings": inner.get("tie_word_embeddings") if tied is None else tied}
    kind, sizes = str(config.get("model_type") or ""), _sizes(config)
    family, experts = families.find(kind), _experts(config)
    exact = family.layer is not None and not experts
    layer = family.layer(sizes) if family.layer and exact else _plain_layer(sizes, experts)
    layers, tied = _layers(config), config.get("tie_word_embeddings")
    return Shape(
        model_type=kind or "unknown",
        exact=exact,
        layers=layers,
        hidden=sizes.hidden,
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate=layer.intermediate,
        vocab=size(config, "vocab_size"),
        tied=family.tied if tied is None else bool(tied),
        gated=layer.gated,
        linears=layer.linears,
        norms=layer.norms,
        outer_norms=layer.outer_norms,
        positions=optional(config, 0, family.positions) if family.positions else 0,
        experts=0 if exact else layers * experts * sizes.hidden * _expert(sizes) * 3,
    )


def _experts(config: Mapping[str, Any]) -> int:
    """How many experts a layer has; 0 for a dense base."""
    return optional(config, 0, "num_local_experts", "num_experts", "n_routed_experts")


def _layers(config: Mapping[str, Any]) -> int:
    """The number of layers; hybrids may give a list of what each layer is instead."""
    names = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    kinds = config.get("layers_block_type") or config.get("layer_types")
    if isinstance(kinds, list) and kinds and not any(config.get(name) for name in names):
        return len(kinds)
    return size(config, *names)


def _sizes(config: Mapping[str, Any]) -> Sizes:
    family = families.find(str(config.get("model_type") or ""))
    hidden = size(config, "hidden_size", "n_embed", "n_embd", "d_model", "dim")
    names = ("num_attention_heads", "n_head", "num_heads", "n_heads")
    heads = size(config, *names) if family.layer else optional(config, max(hidden // _HEAD, 1), *names)
    kv_heads = optional(config, heads, "num_key_value_heads", "num_kv_heads")
    return Sizes(config, hidden, heads, kv_heads, optional(config, family.head_dim or hidden // heads, "head_dim"))


def _middle(sizes: Sizes) -> int:
    return optional(sizes.config, 4 * sizes.hidden, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")


def _expert(sizes: Sizes) -> int:
    """The width of one expert's MLP."""
    return optional(sizes.config, _middle(sizes), "moe_intermediate_size")


def _plain_layer(sizes: Sizes, experts: int) -> Layer:
    """Any other decoder: separate projections, two layer norms; gated where the activation is SiLU.

    Of a mixture of experts a token goes through the MLPs of some.
    """
    config, hidden, middle = sizes.config, sizes.hidden, _middle(sizes)
    if experts:
        chosen = optional(config, 1, "num_experts_per_tok", "top_k_experts", "num_experts_per_token")
        middle = _expert(sizes) * chosen
    activation = str(config.get("hidden_act") or config.get("activation_function") or "")
    gated = "silu" in activation or "swiglu" in activation
    plain = not gated
    mlp = ["gate", "up"] if gated else ["up"]
    return Layer(
        linears=(
            Linear("attention.q", hidden, sizes.queries, plain),
            Linear("attention.k", hidden, sizes.keys, plain),
            Linear("attention.v", hidden, sizes.keys, plain),
            Linear("attention.o", sizes.queries, hidden, plain),
            *(Linear(f"mlp.{name}", hidden, middle, plain) for name in mlp),
            Linear("mlp.down", middle, hidden, plain),
        ),
        norms=(Norm("first", hidden, plain), Norm("second", hidden, plain)),
        outer_norms=(Norm("last", hidden, plain),),
        intermediate=middle,
        gated=gated,
    )
