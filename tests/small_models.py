"""Small real models for tests: random weights, but the true architectures and a tokenizer trained on the demo data."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, BloomConfig, LlamaConfig, PreTrainedTokenizerFast

from qlora_gui.data import load

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer(folder: Path, template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about 1,000 tokens, without a chat template unless one is given."""
    examples = load.load("demo").train
    texts = [turn["content"] for example in examples for turn in example["messages"]]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    eos = "<|im_end|>" if template else "</s>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=eos, pad_token="<pad>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_bloom(folder: Path, seed: int = 0) -> Path:
    """A BLOOM of 3 layers, hidden size 64, with random biases and no chat template."""
    tokenizer = make_tokenizer(folder)
    config = BloomConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        n_layer=3,
        n_head=4,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save(config, folder, seed)


def make_llama(folder: Path, seed: int = 0) -> Path:
    """A Llama of 3 layers, hidden size 64, grouped attention, ChatML template."""
    tokenizer = make_tokenizer(folder, CHATML)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _save(config, folder, seed)


def _save(config: BloomConfig | LlamaConfig, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.2)
            elif parameter.ndim == 2:
                # Strong layers under tied embeddings: else every random model just repeats its last token, and
                # tests that compare texts could not tell one model from another.
                parameter.mul_(8 if "embed" in name else 20)
    model.save_pretrained(folder)
    return folder


NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": 5000,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
}
