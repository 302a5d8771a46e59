"""GGUF files read by llama.cpp itself: the tokenizer's tokens, and the same greedy answers as transformers gives."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_gui.data import load
from qlora_gui.errors import UserError
from qlora_gui.export import merge
from qlora_gui.export.gguf import architectures, vocabulary
from qlora_gui.export.gguf import file as gguf_file
from qlora_gui.inference import adapter_file
from tests import tokenizers
from tests.adapters import made_adapter
from tests.export import llama_cpp
from tests.matrix.build import build

NEW = 12
NEAR = 0.02  # of the largest logit: two tokens so close are told apart by rounding
FAMILIES = [
    "llama3",
    "llama-bias",
    "mistral-v0.1",
    "mistral-nemo",
    "qwen2.5",
    "qwen3",
    "gemma2",
    "gemma3-text",
    "gemma3",
]
FAMILIES += ["phi3", "bloom", "llama3-tokenizer", "llama3_1-tokenizer", "qwen3-tokenizer", "gemma3-tokenizer"]
QUICK = ["llama3", "bloom", "qwen3"]
ODD = [
    "Hello world, the kettle 12345 is broken!",
    "Größe  über\n\n  tab\t日本語 😭 नमस्ते",
    "def f(x):\n    return x**2 # it's 3.14\r\n",
    " leading and trailing ",
    "'s 'T don't WE'LL",
    "a\u00a0b \u200d\ufeff \u0301e",
    "1 22 333 4444 55555,666",
    "<b>&amp;</b> {{x}} \\n",
    "ÅÄÖ ẞß İi ﬁ",
    "\n\n\n",
]

SPLIT = {"type": "Split", "pattern": {"Regex": "x"}}
BY_ANOTHER_PATTERN = {"type": "Sequence", "pretokenizers": [SPLIT, {"type": "ByteLevel", "use_regex": False}]}


def texts() -> list[str]:
    """50 texts: odd ones, and questions of the demo data."""
    return ODD + [row["messages"][0]["content"] for row in load.load("demo").train[: 50 - len(ODD)]]


def write(base: Path, adapter: Path, out: Path, kind: gguf_file.Kind = "f16", bare: bool = False) -> Any:
    """Merge into a GGUF file; the tokenizer as transformers has it. Returns that tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(out.parent / "tokenizer")
    read = adapter_file.read(adapter)
    if bare:
        read = read.__class__(**vars(read) | {"loras": {}, "biases": {}})
    plan = merge.plan(base, read, torch.float32)
    ends = [tokenizer.eos_token_id]
    gguf_file.write_model(
        out, base, out.parent / "tokenizer", plan.tensors, kind, ends, {"name": "x"}, lambda count: None
    )
    return tokenizer


def with_adapter(base: Path, folder: Path) -> Path:
    """LoRA on every linear of the text part, with weights that change what is said."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    linears = {
        name.rpartition(".")[2]
        for name, part in model.named_modules()
        if type(part) is torch.nn.Linear and "lm_head" not in name and "vision" not in name
    }
    how = LoraConfig(r=4, target_modules=sorted(linears), exclude_modules=".*vision.*", task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, how)
    for name, part in wrapped.named_parameters():
        if "lora_B" in name:
            part.data.normal_(0, 0.05)
    wrapped.save_pretrained(str(folder))
    return folder


def merged(base: Path, adapter: Path) -> Any:
    """PEFT's merge, with matrices rounded to fp16 as in the file."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, str(adapter)).merge_and_unload().eval()
    for part in model.parameters():
        if part.ndim > 1:
            part.data = part.data.half().float()
    return model


@torch.no_grad()
def check_answers(model: Any, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> None:
    """Every token of an answer is the likeliest, or as likely but for rounding."""
    assert any(answers)
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        best = logits.max(-1).values
        chosen = logits.gather(-1, torch.tensor(answer)[:, None])[:, 0]
        assert (best - chosen <= NEAR * logits.abs().max()).all(), (prompt[:5], answer, logits.argmax(-1).tolist())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_llama_cpp_answers_as_transformers(name: str, tmp_path: Path) -> None:
    base = build(name, tmp_path / "bases").path
    adapter = with_adapter(base, tmp_path / "adapter")
    tokenizer = write(base, adapter, tmp_path / "model.gguf")
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts()]
    prompts = ids[:4]
    found = llama_cpp.ask(tmp_path / "model.gguf", texts=texts(), prompts=prompts, tokens=NEW)
    assert found["ids"] == ids
    check_answers(merged(base, adapter), prompts, found["answers"])
    assert found["template"] == tokenizer.chat_template or not tokenizer.chat_template


