"""Small random models of other families than Llama's, with adapters by plain PEFT."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig, PreTrainedTokenizerFast

from qlora_gui.inference.columns import Columns
from tests.small_models import CHATML, make_tokenizer

NEW = 10


WINDOW = 32


SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
}


HYBRID: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"],
}


@dataclass(frozen=True)
class Family:
    """A tiny base: its config class and settings, the biases that its adapter trains, and why it cannot share a batch."""

    config: str
    settings: dict[str, Any]
    bias: str = "none"
    lane: str = ""


FAMILIES = {
    "window": Family(
        "Gemma3TextConfig",
        SIZES | {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "states": Family("Qwen3_5TextConfig", SIZES | HYBRID),
    "no-cache-at-all": Family(
        "RecurrentGemmaConfig",
        {key: value for key, value in SIZES.items() if key != "head_dim"}
        | {"lru_width": 64, "attention_window_size": WINDOW, "block_types": ["recurrent", "attention"]},
    ),
    "flat-linears": Family(
        "OPTConfig",
        {
            "hidden_size": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "word_embed_proj_dim": 64,
        },
        bias="all",
    ),
    "biases-of-convolutions": Family(
        "BambaConfig",
        {key: value for key, value in SIZES.items() if key != "head_dim"}
        | {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16, "mamba_n_groups": 1}
        | {"attn_layer_indices": [1]},
        bias="all",
        lane="trains the bias of 'model.layers.0.mamba.conv1d'",
    ),
    "head-bias": Family("PhiConfig", SIZES | {"num_key_value_heads": 4, "partial_rotary_factor": 0.5}, bias="all"),
}


WORDS = "The kettle that I have ordered from your shop two weeks ago never came and nobody answers my letters".split()


def make_base(folder: Path, family: Family) -> PreTrainedTokenizerFast:
    """Save a base whose layers outweigh its embeddings: else a random model repeats its last token for ever."""
    tokenizer = make_tokenizer(folder, CHATML)
    ids = {name: getattr(tokenizer, name) for name in ("eos_token_id", "pad_token_id")} | {"bos_token_id": None}
    config = getattr(transformers, family.config)(**family.settings, vocab_size=len(tokenizer), **ids)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, part in model.named_parameters():
            if name.endswith("bias"):
                part.normal_(0, 0.2)
            elif "embed" in name:
                part.normal_(0, 0.03)
            elif part.ndim >= 2:
                part.normal_(0, 2 / part.shape[-1] ** 0.5)
    model.save_pretrained(folder)
    return tokenizer


def plain(base: Path) -> Any:
    """The base in 4 bits, computing in fp32, by transformers alone."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=quantization, dtype=torch.float32)
    for part in model.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    return model.eval()


def linears(model: Any) -> list[str]:
    """The names of the linears that are in 4 bits, as an adapter's target modules."""
    return sorted(
        {name.rpartition(".")[2] for name, part in model.named_modules() if type(part).__name__ == "Linear4bit"}
    )


def make_adapter(base: Path, folder: Path, bias: str = "none", **settings: Any) -> Path:
    """Save an adapter with random weights that change what is said."""
    model = plain(base)
    config = LoraConfig(
        r=4,
        bias=bias,
        task_type="CAUSAL_LM",
        **({"target_modules": linears(model)} | settings),  # type: ignore[arg-type]
    )
    wrapped = get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, part in wrapped.named_parameters():
            if part.requires_grad and "lora_A" not in name:
                part.add_(torch.randn(part.shape).to(part.dtype), alpha=0.2)
    wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@dataclass
class Case:
    """A base with its adapters, loaded for comparing, and the plain models they are held against."""

    tokenizer: PreTrainedTokenizerFast
    columns: Columns
    models: list[Any]
    proofs: list[dict[str, Any]]


def load(base: Path, tokenizer: PreTrainedTokenizerFast, adapters: list[Path]) -> Case:
    columns = Columns()
    proofs = columns.load((str(base), "", "nf4", True), adapters, lambda text: None)
    models = [plain(base), *(PeftModel.from_pretrained(plain(base), str(adapter)).eval() for adapter in adapters)]
    return Case(tokenizer, columns, models, proofs)


@torch.no_grad()
def said(case: Case, model: Any, prompt: list[int]) -> str:
    """What a plain model answers to one prompt, greedily."""
    assert case.columns.base
    ends = sorted(case.columns.base.eos)
    config = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=ends, pad_token_id=1)
    ids = torch.tensor([prompt])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)[0, len(prompt) :]
    return str(case.tokenizer.decode(out, skip_special_tokens=True))
