"""Bases of the real shapes with random weights, in 4 bits from the start, and made ready to train: our way and the stock way."""

import json
import logging
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from accelerate import init_empty_weights
from bitsandbytes.nn import Params4bit
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert

from qlora_gui.config import RunConfig
from qlora_gui.memory import known_models
from qlora_gui.models import chunked_loss, lora
from qlora_gui.models import device as devices

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
BLOOM_560M, BLOOM_7B1, LLAMA_1B = "bigscience/bloom-560m", "bigscience/bloom-7b1", "meta-llama/Llama-3.2-1B"
QWEN_8B, GEMMA_4B = "Qwen/Qwen3-8B", "google/gemma-3-4b-pt"
# The text part, from its config.json; not in the shipped table of known bases.
_UNLISTED = {
    GEMMA_4B: {
        "model_type": "gemma3_text",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "sliding_window": 1024,
        "tie_word_embeddings": True,
    }
}
TINY = {
    "bloom": {"model_type": "bloom", "hidden_size": 64, "n_layer": 3, "n_head": 4, "vocab_size": 1000},
    "llama": {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "tie_word_embeddings": True,
    },
}


def shape_of(name: str, dry: bool) -> dict[str, Any]:
    """The config.json of a known base; a tiny one of its kind in a dry run."""
    if name in _UNLISTED:
        return dict(_UNLISTED[name])
    table = json.loads(Path(known_models.__file__).with_name("known_models.json").read_text(encoding="utf-8"))
    found = next(bases[name] for bases in table.values() if name in bases)
    return dict(TINY[found["model_type"]] if dry else found)


def random_base(shape: dict[str, Any], run: RunConfig, device: torch.device) -> Any:
    """A causal LM with random weights, its linears quantized one by one on `device`: nothing is ever whole in 16 bits."""
    torch.manual_seed(run.seed)
    torch.backends.cuda.enable_cudnn_sdp(False)  # as training does: it plans anew for every shape
    dtype = devices.compute_dtype(device)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=run.quant_type,
        bnb_4bit_use_double_quant=run.double_quant,
        bnb_4bit_compute_dtype=dtype,
    )
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape), dtype=dtype)
        replace_with_bnb_linear(model, get_keys_to_not_convert(model), quantization)
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.weight = _quantized(module, run, device, dtype)
            module.support_avx512bf16_for_cpu = False
        for name, part in list(module._parameters.items()):
            if part is not None and part.is_meta:
                module._parameters[name] = torch.nn.Parameter(_random(part, device), requires_grad=False)
    model.tie_weights()
    model.is_loaded_in_4bit = True
    return model.to(device)


def _quantized(linear: Any, run: RunConfig, device: torch.device, dtype: torch.dtype) -> Params4bit:
    weight = torch.empty(linear.out_features, linear.in_features, dtype=dtype, device=device).normal_(0, 0.02)
    packed = Params4bit(
        weight,
        requires_grad=False,
        quant_type=run.quant_type,
        compress_statistics=run.double_quant,
        module=linear,
    )
    return packed.to(device)


def _random(part: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Vectors are norms and biases: ones serve both. Matrices are embeddings."""
    made = torch.ones(part.shape, dtype=part.dtype, device=device)
    return made if part.ndim == 1 else made.normal_(0, 0.02)


def ours(model: Any, run: RunConfig) -> Any:
    """Made ready as training/run.py does it. `gradient_checkpointing` must not be auto."""
    lora.prepare(model, run)
    wrapped = lora.attach(model, run)
    if reason := chunked_loss.install(wrapped.get_base_model()):
        raise RuntimeError(f"This would not measure how this program trains: no chunked loss, for {reason}")
    return wrapped.train()


def stock(model: Any, run: RunConfig) -> Any:
    """Made ready as PEFT's guide does it: k-bit preparation, the loss over all logits, transformers' own attention."""
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=run.gradient_checkpointing != "none")
    model.config.use_cache = False
    wanted = LoraConfig(
        r=run.rank,
        lora_alpha=int(run.alpha),
        lora_dropout=run.dropout,
        bias=run.bias,
        target_modules=run.target_modules,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, wanted).train()


def tokenizer(size: int) -> Any:
    """The rows are tokens already; TRL and Unsloth want a tokenizer all the same."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=size
    )
