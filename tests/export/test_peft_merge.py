"""What PEFT merges on the whole base: the model that PEFT computes with the adapter, heads and embeddings apart where they are now."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_gui.errors import UserError
from qlora_gui.export import job, peft_merge, proof, work
from qlora_gui.inference import adapter_file
from tests.adapters import BEYOND as KINDS
from tests.adapters import beyond, logits, made_adapter
from tests.matrix.build import build

UNTIED = ("head", "embedding", "tokens apart", "dora and head")


def peft_on(base: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter)
    ).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_merged_it_computes_what_peft_computes(kind: str, llama: Path, tmp_path: Path) -> None:
    adapter = beyond(llama, tmp_path / "adapter", kind)
    untied = peft_merge.merge(llama, adapter_file.read(adapter), tmp_path / "out", torch.float32)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert untied == (kind in UNTIED) and config["tie_word_embeddings"] == (not untied)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    want = logits(peft_on(llama, adapter))
    assert (logits(merged) - want).abs().max() < 1e-4 * want.abs().max()
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == (not untied)


@pytest.mark.parametrize("kind", ["dora", "head"])
def test_in_16_bits_the_weights_are_pefts_rounded_once(kind: str, llama: Path, tmp_path: Path) -> None:
    adapter = beyond(llama, tmp_path / "adapter", kind)
    peft_merge.merge(llama, adapter_file.read(adapter), tmp_path / "out", torch.bfloat16)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    theirs = peft_on(llama, adapter).merge_and_unload()
    assert ours.dtype == torch.bfloat16 and ours.state_dict().keys() == theirs.state_dict().keys()
    for name, part in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], part.to(torch.bfloat16)), name


def test_what_peft_does_not_load_is_a_sentence(llama: Path, tmp_path: Path) -> None:
    adapter = beyond(llama, tmp_path / "adapter", "dora")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"].append("up_proj")
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="PEFT cannot merge the adapter 'adapter': Found missing adapter keys"):
        peft_merge.merge(llama, adapter_file.read(adapter), tmp_path / "out", torch.float32)


def test_too_large_for_fp16_is_a_sentence(llama: Path, tmp_path: Path) -> None:
    adapter = made_adapter(llama, tmp_path / "adapter", 1, target_modules=["q_proj"], use_dora=True)
    file = adapter / "adapter_model.safetensors"
    save_file({name: part * (1e9 if "magnitude" in name else 1) for name, part in load_file(file).items()}, file)
    with pytest.raises(UserError, match="beyond what fp16 holds: choose bf16"):
        peft_merge.merge(llama, adapter_file.read(adapter), tmp_path / "out", torch.float16)


def export(adapter: Path, **settings: Any) -> str:
    """Export in this process; returns what was said meanwhile."""
    said: list[str] = []
    work.export(adapter, job.Settings(rows=0, **settings), said.append, lambda done, of: None)
    return "\n".join(said)


def test_an_export_says_how_it_was_made(llama: Path, tmp_path: Path) -> None:
    adapter, out = beyond(llama, tmp_path / "adapter", "dora and head"), str(tmp_path / "out")
    for settings, told in (
        (
            {"kind": "merged", "onto": "trained"},
            "cannot be merged onto the trained weights, as it uses DoRA and it replaces",
        ),
        ({"kind": "gguf", "onto": "trained"}, "cannot be merged onto the trained weights"),
        ({"kind": "gguf-lora"}, "A LoRA file cannot hold 'adapter', as it uses DoRA"),
    ):
        with pytest.raises(UserError, match=told):
            export(adapter, out=out, **settings)
    assert "Merging by PEFT on the whole base, as it uses DoRA and it replaces" in export(adapter, out=out)
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "Merged by PEFT on the whole base, as it uses DoRA and it replaces whole modules (modules_to_save: lm_head)."
        in card
    )
    assert "Head and embedding shared weights, and have their own now." in card
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False and config["dtype"] == "bfloat16" and job.read(tmp_path / "out")


@pytest.mark.parametrize("how", [{"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=["dora", "head"])
def test_a_gguf_file_is_made_of_pefts_merge(how: dict[str, Any], tmp_path: Path) -> None:
    """A head of its own is in the file, and is read from it."""
    base = build("llama3", tmp_path).path
    adapter = made_adapter(base, tmp_path / "adapter", 1, target_modules=["q_proj", "down_proj"], **how)
    export(adapter, kind="gguf", type="bf16", out=str(tmp_path / "out"))
    file = tmp_path / "out" / "adapter-bf16.gguf"
    assert not list((tmp_path / "out").glob(".*"))
    theirs = peft_on(base, adapter).merge_and_unload()
    for part in theirs.parameters():
        part.data = part.data.bfloat16().float()
    was_tied = AutoModelForCausalLM.from_pretrained(base).config.tie_word_embeddings
    with proof.loaded(tmp_path / "out", AutoTokenizer.from_pretrained(base), lambda text: None, (file, base)) as ours:
        one, two = logits(ours.model), logits(theirs)
        tied = ours.model.lm_head.weight is ours.model.model.embed_tokens.weight
    assert was_tied and tied == ("use_dora" in how)
    assert (one - two).abs().max() < 1e-4 * two.abs().max()
