"""The shape of a base: its linears, norms and sizes, read from its config.json alone, never from its weights."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from qlora_gui.errors import UserError

Family = Literal["bloom", "llama", "generic"]
# Model types whose layers are those of Llama up to the differences written out below.
LLAMA_LIKE = frozenset("llama mistral qwen2 qwen3 gemma gemma2 gemma3_text phi3 granite olmo2 smollm3".split())
_TIED = frozenset("bloom gemma gemma2 gemma3_text smollm3 gpt2 opt".split())  # where config.json does not say
_HEAD_NORMS = frozenset("qwen3 gemma3_text olmo2".split())  # norms on queries and keys
_MLP_BIAS = frozenset("llama granite smollm3".split())  # types that read mlp_bias
_HEAD = 64  # the width of a head where there is none: states of Mamba's kind
_FOUR_NORMS = frozenset("gemma2 gemma3_text".split())


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
class Shape:
    """A causal LM. `linears` and `norms` are those of one layer; `outer_norms` stand outside the layers.

    `experts` are parameters of experts in all layers, which stay in 16 bits. `counted` are the weights in 4 bits and all
    parameters where those were counted on the model itself (memory/known_models.py): then they are used instead of the sums here.
    `stored_double` is whether a base that is stored in 4 bits has double quantization, which no setting changes; else None.
    """

    model_type: str
    family: Family
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    gated: bool  # the MLP multiplies two projections, one of them through the activation
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
        return self.family == "generic" and self.counted is None

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


# The largest numbers of a config.json that are believed, each some ten times those of the largest bases there are:
# beyond them memory and time go into counting, or into making a model of them, whatever the answer is.
LIMITS = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 2_000),
    **dict.fromkeys(("hidden_size", "n_embed", "n_embd", "d_model", "dim"), 1_000_000),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "head_dim"), 100_000),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 100_000),
    **dict.fromkeys(
        ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "moe_intermediate_size"), 10_000_000
    ),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 10_000),
    **dict.fromkeys(("num_experts_per_tok", "top_k_experts", "num_experts_per_token"), 10_000),
    "vocab_size": 50_000_000,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "seq_length"), 100_000_000),
}
_MOST_OF_ANY = 10**15
# Numbers of things, whatever a config calls them: each thing is made. Others are token ids, angles, sizes of files.
_COUNTS = re.compile(r"(?!\w*(param|token|step|sample|train))((num|n)_\w+|\w*(layers|depths?|blocks|labels|stages))")
_MOST_THINGS, _MOST_LISTED = 1_000_000, 100_000


def check_limit(name: str, value: object) -> None:
    """Raise UserError for a number of a config.json that is beyond all measure."""
    most = LIMITS.get(name, _MOST_THINGS if _COUNTS.fullmatch(name) else _MOST_OF_ANY)
    for number in _flat(value, name):
        if isinstance(number, int) and not isinstance(number, bool) and abs(number) > most:
            written = f"{number:,}" if abs(number) < 10**30 else f"a number of {len(str(abs(number)))} digits"
            raise UserError(
                f"The base's config.json says that its {name} is {written}, and at most {most:,} is believed."
            )


def check_limits(config: Mapping[str, Any]) -> None:
    """Raise UserError for a config.json with any number, also in its parts, that is beyond all measure."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_limits(value)
        else:
            check_limit(name, value)
    _check_repeats(config.get("attention_types"))


def _check_repeats(kinds: object) -> None:
    """GPT-Neo's kinds of layers, [[["global", "local"], 12]]: each list of words is written out so often."""
    pairs = [pair for pair in kinds if isinstance(pair, list) and len(pair) == 2] if isinstance(kinds, list) else []
    if any(
        isinstance(words, list) and isinstance(times, int) and len(words) * times > LIMITS["num_layers"]
        for words, times in pairs
    ):
        raise UserError(f"The base's config.json lists more than {LIMITS['num_layers']:,} attention_types.")


