"""The files of families: a new one is used by the plan, the simulated step and the training set-up, with no other change."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_gui import families
from qlora_gui.config import make
from qlora_gui.diagnostics import settings
from qlora_gui.diagnostics.evidence import Seen
from qlora_gui.errors import UserError
from qlora_gui.families.family import Family
from qlora_gui.families.llama import llama_layer
from qlora_gui.memory import budget, model_shape, unsupported
from qlora_gui.memory.estimate import plan
from qlora_gui.models import chunked_loss, lora, norms, supported
from qlora_gui.models import families as torch_parts
from qlora_gui.simulation import __main__ as simulation

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96, "intermediate_size": 80}


def helium() -> Any:
    """A decoder of transformers that no file of this program is about."""
    return AutoConfig.for_model("helium", **SIZES, num_key_value_heads=2, head_dim=16, pad_token_id=0)


def test_a_new_family_is_planned_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    config = helium()
    description = json.loads(config.to_json_string(use_diff=False))
    assert "helium" not in families.FAMILIES and model_shape.read(description).rough
    monkeypatch.setitem(families.FAMILIES, "helium", Family("helium", llama_layer))
    shape = model_shape.read(description)
    assert shape.exact and not shape.rough
    with torch.device("meta"):
        assert shape.parameters == AutoModelForCausalLM.from_config(config).num_parameters()


def test_what_a_family_keeps_is_in_its_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads(helium().to_json_string(use_diff=False))
    run = make({"base_model": "x", "attention": "eager", "gradient_checkpointing": "none"})
    totals = []
    for family in (Family("helium", llama_layer), Family("helium", llama_layer, eager_copies=6, own_norms=True)):
        monkeypatch.setitem(families.FAMILIES, "helium", family)
        totals.append(plan(run, model_shape.read(config), budget.card(24)).total)
    assert totals[0] < totals[1]


def test_what_a_family_cannot_do_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.FAMILIES, "helium", Family("helium", unsupported="it is lighter than air"))
    with pytest.raises(UserError, match="of the type 'helium', and it is lighter than air"):
        unsupported.check(json.loads(helium().to_json_string(use_diff=False)), "balloon")


def test_a_familys_own_code_is_used_where_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []
    code = SimpleNamespace(
        prepare=lambda model: calls.append(("prepare",)),
        install_attention=lambda model, choice: calls.append(("attention", choice)),
    )
    monkeypatch.setitem(sys.modules, "qlora_gui.models.families.helium", code)
    monkeypatch.setitem(families.FAMILIES, "helium", Family("helium", code="helium", own_attention=True))
    model = AutoModelForCausalLM.from_config(helium())
    lora.prepare(model, make({"attention": "sdpa"}))
    assert calls == [("prepare",), ("attention", "sdpa")]
    without = type("NoSdpa", (), {"_supports_sdpa": False, "config_class": type(model.config)})
    supported.check_attention(without, "sdpa")
    monkeypatch.setitem(families.FAMILIES, "helium", Family("helium"))
    with pytest.raises(UserError, match="no attention through sdpa"):
        supported.check_attention(without, "sdpa")


def test_a_family_without_a_template_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Seen(make({"base_model": "kyutai/helium-1"}))
    assert settings.base_without_template(seen) is None
    monkeypatch.setitem(families.FAMILIES, "helium", Family("helium", template_missing="kyutai/helium"))
    assert settings.base_without_template(seen) is not None


def test_names_that_begin_alike_share_a_family() -> None:
    gemma = families.find("gemma9_text")
    assert gemma.own_norms and replace(gemma, model_type="") != families.find("helium")
    assert families.find("bloom").code == "bloom"


@pytest.mark.parametrize("kind", sorted(name for name, family in families.FAMILIES.items() if family.layer))
def test_facts_are_those_of_the_real_class(kind: str) -> None:
    sizes = {"num_key_value_heads": 2, "pad_token_id": 0} | ({"logits_scaling": 4.0} if kind == "granite" else {})
    config = AutoConfig.for_model(kind, **SIZES, **({} if kind == "bloom" else sizes))
    model, family = AutoModelForCausalLM.from_config(config), families.find(kind)
    assert family.own_logits == bool(chunked_loss.not_plain(model))
    assert (family.own_attention or family.capped) == (not type(model)._supports_sdpa)
    assert family.own_attention == bool(family.code)
    assert family.capped == bool(getattr(config, "attn_logit_softcapping", None))
    assert family.bias_per_head == (not hasattr(model.base_model, "rotary_emb"))
    normed = [part for name, part in model.named_modules() if "norm" in name and type(part) is not torch.nn.LayerNorm]
    assert family.own_norms == any(not norms._is_rms_norm(part) for part in normed)


@pytest.mark.parametrize("kind", [name for name in families.FAMILIES if "*" not in name])
def test_a_family_is_of_a_type_that_transformers_has(kind: str) -> None:
    family, config = families.find(kind), AutoConfig.for_model(kind)
    assert not family.unsupported or (family.layer is None and not family.code)
    assert not family.positions or getattr(config, family.positions, None) or kind == "gpt_neo"
    if family.code:
        assert callable(torch_parts.code_of(SimpleNamespace(config=config)).install_attention)


FACTS = """
from qlora_gui.families.family import Family
from qlora_gui.families.llama import llama_layer

FAMILIES = (Family("helium", llama_layer, own_norms=True, code="helium"),)
"""
TORCH_PARTS = """
def prepare(model):
    model.was_prepared = True

def install_attention(model, choice):
    model.set_attn_implementation("eager")
"""


def test_one_file_more_changes_plan_simulation_and_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, run = helium(), make({"rank": 4, "gradient_checkpointing": "none", "base_model": "x"})
    base = json.loads(config.to_json_string(use_diff=False))

    def peak() -> int:
        found: int = simulation.simulate(base, run, 2, 96, checkpointing="none")["peak"]
        return found

    before, rough = peak(), plan(run, model_shape.read(base), budget.card(24))
    for package, text in ((families, FACTS), (torch_parts, TORCH_PARTS)):
        folder = tmp_path / package.__name__
        folder.mkdir()
        (folder / "helium.py").write_text(text)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.delitem(sys.modules, f"{package.__name__}.helium", raising=False)
    monkeypatch.setattr(families, "FAMILIES", {family.model_type: family for family in families._all()})
    try:
        exact = plan(run, model_shape.read(base), budget.card(24))
        assert model_shape.read(base).exact and exact.total > rough.total
        assert peak() > before  # its own attention keeps the scores
        model = AutoModelForCausalLM.from_config(config)
        lora.prepare(model, run)
        assert model.was_prepared and model.config._attn_implementation == "eager"
    finally:
        for package in (families, torch_parts):
            sys.modules.pop(f"{package.__name__}.helium", None)
            vars(package).pop("helium", None)
