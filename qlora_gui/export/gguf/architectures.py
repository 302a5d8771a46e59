"""What each family is in GGUF: its name there, the numbers of its config, and how its tensors are laid out.

As llama.cpp's own converter writes them (https://github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py); tests let llama.cpp
read a file of each.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGUFWriter

from qlora_gui.errors import UserError

Config = Mapping[str, Any]
Change = Callable[[torch.Tensor, Config], torch.Tensor]


@dataclass(frozen=True)
class Architecture:
    """One architecture. `numbers` writes what is not common to all; `changes` are applied to tensors whose names on disk end so.

    `extra` are further tensors, made from the config, by name in the file.
    """

    arch: gguf.MODEL_ARCH
    numbers: Callable[[GGUFWriter, Config], None]
    changes: Mapping[str, Change] = field(default_factory=dict)
    extra: Callable[[Config], dict[str, np.ndarray[Any, Any]]] = lambda config: {}

    def changed(self, name: str, values: torch.Tensor, config: Config) -> torch.Tensor:
        """A tensor [out, in] or [width] as the file has it."""
        for end, change in self.changes.items():
            if name.endswith(end):
                return change(values, config)
        return values


def of(config: Config) -> Architecture:
    """The architecture of a config.json. Raises UserError for one that is not supported."""
    kind = str(config.get("model_type"))
    found = ARCHITECTURES.get(kind)
    if found is None:
        raise UserError(
            f"GGUF is not written for the type '{kind}' here: merge it (--to merged), then run llama.cpp's own "
            "convert_hf_to_gguf.py on that folder."
        )
    return found


def head_size(config: Config) -> int:
    """The width of one attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _permuted(heads: str) -> Change:
    """Rows of a query or key projection, from transformers' order (halves) to the one llama.cpp rotates (pairs)."""

    def change(values: torch.Tensor, config: Config) -> torch.Tensor:
        count = int(config.get(heads) or config["num_attention_heads"])
        rows = values.shape[0]
        # [heads, 2 halves, size / 2, ...] -> [heads, size / 2, 2, ...]
        return values.reshape(count, 2, rows // count // 2, *values.shape[1:]).transpose(1, 2).reshape(values.shape)

    return change


def _plus_one(values: torch.Tensor, config: Config) -> torch.Tensor:
    """Gemma's norms multiply by 1 + weight."""
    return values + 1


def _bloom_qkv(values: torch.Tensor, config: Config) -> torch.Tensor:
    """BLOOM keeps query, key and value of each head side by side; llama.cpp wants all queries, all keys, all values."""
    heads = int(config["n_head"])
    # [heads, 3, size, ...] -> [3, heads, size, ...]
    parts = values.reshape(heads, 3, values.shape[0] // heads // 3, *values.shape[1:])
    return parts.transpose(0, 1).reshape(values.shape)


def _rope(writer: GGUFWriter, config: Config) -> None:
    """Base frequency and scaling, from both of transformers' spellings."""
    scaling = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    inner = scaling.get("full_attention")
    scaling = dict(inner) if isinstance(inner, dict) else scaling
    base = config.get("rope_theta") or scaling.get("rope_theta")
    if base:
        writer.add_rope_freq_base(float(base))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
    elif kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(scaling["original_max_position_embeddings"]))
    elif kind not in ("default", "llama3", "longrope", None):
        raise UserError(f"GGUF has no word for rope scaling of the kind '{kind}': merge the model instead.")


def _decoder(writer: GGUFWriter, config: Config) -> None:
    """What a decoder with rotary positions and RMS norms says."""
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(int(config["num_attention_heads"]))
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or config["num_attention_heads"]))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    _rope(writer, config)


def _with_heads(writer: GGUFWriter, config: Config) -> None:
    """And how wide a head is, where that does not follow."""
    _decoder(writer, config)
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))


def _llama(writer: GGUFWriter, config: Config) -> None:
    _with_heads(writer, config)
    writer.add_rope_dimension_count(head_size(config))
    writer.add_vocab_size(int(config["vocab_size"]))