def _flat(value: object, name: str) -> Iterator[object]:
    """The values in lists in lists, and in their mappings. Raises UserError for more than a config has."""
    waiting, count = [value], 0
    while waiting:
        item = waiting.pop()
        count += 1 + (len(item) if isinstance(item, list) else 0)
        if count > _MOST_LISTED:
            raise UserError(f"The base's config.json lists more than {_MOST_LISTED:,} values under {name}.")
        if isinstance(item, list):
            waiting.extend(item)
        elif isinstance(item, Mapping):
            check_limits(item)
        else:
            yield item


def read(config: Mapping[str, Any]) -> Shape:
    """The shape that a config.json describes.

    BLOOM and the Llama-like types are exact; other decoders, mixtures of experts among them, are taken as plain ones
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
    kind = str(config.get("model_type") or "")
    if kind == "bloom":
        return _bloom(config)
    return _llama(config, kind) if kind in LLAMA_LIKE and not _experts(config) else _generic(config, kind)


def _experts(config: Mapping[str, Any]) -> int:
    """How many experts a layer has; 0 for a dense base."""
    return _optional(config, 0, "num_local_experts", "num_experts", "n_routed_experts")


def _size(config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, list) and value and all(isinstance(number, int) for number in value):
            value = max(value)  # a size per layer: the largest decides what a step needs
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            check_limit(name, value)
            return value
    raise UserError(f"The base's config.json has no usable {names[0]}: memory cannot be planned for it.")


def _optional(config: Mapping[str, Any], default: int, *names: str) -> int:
    return _size(config, *names) if any(config.get(name) for name in names) else default


def _layers(config: Mapping[str, Any]) -> int:
    """The number of layers; hybrids may give a list of what each layer is instead."""
    names = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    kinds = config.get("layers_block_type") or config.get("layer_types")
    if isinstance(kinds, list) and kinds and not any(config.get(name) for name in names):
        return len(kinds)
    return _size(config, *names)


def _sizes(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    hidden = _size(config, "hidden_size", "n_embed", "n_embd", "d_model", "dim")
    names = ("num_attention_heads", "n_head", "num_heads", "n_heads")
    attends = kind == "bloom" or kind in LLAMA_LIKE
    heads = _size(config, *names) if attends else _optional(config, max(hidden // _HEAD, 1), *names)
    head_dim = 128 if kind == "qwen3" else 256 if kind.startswith("gemma") else hidden // heads
    tied = config.get("tie_word_embeddings")
    return {
        "model_type": kind,
        "layers": _layers(config),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": _optional(config, heads, "num_key_value_heads", "num_kv_heads"),
        "head_dim": _optional(config, head_dim, "head_dim"),
        "vocab": _size(config, "vocab_size"),
        "tied": kind in _TIED if tied is None else bool(tied),
    }


def _bloom(config: Mapping[str, Any]) -> Shape:
    sizes = _sizes(config, "bloom")
    hidden = sizes["hidden"]
    return Shape(
        **sizes,
        family="bloom",
        intermediate=4 * hidden,
        gated=False,
        linears=(
            Linear("self_attention.query_key_value", hidden, 3 * hidden, True),
            Linear("self_attention.dense", hidden, hidden, True),
            Linear("mlp.dense_h_to_4h", hidden, 4 * hidden, True),
            Linear("mlp.dense_4h_to_h", 4 * hidden, hidden, True),
        ),
        norms=(Norm("input_layernorm", hidden, True), Norm("post_attention_layernorm", hidden, True)),
        outer_norms=(Norm("word_embeddings_layernorm", hidden, True), Norm("ln_f", hidden, True)),
    )


def _llama(config: Mapping[str, Any], kind: str) -> Shape:
    sizes = _sizes(config, kind)
    hidden, middle = sizes["hidden"], _size(config, "intermediate_size")
    queries, keys = sizes["heads"] * sizes["head_dim"], sizes["kv_heads"] * sizes["head_dim"]
    return Shape(
        **sizes,
        family="llama",
        intermediate=middle,
        gated=True,
        linears=_llama_linears(kind, config, hidden, middle, queries, keys),
        norms=_llama_norms(kind, hidden, sizes["head_dim"], queries, keys),
        outer_norms=(Norm("norm", hidden),),
    )


def _llama_linears(
    kind: str, config: Mapping[str, Any], hidden: int, middle: int, queries: int, keys: int
) -> tuple[Linear, ...]:
    if kind == "phi3":
        return (
            Linear("self_attn.qkv_proj", hidden, queries + 2 * keys),
            Linear("self_attn.o_proj", queries, hidden),
            Linear("mlp.gate_up_proj", hidden, 2 * middle),
            Linear("mlp.down_proj", middle, hidden),
        )
    attention_bias = bool(config.get("attention_bias")) and kind != "mistral"
    bias, mlp = attention_bias or kind == "qwen2", bool(config.get("mlp_bias")) and kind in _MLP_BIAS
    return (
        Linear("self_attn.q_proj", hidden, queries, bias),
        Linear("self_attn.k_proj", hidden, keys, bias),
        Linear("self_attn.v_proj", hidden, keys, bias),
        Linear("self_attn.o_proj", queries, hidden, attention_bias and kind != "qwen2"),
        Linear("mlp.gate_proj", hidden, middle, mlp),
        Linear("mlp.up_proj", hidden, middle, mlp),
        Linear("mlp.down_proj", middle, hidden, mlp),
    )


def _llama_norms(kind: str, hidden: int, head_dim: int, queries: int, keys: int) -> tuple[Norm, ...]:
    names = ["input_layernorm", "post_attention_layernorm"]
    if kind in _FOUR_NORMS:
        names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    if kind == "olmo2":
        names = ["post_attention_layernorm", "post_feedforward_layernorm"]
    norms = [Norm(name, hidden) for name in names]
    if kind in _HEAD_NORMS:
        whole = kind == "olmo2"
        norms += [
            Norm("self_attn.q_norm", queries if whole else head_dim),
            Norm("self_attn.k_norm", keys if whole else head_dim),
        ]
    return tuple(norms)


def _generic(config: Mapping[str, Any], kind: str) -> Shape:
    """Any other decoder: separate projections, two layer norms; gated where the activation is SiLU.

    Of a mixture of experts a token goes through the MLPs of some; the weights of all are `experts`.
    """
    sizes = _sizes(config, kind or "unknown")
    hidden, experts = sizes["hidden"], _experts(config)
    middle = _optional(config, 4 * hidden, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
    expert = _optional(config, middle, "moe_intermediate_size")
    if experts:
        middle = expert * _optional(config, 1, "num_experts_per_tok", "top_k_experts", "num_experts_per_token")
    queries, keys = sizes["heads"] * sizes["head_dim"], sizes["kv_heads"] * sizes["head_dim"]
    activation = str(config.get("hidden_act") or config.get("activation_function") or "")
    gated = "silu" in activation or "swiglu" in activation
    plain = not gated
    mlp = ["gate", "up"] if gated else ["up"]
    return Shape(
        **sizes,
        family="generic",
        intermediate=middle,
        gated=gated,
        experts=sizes["layers"] * experts * hidden * expert * 3,
        linears=(
            Linear("attention.q", hidden, queries, plain),
            Linear("attention.k", hidden, keys, plain),
            Linear("attention.v", hidden, keys, plain),
            Linear("attention.o", queries, hidden, plain),
            *(Linear(f"mlp.{name}", hidden, middle, plain) for name in mlp),
            Linear("mlp.down", middle, hidden, plain),
        ),
        norms=(Norm("first", hidden, plain), Norm("second", hidden, plain)),
        outer_norms=(Norm("last", hidden, plain),),
        positions=_optional(config, 0, "n_positions") if kind in {"gpt2", "gpt_neo"} else 0,
    )
