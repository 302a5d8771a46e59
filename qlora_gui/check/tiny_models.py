"""A small random Llama and a small random BLOOM with a tokenizer of characters, and a few rows to train on."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, PreTrainedTokenizerFast

NAMES = ("llama", "bloom")
_CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))  # each is a token, so that a text says which tokens it is
_SPECIAL = ("</s>", "<pad>", "<unk>", "<|im_start|>", "<|im_end|>")
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SENTENCES = ("The parcel came late.", "Where is my order?", "Please send it again.", "It is on its way.")


def make(name: str, folder: Path) -> Path:
    """A base of 3 layers of width 128 in fp32, the same wherever it is made."""
    tokenizer = _tokenizer(_CHATML if name == "llama" else None)
    tokenizer.save_pretrained(folder)
    ids = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    shared = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, **ids}
    sizes = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 256}
    config = (
        LlamaConfig(hidden_size=128, **sizes, **shared)
        if name == "llama"
        else BloomConfig(hidden_size=128, n_layer=3, n_head=4, **shared)
    )
    generator = torch.Generator().manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for key, part in model.named_parameters():
            if part.ndim == 2:
                # Stronger than usual, else a random model answers nothing but its last token.
                part.normal_(0, 0.4 if "embed" in key else 1.6 * part.shape[1] ** -0.5, generator=generator)
            elif key.endswith("bias"):
                part.normal_(0, 0.1, generator=generator)
    model.save_pretrained(folder)
    return folder


def write_rows(path: Path, count: int = 24, times: int = 0) -> Path:
    """Prompts and completions, made from a few sentences; so many times the same follows in each answer."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            prompt = f"{number} {_SENTENCES[number % 4]}"
            row = {
                "prompt": prompt,
                "completion": f"{_SENTENCES[(number + 1) % 4]} {number * number}" + " And again." * times,
            }
            file.write(json.dumps(row) + "\n")
    return path


def _tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate((*_SPECIAL, *_CHARACTERS))}
    plain = Tokenizer(BPE(vocabulary, [], unk_token="<unk>"))
    plain.decoder = decoders.Fuse()
    eos = "<|im_end|>" if template else "</s>"
    made = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=eos, pad_token="<pad>", unk_token="<unk>")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = template
    return made