def _llama_extra(config: Config) -> dict[str, np.ndarray[Any, Any]]:
    """Llama 3's scaling of frequencies, as a divisor of each (transformers' modeling_rope_utils)."""
    scaling = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    if scaling.get("rope_type", scaling.get("type")) != "llama3":
        return {}
    base = float(config.get("rope_theta") or scaling.get("rope_theta") or 10000.0)
    size = head_size(config)
    factor, old = float(scaling["factor"]), float(scaling["original_max_position_embeddings"])
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    divisors = []
    for place in range(0, size, 2):
        wave = 2 * math.pi * base ** (place / size)
        if wave < old / high:
            divisors.append(1.0)
        elif wave > old / low:
            divisors.append(factor)
        else:
            smooth = (old / wave - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return {"rope_freqs.weight": np.array(divisors, dtype=np.float32)}


def _gemma2(writer: GGUFWriter, config: Config) -> None:
    _with_heads(writer, config)
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(float(config["attn_logit_softcapping"]))
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(float(config["final_logit_softcapping"]))
    if config.get("sliding_window"):
        writer.add_sliding_window(int(config["sliding_window"]))


def _gemma3(writer: GGUFWriter, config: Config) -> None:
    _gemma2(writer, config)
    local = config.get("rope_local_base_freq")
    parts = config.get("rope_parameters")
    if local is None and isinstance(parts, dict):
        local = (parts.get("sliding_attention") or {}).get("rope_theta")
    if local:
        writer.add_rope_freq_base_swa(float(local))
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
    kinds = config.get("layer_types")
    if kinds:
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])
    elif every:
        writer.add_sliding_window_pattern(int(every))


def _phi3(writer: GGUFWriter, config: Config) -> None:
    _decoder(writer, config)
    old = config.get("original_max_position_embeddings") or config["max_position_embeddings"]
    writer.add_rope_scaling_orig_ctx_len(int(old))
    writer.add_rope_dimension_count(_rotated(config))
    writer.add_sliding_window(int(config.get("sliding_window") or 0))
    if _phi3_factors(config):
        scale = config["max_position_embeddings"] / old
        writer.add_rope_scaling_attn_factors(1.0 if scale <= 1 else math.sqrt(1 + math.log(scale) / math.log(old)))


def _rotated(config: Config) -> int:
    parameters = config.get("rope_parameters")
    share = config.get("partial_rotary_factor") or (parameters or {}).get("partial_rotary_factor") or 1.0
    return int(head_size(config) * float(share))


def _phi3_factors(config: Config) -> dict[str, Any]:
    scaling = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    kind = scaling.get("rope_type", scaling.get("type"))
    return scaling if kind in ("longrope", "su") and scaling.get("long_factor") else {}


def _phi3_extra(config: Config) -> dict[str, np.ndarray[Any, Any]]:
    scaling = _phi3_factors(config)
    return {
        f"rope_factors_{which}.weight": np.array(scaling[f"{which}_factor"], dtype=np.float32)
        for which in ("long", "short")
        if scaling
    }


def _bloom(writer: GGUFWriter, config: Config) -> None:
    width = int(config.get("hidden_size") or config["n_embed"])
    heads = int(config["n_head"])
    writer.add_context_length(int(config.get("seq_length") or 2048))
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(4 * width)
    writer.add_block_count(int(config["n_layer"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_eps(float(config.get("layer_norm_epsilon", 1e-5)))


_ARCH = gguf.MODEL_ARCH
_HALVES = {
    "q_proj.weight": _permuted("num_attention_heads"),
    "q_proj.bias": _permuted("num_attention_heads"),
    "k_proj.weight": _permuted("num_key_value_heads"),
    "k_proj.bias": _permuted("num_key_value_heads"),
}
_NORMS = {"norm.weight": _plus_one}
_LLAMA = Architecture(_ARCH.LLAMA, _llama, _HALVES, _llama_extra)
_GEMMA3 = Architecture(_ARCH.GEMMA3, _gemma3, _NORMS)
ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture(_ARCH.QWEN2, _decoder),
    "qwen3": Architecture(_ARCH.QWEN3, _with_heads),
    "gemma2": Architecture(_ARCH.GEMMA2, _gemma2, _NORMS),
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    "phi3": Architecture(_ARCH.PHI3, _phi3, {}, _phi3_extra),
    "bloom": Architecture(
        _ARCH.BLOOM, _bloom, {"query_key_value.weight": _bloom_qkv, "query_key_value.bias": _bloom_qkv}
    ),
}


def blocks(config: Config) -> int:
    """How many layers a config says there are."""
    return int(config.get("num_hidden_layers") or config["n_layer"])
