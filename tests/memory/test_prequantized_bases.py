"""Bases that are stored in 4 bits of bitsandbytes: what they are stored in counts, whatever a run asks for."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from qlora_gui.config import make
from qlora_gui.memory import model_shape as shapes
from qlora_gui.memory import step_sizes as steps
from qlora_gui.memory import terms
from qlora_gui.memory.budget import Budget
from qlora_gui.runs.store import RunStore
from tests.adapters import proof
from tests.conftest import TINY, train


@pytest.fixture(scope="module")
def in_4_bits(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small Llama, stored in nf4 with double quantization."""
    folder = tmp_path_factory.mktemp("stored") / "llama-bnb-4bit"
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="bfloat16"
    )
    AutoModelForCausalLM.from_pretrained(llama, quantization_config=quantization, device_map="cpu").save_pretrained(
        folder
    )
    AutoTokenizer.from_pretrained(llama).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_what_a_base_is_stored_in_counts_and_is_told(in_4_bits: Path, llama: Path, tmp_path: Path) -> None:
    """In the run's log and `base` event, in the columns' proofs, and no difference is told where there is none."""
    store = RunStore(tmp_path / "adapters")
    run = train(store, base_model=str(in_4_bits), name="stored", quant_type="fp4", double_quant=False)
    found = run.events()[0]
    said = [event["text"] for event in found if event["kind"] == "stage"]
    told = "The base is stored in nf4 with double quantization; quant_type fp4 and double_quant off are not applied"
    assert told in said
    event = next(one for one in found if one["kind"] == "base")
    assert (event["quant_type"], event["double_quant"]) == ("nf4", True)
    seen = proof(in_4_bits, run.path, kind=("fp4", False))
    assert seen["quantization"].startswith("nf4, double quantization") and "fp4" not in seen["quantization"]
    assert "trained on" not in seen.get("warning", "")

    path = run.path / "events.jsonl"  # as a run before this was told: the event does not say what was stored
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [{key: value for key, value in one.items() if key not in ("quant_type", "double_quant")} for one in lines]
    path.write_text("".join(json.dumps(one) + "\n" for one in kept))
    assert "trained on" not in proof(in_4_bits, run.path, kind=("fp4", False)).get("warning", "")

    plain = train(store, base_model=str(llama), name="plain", quant_type="fp4", double_quant=False)
    warning = proof(in_4_bits, plain.path, chosen=True)["warning"]
    assert "trained on fp4 without double quantization, answers on nf4 with double quantization" in warning


def test_the_plan_counts_what_a_base_is_stored_in(in_4_bits: Path, llama: Path) -> None:
    def size(base: Path, double: bool) -> int:
        shape = shapes.read(json.loads((base / "config.json").read_text()))
        config = make(TINY | {"base_model": str(base), "double_quant": double})
        budget = Budget("GPU", 2**34, 2**34, "cuda")
        return terms.weights_4bit(steps.make_step(config, shape, budget, 1, 64, "ours", "none"))

    assert size(in_4_bits, False) == size(in_4_bits, True) == size(llama, True) < size(llama, False)
