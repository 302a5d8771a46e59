"""Merged tensor by tensor: the same weights as PEFT's own merge of the whole model, for families, biases, patterns and tied heads."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qlora_gui.errors import UserError
from qlora_gui.export import merge
from qlora_gui.inference import adapter_file
from qlora_gui.inference.beyond_lora import Beyond
from tests.adapters import fresh, made_adapter
from tests.small_families import FAMILIES, make_adapter, make_base

BF16 = torch.bfloat16


def quiet(done: int, of: int) -> None:
    """Nobody watches."""


def ours(base: Path, adapter: Path, out: Path, packed: Any = None, **how: Any) -> Any:
    """The base's config beside our merged weights, loaded by transformers."""
    plan = merge.plan(base, adapter_file.read(adapter), BF16, packed)
    out.mkdir()
    merge.write(plan, out, quiet, **how)
    config = json.loads((base / "config.json").read_text()) | {"dtype": "bfloat16"}
    if plan.untied:
        config["tie_word_embeddings"] = False
    (out / "config.json").write_text(json.dumps(config))
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)


def theirs(base: Path, adapter: Path) -> Any:
    """PEFT's merge on the whole base, rounded once."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter))
    return model.merge_and_unload().to(BF16).float()


def same(one: Any, other: Any) -> None:
    """Equal parameters, but for the last bit where sums were added in another order; and they differ from nothing."""
    a, b = dict(one.named_parameters()), dict(other.named_parameters())
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=2**-7, atol=1e-6), name
    ids = torch.arange(1, 40)[None]
    left, right = one(input_ids=ids).logits, other(input_ids=ids).logits
    assert (left - right).abs().max() <= 1e-2 * right.abs().max()


@pytest.mark.parametrize(
    "how",
    [
        {"bias": "all"},
        {"bias": "lora_only", "use_rslora": True},
        {"rank_pattern": {"h.1.mlp.dense_h_to_4h": 2}, "alpha_pattern": {"^transformer.h.2": 99}},
    ],
    ids=["all biases", "rslora", "patterns"],
)
def test_bloom_is_merged_as_peft_merges_it(how: dict[str, Any], bloom: Path, tmp_path: Path) -> None:
    modules = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    adapter = made_adapter(bloom, tmp_path / "adapter", 1, r=4, target_modules=modules, **how)
    model = ours(bloom, adapter, tmp_path / "out")
    same(model, theirs(bloom, adapter))
    plain = AutoModelForCausalLM.from_pretrained(bloom, dtype=torch.float32).state_dict()
    changed = [name for name, part in model.state_dict().items() if not torch.equal(part, plain[name].to(BF16).float())]
    assert len(changed) >= 12 and (
        any(name.endswith("layernorm.bias") for name in changed) == (how.get("bias") == "all")
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_merged_as_peft_merges_them(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    make_base(tmp_path / "base", family)
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter", bias=family.bias)
    same(ours(tmp_path / "base", adapter, tmp_path / "out"), theirs(tmp_path / "base", adapter))


def test_a_tied_head_with_lora_is_untied(llama: Path, tmp_path: Path) -> None:
    """The embedding stays what it was; the head is no longer it."""
    adapter = made_adapter(llama, tmp_path / "adapter", 2, r=4, target_modules=["q_proj", "lm_head"])
    tensors = load_file(
        adapter / "adapter_model.safetensors"
    )  # PEFT saves the head itself, too, which this program does not
    save_file(
        {name: part for name, part in tensors.items() if "base_layer" not in name},
        adapter / "adapter_model.safetensors",
    )
    model = ours(llama, adapter, tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    assert torch.equal(model.get_input_embeddings().weight, base.get_input_embeddings().weight.to(BF16).float())
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    head = PeftModel.from_pretrained(base, str(adapter)).base_model.model.lm_head
    exact = head.get_base_layer().weight + head.get_delta_weight("default")
    assert torch.allclose(model.lm_head.weight, exact.to(BF16).float(), rtol=2**-7, atol=1e-6)


def test_onto_the_trained_weights_it_is_the_4_bit_model(bloom: Path, tmp_path: Path) -> None:
    modules = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
    adapter = made_adapter(bloom, tmp_path / "adapter", 3, r=4, bias="all", target_modules=modules)
    clean = fresh(bloom, None)
    packed = {name: part for name, part in clean.named_modules() if type(part).__name__ == "Linear4bit"}
    model = ours(bloom, adapter, tmp_path / "out", packed)
    trained = fresh(bloom, adapter)
    ids = torch.arange(1, 40)[None]
    want = trained(input_ids=ids).logits
    assert (model(input_ids=ids).logits - want).abs().max() < 5e-2 * want.abs().max()
    layers = {
        name.removeprefix("base_model.model."): part
        for name, part in trained.named_modules()
        if isinstance(part, LoraLayer)
    }
    assert len(layers) == 12
    for name, layer in layers.items():
        weight = layer.get_base_layer().weight
        exact = functional.dequantize_4bit(weight.data, weight.quant_state) + layer.get_delta_weight("default")
        got = model.get_submodule(name).weight
        assert torch.allclose(got, exact.to(BF16).float(), rtol=2**-7, atol=1e-6), name


def test_shards_have_an_index_that_transformers_reads(llama: Path, tmp_path: Path) -> None:
    adapter = made_adapter(llama, tmp_path / "adapter", 4, r=4, target_modules=["q_proj", "down_proj"])
    whole = ours(llama, adapter, tmp_path / "whole")
    sharded = ours(llama, adapter, tmp_path / "sharded", shard_bytes=100_000)
    files = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(files) > 3 and not (tmp_path / "sharded" / "model.safetensors").exists()
    for one, other in zip(whole.parameters(), sharded.parameters(), strict=True):
        assert torch.equal(one, other)
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    with safe_open(str(files[0]), framework="pt") as file:
        names = file.keys()
        assert {index["weight_map"][name] for name in names} == {files[0].name}


def test_what_fp16_cannot_hold_is_refused(llama: Path, tmp_path: Path) -> None:
    adapter = made_adapter(llama, tmp_path / "adapter", 5, r=4, target_modules=["q_proj"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[next(name for name in tensors if "lora_B" in name)] *= 1e9
    save_file(tensors, adapter / "adapter_model.safetensors")
    plan = merge.plan(llama, adapter_file.read(adapter), torch.float16)
    with pytest.raises(UserError, match="beyond what fp16 holds: choose bf16"):
        merge.write(plan, tmp_path, quiet)


def test_an_adapter_of_another_base_is_refused(llama: Path, bloom: Path, tmp_path: Path) -> None:
    adapter = made_adapter(llama, tmp_path / "adapter", 6, r=4, target_modules=["q_proj"])
    with pytest.raises(
        UserError, match=r"trained on another base: this one has no 'model\.layers\.0\.self_attn\.q_proj"
    ):
        merge.plan(bloom, adapter_file.read(adapter), BF16)


def test_lora_on_parameters_is_never_left_out_in_silence(llama: Path, tmp_path: Path) -> None:
    """LoRA on experts is not among the linears that are merged one by one: PEFT has to do it."""
    adapter = adapter_file.read(made_adapter(llama, tmp_path / "adapter", 7, r=4, target_modules=["q_proj"]))
    with pytest.raises(merge.NotPlain, match=r"LoRA on parameters \(target_parameters: experts\.gate_up_proj"):
        merge.plan(llama, replace(adapter, beyond=Beyond(parameters=("experts.gate_up_proj",))), BF16)


def test_a_tied_head_that_the_files_list_is_written_once(llama: Path, tmp_path: Path) -> None:
    """As some published bases have it: the embedding, and the head that shares its weights, both in the file."""
    base = tmp_path / "base"
    shutil.copytree(llama, base)
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, base / "model.safetensors")
    adapter = made_adapter(base, tmp_path / "adapter", 8, r=4, target_modules=["q_proj", "lm_head"])
    stored = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: part for name, part in stored.items() if "base_layer" not in name}, adapter / "adapter_model.safetensors"
    )
    names = [tensor.name for tensor in merge.plan(base, adapter_file.read(adapter), BF16).tensors]
    assert sorted(names) == sorted(set(names)) and names.count("lm_head.weight") == 1
    model = ours(base, adapter, tmp_path / "out")
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)


def test_what_is_kept_in_fp32_stays(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", {"norm"})
    adapter = made_adapter(llama, tmp_path / "adapter", 9, r=4, target_modules=["q_proj"])
    dtypes = {tensor.name: tensor.dtype for tensor in merge.plan(llama, adapter_file.read(adapter), BF16).tensors}
    assert dtypes["model.norm.weight"] == torch.float32 and dtypes["model.embed_tokens.weight"] == BF16