@pytest.mark.parametrize("name", ["llama3", "bloom", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_an_adapters_file_on_a_bases_file_is_the_merged_model(name: str, tmp_path: Path) -> None:
    base = build(name, tmp_path / "bases").path
    adapter = with_adapter(base, tmp_path / "adapter")
    tokenizer = write(base, adapter, tmp_path / "base.gguf", bare=True)
    read = adapter_file.read(adapter)
    gguf_file.write_adapter(tmp_path / "lora.gguf", base, read, {"name": "x"})
    assert "LoRA pairs are the adapter's" in gguf_file.compared(tmp_path / "lora.gguf", base, read)
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts()[:4]]
    found = llama_cpp.ask(tmp_path / "base.gguf", lora=tmp_path / "lora.gguf", prompts=prompts, tokens=NEW)
    check_answers(merged(base, adapter), prompts, found["answers"])
    alone = llama_cpp.ask(tmp_path / "base.gguf", prompts=prompts, tokens=NEW)
    assert alone["answers"] != found["answers"]


def test_biases_and_rslora_of_a_bloom(bloom: Path, tmp_path: Path) -> None:
    """`bias=all` merged, and read by llama.cpp; its LoRA file is refused, for it cannot hold them."""
    modules = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    adapter = made_adapter(bloom, tmp_path / "adapter", 1, r=4, bias="all", use_rslora=True, target_modules=modules)
    tokenizer = write(bloom, adapter, tmp_path / "model.gguf")
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts()[:4]]
    check_answers(
        merged(bloom, adapter), prompts, llama_cpp.ask(tmp_path / "model.gguf", prompts=prompts, tokens=NEW)["answers"]
    )
    with pytest.raises(UserError, match=r"cannot hold the \d+ biases"):
        gguf_file.write_adapter(tmp_path / "lora.gguf", bloom, adapter_file.read(adapter), {"name": "x"})


@pytest.mark.parametrize("kind", ["bf16", "q8_0"])
def test_other_number_formats_are_read(kind: gguf_file.Kind, llama: Path, tmp_path: Path) -> None:
    adapter = made_adapter(llama, tmp_path / "adapter", 2, r=4, target_modules=["q_proj", "k_proj", "down_proj"])
    tokenizer = write(llama, adapter, tmp_path / "model.gguf", kind)
    sizes = {"bf16": 2.0, "q8_0": 34 / 32}
    numbers = sum(part.numel() for part in AutoModelForCausalLM.from_pretrained(llama).parameters())
    assert (tmp_path / "model.gguf").stat().st_size == pytest.approx(sizes[kind] * numbers, rel=0.2)
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts()[:2]]
    assert all(llama_cpp.ask(tmp_path / "model.gguf", prompts=prompts, tokens=4)["answers"])


def test_sentencepiece_of_llama_2(llama: Path, tmp_path: Path) -> None:
    """Its scores are not in a tokenizer.json: they follow from the merges."""
    folder = tmp_path / "base"
    folder.mkdir()
    tokenizers.copy("llama2", folder)
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(llama)
    config.vocab_size = 32000
    LlamaForCausalLM(config).save_pretrained(folder)
    adapter = with_adapter(folder, tmp_path / "adapter")
    tokenizer = write(folder, adapter, tmp_path / "model.gguf")
    # llama.cpp puts a space before every text, transformers only before one that begins with none
    plain = [text for text in texts() if not text.startswith(" ")]
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in plain]
    assert len(plain) == 49 and llama_cpp.ask(tmp_path / "model.gguf", texts=plain)["ids"] == ids


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "its model is Unigram"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "does not work on bytes"),
        ({"normalizer": {"type": "Lowercase"}}, "its normalizer is Lowercase"),
        ({"pre_tokenizer": BY_ANOTHER_PATTERN}, "by another pattern"),
    ],
)
def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused(
    change: dict[str, Any], told: str, llama: Path, tmp_path: Path
) -> None:
    body = json.loads((llama / "tokenizer.json").read_text()) | change
    (tmp_path / "tokenizer.json").write_text(json.dumps(body))
    with pytest.raises(UserError, match=told):
        vocabulary.read(tmp_path, 2000)


def test_other_architectures_are_refused_with_a_way_out() -> None:
    with pytest.raises(UserError, match=r"'mixtral' here: merge it \(--to merged\)"):
        architectures.of({"model_type": "mixtral"})


def test_what_is_only_added_beyond_the_embedding_is_left_out(llama: Path, tmp_path: Path) -> None:
    """Gemma 3's smallest has a token for images that it does not embed; a token of the vocabulary is another matter."""
    body = json.loads((llama / "tokenizer.json").read_text())
    size = max(*body["model"]["vocab"].values(), *(token["id"] for token in body["added_tokens"])) + 1
    body["added_tokens"].append(body["added_tokens"][0] | {"id": size, "content": "<image>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(body))
    found = vocabulary.read(tmp_path, size)
    assert len(found.tokens) == size and "<image>" not in found.tokens
    with pytest.raises(UserError, match="tokens, and the model embeds"):
        vocabulary.read(tmp_path, size - 100)


def test_weights_beyond_fp16_are_refused_and_go_into_bf16(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = made_adapter(llama, tmp_path / "adapter", 3, r=4, target_modules=["q_proj"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[next(name for name in tensors if "lora_B" in name)] *= 1e9
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="beyond what fp16 holds: choose bf16"):
        write(llama, adapter, tmp_path / "model.gguf")
    write(llama, adapter, tmp_path / "other.gguf", "bf16")
