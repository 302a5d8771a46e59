"""Adapters made elsewhere, by plain PEFT: with tokens of their own, or LoRA on a vision part."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from qlora_gui.errors import UserError
from qlora_gui.inference.columns import Columns
from qlora_gui.models import base as bases
from qlora_gui.models import text_part
from tests.adapters import proof
from tests.small_models import CHATML, make_tokenizer

MARKS = CHATML.replace("<|im_start|>", "<|turn|>").replace("<|im_end|>", "<|over|>")
TOGETHER = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '</s>' }}{% endfor %}"
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "head_dim": 16}


def adapted(base: Path, folder: Path, named: str = "", **config: Any) -> Path:
    """Save an adapter with random weights by plain PEFT; `named` is what it calls its base, if not its folder."""
    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **config),
    )
    model.peft_config["default"].init_lora_weights = True
    model.peft_config["default"].base_model_name_or_path = named or str(base)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def with_tokens(base: Path, folder: Path, added: list[str], template: str | None = None, eos: str = "") -> None:
    """Save the tokenizer of a base with more tokens into a folder."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(added, special_tokens=True)
    tokenizer.chat_template = template or tokenizer.chat_template
    tokenizer.eos_token = eos or tokenizer.eos_token
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def wide(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Llama with 32 embeddings more than its tokenizer has tokens."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.resize_token_embeddings(model.get_input_embeddings().num_embeddings + 32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(llama).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("named", ["", "/elsewhere/wide"], ids=["same-folder", "same-name"])
@pytest.mark.parametrize(
    ("added", "template", "eos", "told"),
    [
        (
            ["<|turn|>", "<|over|>", "<|never|>"],
            MARKS,
            "",
            r"the tokens <\|turn\|>, <\|over\|>, which the tokenizer of",
        ),
        (["<|user|>"], TOGETHER, "", r"the token <\|user\|>, which"),
        (["<|done|>"], None, "<|done|>", r"the token <\|done\|>, which"),
    ],
    ids=["written", "put-together", "eos"],
)
def test_tokens_that_only_an_adapters_chat_has_are_refused(
    wide: Path, tmp_path: Path, added: list[str], template: str | None, eos: str, told: str, named: str
) -> None:
    """The base's tokenizer would read them as plain text, and a copy with the adapter's tokenizer reads them right."""
    adapter = adapted(wide, tmp_path / "adapter", named, target_modules=["q_proj"])
    with_tokens(wide, adapter, added, template, eos)
    with pytest.raises(UserError, match=told + ".*a copy of that base whose folder has the adapter's tokenizer files"):
        proof(wide, adapter)
    copy = tmp_path / "copy"
    AutoModelForCausalLM.from_pretrained(wide).save_pretrained(copy)
    AutoTokenizer.from_pretrained(adapter).save_pretrained(copy)
    assert "so does the vocabulary" in proof(copy, adapter, chosen=True)["trained_on"]


def test_tokens_without_a_tokenizer_json_are_found_too(wide: Path, tmp_path: Path) -> None:
    adapter = adapted(wide, tmp_path / "adapter", target_modules=["q_proj"])
    (adapter / "chat_template.jinja").write_text(MARKS)
    (adapter / "added_tokens.json").write_text(json.dumps({"<|turn|>": 1010}))
    with pytest.raises(UserError, match=r"the token <\|turn\|>, which"):
        proof(wide, adapter)


def test_tokens_beyond_the_embeddings_ask_for_another_base(llama: Path, tmp_path: Path) -> None:
    adapter = adapted(llama, tmp_path / "adapter", target_modules=["q_proj"])
    with_tokens(llama, adapter, ["<|turn|>", "<|over|>"], MARKS)
    with pytest.raises(UserError, match=r"no embeddings for.*the base with the larger vocabulary"):
        proof(llama, adapter)


@pytest.mark.parametrize("named", ["", "/elsewhere/wide"], ids=["same-folder", "same-name"])
def test_other_tokens_that_the_base_lacks_are_told(wide: Path, tmp_path: Path, named: str) -> None:
    """Also where the adapter names this very base; where nothing is lacking nothing is told."""
    adapter = adapted(wide, tmp_path / "adapter", named or str(wide), target_modules=["q_proj"])
    AutoTokenizer.from_pretrained(wide).save_pretrained(adapter)
    assert "lacks" not in proof(wide, adapter).get("trained_on", "")
    with_tokens(wide, adapter, ["<|mine|>"])
    assert proof(wide, adapter)["trained_on"].endswith("but for 1 token that the base's tokenizer lacks")


@pytest.fixture(scope="module")
def sees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Gemma 3 for text and images."""
    folder = tmp_path_factory.mktemp("sees") / "sees"
    tokenizer = make_tokenizer(folder, CHATML)
    config = transformers.Gemma3Config(
        text_config=TEXT | {"vocab_size": len(tokenizer), "eos_token_id": 3, "pad_token_id": 1, "bos_token_id": 3},
        vision_config=VISION | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=2,
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config)
    with torch.no_grad():
        for part in model.parameters():
            if part.ndim > 1:
                part.normal_(0, 1.6 / part.shape[-1] ** 0.5)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"], ids=["names", "all-linear"])
def test_lora_on_the_vision_part_is_left_out_and_told(sees: Path, tmp_path: Path, targets: Any) -> None:
    """What text passes equals plain PEFT on the whole base."""
    adapter = adapted(sees, tmp_path / "adapter", target_modules=targets, bias="all")
    columns = Columns()
    told = columns.load((str(sees), "", "nf4", True), [adapter], lambda text: None)[1]
    assert columns.multi_lora and columns.base
    assert "of the vision part is left out" in told["warning"]
    assert told["self_test"].startswith("equals PEFT's logits")
    (shown,) = columns.adapters
    assert shown.loras and not any("vision" in name or "projector" in name for name in shown.loras)
    assert any("vision_tower" in name for name in shown.unasked)
    assert f"in {len(shown.unasked)} modules" in told["warning"]
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    quantization.bnb_4bit_compute_dtype = torch.float32
    theirs = AutoModelForCausalLM.from_pretrained(sees, quantization_config=quantization, dtype=torch.float32).eval()
    for part in theirs.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = theirs(input_ids=ids).logits
        expected = PeftModel.from_pretrained(theirs, str(adapter)).eval()(input_ids=ids).logits
        with columns.multi_lora.activate([0]):
            ours = columns.base.model(input_ids=ids).logits
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (before - expected).abs().max() > 1e-2 * expected.abs().max()


def test_an_adapter_of_nothing_but_vision_is_refused_as_that(sees: Path, tmp_path: Path) -> None:
    adapter = adapted(sees, tmp_path / "adapter", target_modules=["fc1", "fc2"])
    with pytest.raises(UserError, match="trained on the vision part of its base alone"):
        proof(sees, adapter)


def test_only_a_base_that_sees_has_something_left_off(sees: Path, llama: Path) -> None:
    for base, expected in ((sees, ("model.vision_tower.", "model.multi_modal_projector.")), (llama, ())):
        model = bases.load_model(str(base), "nf4", True, torch.device("cpu"), torch.float32)
        assert sorted(text_part.left_off(model)) == sorted(expected)
