"""Will it fit: shapes against transformers, terms against arithmetic by hand, advice against what it says."""

import dataclasses
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_gui import families, hub
from qlora_gui.config import RunConfig, make, resolve
from qlora_gui.errors import UserError
from qlora_gui.memory import advice, budget, calibration, known_models, model_shape, step_sizes, terms
from qlora_gui.memory.estimate import LEVELS, plan, verdict_of
from qlora_gui.simulation import client

GIB = 2**30
HUGE = budget.card(10_000)
KNOWN = [base for bases in known_models.series().values() for base in bases]
TINY_BLOOM = {"model_type": "bloom", "hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": 128}
# fmt: off
SIZES = {
    "bigscience/bloom-560m": 559_214_592, "bigscience/bloom-1b1": 1_065_314_304, "bigscience/bloom-1b7": 1_722_408_960,
    "bigscience/bloom-3b": 3_002_557_440, "bigscience/bloom-7b1": 7_069_016_064,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008, "HuggingFaceTB/SmolLM2-360M": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "meta-llama/Llama-3.2-1B": 1_235_814_400, "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "meta-llama/Llama-3.1-8B": 8_030_261_248, "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "Qwen/Qwen2.5-0.5B": 494_032_768, "Qwen/Qwen2.5-1.5B": 1_543_714_304, "Qwen/Qwen2.5-3B": 3_085_938_688,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920, "Qwen/Qwen3-1.7B": 1_720_574_976, "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096, "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "google/gemma-2-2b": 2_614_341_888, "google/gemma-2-9b": 9_241_705_984,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
}
# fmt: on


def test_every_known_base_has_its_well_known_size() -> None:
    assert {base: known_models.of_known(base).parameters for base in KNOWN} == SIZES


@pytest.mark.parametrize("kind", sorted(name for name, family in families.FAMILIES.items() if family.layer))
@pytest.mark.parametrize("extra", [{}, {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}])
def test_shapes_are_those_of_transformers(kind: str, extra: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96}
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 80, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **sizes, **({} if kind == "bloom" else extra))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = model_shape.read(json.loads(config.to_json_string(use_diff=False)))
    assert found.parameters == model.num_parameters()
    linears = {
        (name.split(".", 3)[-1], part.in_features, part.out_features, part.bias is not None)
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and name != "lm_head"
    }
    path = "transformer.h." if kind == "bloom" else "model.layers."
    assert {(name.removeprefix(path), *rest) for name, *rest in linears} == {
        (part.name, part.inputs, part.outputs, part.bias) for part in found.linears
    }
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name or ".ln_" in name)
    assert found.norm_parameters == norms
    assert model_shape.read(config.to_diff_dict() | {"model_type": kind}).parameters == found.parameters


def test_other_decoders_are_near() -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}
    found = model_shape.read(gpt2)
    assert not found.exact and found.parameters == pytest.approx(124_439_808, rel=0.001)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "llama", "hidden_size": 64}, "no usable num_attention_heads"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "no usable hidden_size"),
        ({}, "no usable hidden_size"),
    ],
)
def test_a_config_that_does_not_suffice_is_a_sentence(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        model_shape.read(config)


TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 640,
}
EXPERTS = {"num_experts": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
UNKNOWN = {  # types that no closed form knows: what they have more than plain decoders
    "qwen3_moe": EXPERTS,
    "mixtral": EXPERTS,
    "opt": {"ffn_dim": 256, "word_embed_proj_dim": 64},
    "lfm2": {},
    "gemma4_text": {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 640, "head_dim": 16},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 8},
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_is_not_known_is_counted(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In 4 bits and in all as transformers and bitsandbytes have them; asked once, then known."""
    import bitsandbytes as bnb
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.utils.quantization_config import BitsAndBytesConfig

    from qlora_gui.simulation import count_parameters

    config = AutoConfig.for_model(kind, **TINY | UNKNOWN[kind])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    whole = model.num_parameters()
    kept = get_keys_to_not_convert(model)
    model = replace_with_bnb_linear(model, kept, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    parts = [part for part in model.modules() if isinstance(part, bnb.nn.Linear4bit)]
    true = sum(part.in_features * part.out_features for part in parts), whole
    asked: list[str] = []

    def ask(module: str, question: dict[str, Any]) -> dict[str, int]:
        asked.append(module)
        return count_parameters.count(question["base"])

    monkeypatch.setattr(client, "asked", ask)
    monkeypatch.setenv("QLORA_GUI_CACHE", str(tmp_path / "cache"))
    told = {name: value for name, value in json.loads(config.to_json_string()).items() if name != "time_step_limit"}
    (tmp_path / "config.json").write_text(json.dumps(told))
    named = RunConfig(base_model=str(tmp_path))
    rough = known_models.find(named)
    assert rough.rough and not asked and rough.counted is None
    assert known_models.find(named, count=True).counted == true and asked == [client.PARAMETERS]
    assert known_models.find(named).counted == true and asked == [client.PARAMETERS]
    assert plan(named, known_models.find(named), budget.card(16)).fits


def test_counted_parameters_decide_the_terms_of_the_weights() -> None:
    """Half a byte and the statistics for those in 4 bits, two bytes for experts and what else there is."""
    config = {"model_type": "qwen3_moe", "hidden_act": "silu", **TINY, **EXPERTS}
    rough = model_shape.read(config)
    assert rough.experts == 3 * 8 * 3 * 64 * 32
    found = dataclasses.replace(rough, counted=(10 * rough.listed_weights, rough.parameters + 10_000_000))
    few, more = (a_step(RunConfig(), of) for of in (rough, found))
    assert terms.weights_4bit(more) == 10 * terms.weights_4bit(few)
    unquantized = 10_000_000 - 9 * rough.listed_weights
    assert terms.weights(more) - terms.weights(few) == 2 * unquantized
    assert found.parameters == rough.parameters + 10_000_000


def test_a_size_per_layer_counts_by_its_largest() -> None:
    assert model_shape.read({"model_type": "x", **TINY, "intermediate_size": [96, 128, 96]}).intermediate == 128
    with pytest.raises(UserError, match="no usable intermediate_size"):
        model_shape.read({"model_type": "llama", **TINY, "intermediate_size": ["wide"]})


def a_step(
    config: RunConfig, of: model_shape.Shape, way: step_sizes.Way = "ours", checkpointing: str = "all"
) -> step_sizes.Step:
    return step_sizes.make_step(config, of, HUGE, config.batch_size, config.max_length, way, checkpointing)


def test_terms_of_a_tiny_bloom_by_hand() -> None:
    """Hidden 64, so a layer has 12 * 64^2 = 49,152 quantized weights."""
    found = model_shape.read(TINY_BLOOM)
    tiny = a_step(make({"rank": 8, "batch_size": 2, "max_length": 32, "dropout": 0}), found)
    assert found.linear_weights == 2 * 49_152
    # half a byte each; 768 absmaxes of a byte; of those, fp32 a block of 256: 192 64 256 256 absmaxes -> 4 blocks
    assert terms.weights_4bit(tiny) == 2 * (24_576 + 768 + 4 * (1 + 1 + 1 + 1))
    single = a_step(make({"rank": 8, "double_quant": False}), found)
    assert terms.weights_4bit(single) == 2 * (24_576 + 4 * 768)
    biases, norms = 2 * (3 * 64 + 64 + 4 * 64 + 64), 2 * 2 * 2 * 64 + 2 * 2 * 64
    assert terms.weights(tiny) == 2 * (128 * 64 + biases) + 4 * norms
    assert terms.weights(a_step(tiny.config, found, "stock")) == 4 * (128 * 64 + biases + norms)
    lora = 2 * 8 * (4 * 64 + 2 * 64 + 5 * 64 + 5 * 64)  # rank x (in + out) of four linears, 16 * hidden in all
    assert terms.trained(tiny) == terms.Trained(lora, 0, 8 * lora, 0)
    everything = terms.trained(a_step(make({"rank": 8, "bias": "all"}), found))
    assert everything.biases == biases + norms // 2
    only = terms.trained(a_step(make({"rank": 8, "bias": "lora_only", "target_modules": "dense"}), found))
    assert only.biases == 2 * 64 and only.lora == 2 * 8 * 128


def test_8_bit_optimizer_states() -> None:
    big = a_step(make({"rank": 64, "optimizer": "adamw_8bit"}), known_models.of_known("bigscience/bloom-560m"))
    found = terms.trained(big)
    assert found.lora_states == found.lora * 2 + found.lora // 256 * 8


def test_boundaries_are_one_input_a_recomputed_layer() -> None:
    of = known_models.of_known("bigscience/bloom-7b1")
    config = make({"batch_size": 4, "max_length": 1024, "rank": 16})
    for level, layers in {"all": 30, "every-2": 15, "every-3": 10, "every-4": 7, "none": 0}.items():
        found = plan(config, of, HUGE, checkpointing=level)
        assert {term.key: term.bytes for term in found.terms}["boundaries"] == layers * 4096 * 4096 * 2


def test_terms_sum_up_and_grow_with_what_they_depend_on() -> None:
    of = known_models.of_known("meta-llama/Llama-3.2-1B")
    small = plan(make({"gradient_checkpointing": "all"}), of, HUGE)
    assert small.total == sum(term.bytes for term in small.terms)
    assert small.uncorrected == small.total - terms.CUDA_CONTEXT
    totals = [plan(make({}), of, HUGE, checkpointing=level).total for level in LEVELS]
    assert totals == sorted(totals, reverse=True) and len(set(totals)) == len(LEVELS)
    assert plan(make({}), of, HUGE, rows=8, checkpointing="all").total > small.total
    assert plan(make({}), of, HUGE, length=1024, checkpointing="all").total > small.total


@pytest.mark.parametrize(("rows", "length"), [(1, 512), (2, 1024)])
def test_the_stock_way_is_as_the_simulated_step_was(rows: int, length: int) -> None:
    """MiB that the real step took on fake tensors: BLOOM-560M, rank 16, checkpointing, fp32 AdamW."""
    simulated = {512: 3215, 2048: 7788}[rows * length]
    config = make({"rank": 16, "dropout": 0, "gradient_accumulation": 1, "gradient_checkpointing": "all"})
    found = plan(config, known_models.of_known("bigscience/bloom-560m"), HUGE, rows=rows, length=length, way="stock")
    assert found.uncorrected / 2**20 == pytest.approx(simulated, rel=0.01)


@pytest.mark.parametrize(
    ("base", "knobs"),
    [
        ("bigscience/bloom-560m", {"bias": "all", "gradient_accumulation": 1}),
        ("bigscience/bloom-560m", {"gradient_checkpointing": "none", "attention": "eager"}),
        ("bigscience/bloom-7b1", {"gradient_checkpointing": "every-2", "rank": 64, "dropout": 0}),
        ("meta-llama/Llama-3.2-1B", {"gradient_checkpointing": "none", "target_modules": "q_proj,v_proj"}),
        ("meta-llama/Llama-3.1-8B", {"max_length": 256, "batch_size": 1, "optimizer": "adamw_8bit"}),
        ("Qwen/Qwen3-0.6B", {"gradient_checkpointing": "every-3", "packing": True}),
    ],
)
def test_the_plan_is_near_the_simulated_step(base: str, knobs: dict[str, Any]) -> None:
    """The real step, run on fake tensors: benchmarks/fit_accuracy.py holds many more against it."""
    from qlora_gui.simulation.__main__ import simulate

    config = make({"base_model": base, "gradient_checkpointing": "all", "batch_size": 2, "max_length": 1024} | knobs)
    found = plan(config, known_models.find(config), HUGE)
    base_config = dict(known_models.config_json(config))
    told = simulate(base_config, config, found.rows, found.length, "ours", config.gradient_checkpointing)
    assert found.uncorrected == pytest.approx(told["peak"], rel=0.05)


def test_experiment_2_fits_16_gb_only_our_way() -> None:
    config = resolve({"batch_size": 4, "max_length": 1024}, preset="experiment-2")
    of = known_models.find(config)
    assert plan(config, of, budget.card(16), way="stock").verdict == "does not fit"
    assert plan(config, of, budget.card(16)).verdict == "fits"


def test_a_cpu_with_memory_to_spare_keeps_linears_unpacked() -> None:
    of, config = known_models.of_known(known_models.DEMO), make({})
    weights = of.linear_weights
    for free, kept in ((32 * weights, 4 * weights), (32 * weights - 8, 0)):
        found = plan(config, of, budget.Budget("CPU", free, free, "cpu", number=4))
        sizes = {term.key: term.bytes for term in found.terms}
        assert sizes["dequantized"] == kept or (not kept and sizes["dequantized"] < weights)


def test_verdict_borders() -> None:
    assert [verdict_of(total, 1000) for total in (900, 901, 1000, 1001)] == ["fits", "tight", "tight", "does not fit"]
    assert verdict_of(0, 0) == "fits"


def test_auto_takes_the_cheapest_checkpointing_that_fits() -> None:
    of = known_models.of_known("bigscience/bloom-7b1")
    config = make({"batch_size": 4, "max_length": 1024})
    need = {level: plan(config, of, HUGE, checkpointing=level).total for level in LEVELS}
    for level in LEVELS:
        assert plan(config, of, budget.card(need[level] / 0.9 / GIB + 0.001)).checkpointing == level
    assert plan(config, of, budget.card(1)).checkpointing == "all"
    cpu = budget.Budget("CPU", GIB, GIB, "cpu")
    assert plan(config, of, cpu).checkpointing == "none"
    assert plan(make({"gradient_checkpointing": "every-3"}), of, budget.card(1)).checkpointing == "every-3"


def test_a_linear_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(UserError, match="this base has the linears"):
        plan(make({"target_modules": "nope"}), known_models.of_known("bigscience/bloom-560m"), HUGE)


RUNS = st.fixed_dictionaries(
    {
        "base_model": st.sampled_from(KNOWN),
        "batch_size": st.integers(1, 24),
        "gradient_accumulation": st.integers(1, 8),
        "max_length": st.integers(16, 4096),
        "gradient_checkpointing": st.sampled_from(["auto", *LEVELS]),
        "attention": st.sampled_from(["auto", "sdpa", "eager"]),
        "rank": st.integers(1, 256),
        "bias": st.sampled_from(["none", "lora_only", "all"]),
        "dropout": st.sampled_from([0.0, 0.05]),
        "double_quant": st.booleans(),
        "optimizer": st.sampled_from(["adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit"]),
    }
)


@dataclasses.dataclass(frozen=True)
class Always(calibration.Correction):
    """The same factor for every prediction."""

    factor: float = 1.0

    def at(self, predicted: int) -> calibration.Calibration:
        return calibration.Calibration(1, self.factor, 0.0)


@settings(max_examples=150, deadline=None, database=None)
@given(RUNS, st.sampled_from([*budget.CARDS, 1, 4]), st.sampled_from([1.0, 0.9, 1.2]))
def test_every_change_lowers_the_plan_by_what_it_says(values: dict[str, Any], size: int, correction: float) -> None:
    config = make(values)
    card = budget.Budget("card", size * GIB, size * GIB, correction=Always(factor=correction))
    of = known_models.find(config)
    before = plan(config, of, card)
    assert before.total == sum(term.bytes for term in before.terms)
    found = advice.changes(config, of, card)
    for change in found:
        changed = change.apply(config)
        after = plan(changed, known_models.find(changed), card)
        assert before.total - after.total == change.saves > 0
        assert after.fits == change.fits
        if "batch_size" in change.knobs:
            rows = changed.batch_size * changed.gradient_accumulation
            assert rows == config.batch_size * config.gradient_accumulation
    rest = found[1:]
    assert [change.saves for change in rest] == sorted((change.saves for change in rest), reverse=True)


def test_a_combination_is_offered_where_no_single_change_suffices() -> None:
    config = make({"base_model": "bigscience/bloom-7b1", "batch_size": 8, "max_length": 1024, "bias": "all"})
    config = make(config.model_dump() | {"gradient_checkpointing": "none"})
    first = advice.changes(config, known_models.find(config), budget.card(8))[0]
    assert first.fits and len(first.knobs) > 2 and first.learns_the_same
    assert first.knobs["gradient_checkpointing"] == "all"


@pytest.mark.parametrize(
    ("text", "size"), [("16GB", 16 * GIB), ("16", 16 * GIB), ("15.5GiB", 31 * GIB // 2), ("16000MB", 16000 * 2**20)]
)
def test_amounts_of_memory(text: str, size: int) -> None:
    assert budget.parse(text).total == budget.parse(text).free == size


@pytest.mark.parametrize("text", ["", "GB", "-3", "0", "16 apples", "1e3"])
def test_what_is_no_amount_is_a_sentence(text: str) -> None:
    with pytest.raises(UserError, match="is not an amount of memory"):
        budget.parse(text)


def test_targets_are_this_machine_and_the_usual_cards() -> None:
    found = budget.targets()
    assert list(found) == ["this one", "8 GB", "12 GB", "16 GB", "24 GB", "40 GB", "80 GB"]
    assert found["this one"].total > 0 and found["12 GB"].free == 12 * GIB


def test_runs_correct_the_next_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_GUI_CACHE", str(tmp_path))
    assert calibration.correction("RTX").at(100).factor == 1.0
    for measured in (110, 104, 106):
        calibration.record("RTX", 100, measured)
    calibration.record("other", 100, 900)
    with calibration.path().open("a") as file:
        file.write('{"gpu": "RTX", "predicted": 100, "mea')  # a line that was never finished
    found = calibration.correction("RTX").at(100)
    assert (found.runs, found.factor) == (3, 1.06) and found.error == pytest.approx(0.06)
    assert calibration.correction("other").at(100).factor == 1.5
    of, config = known_models.of_known("bigscience/bloom-560m"), make({"gradient_checkpointing": "all"})
    plain = plan(config, of, budget.card(16))
    card = budget.Budget("RTX", 16 * GIB, 16 * GIB, gpu="RTX", correction=Always(factor=found.factor))
    corrected = plan(config, of, card)
    assert corrected.uncorrected == plain.uncorrected
    assert corrected.total - plain.total == round(0.06 * plain.uncorrected) == corrected.terms[-1].bytes


def test_a_cache_that_cannot_be_written_to_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QLORA_GUI_CACHE", str(tmp_path / "file" / "cache"))
    calibration.record("RTX", 1, 1)
    assert not calibration.correction("RTX").pairs


def test_runs_of_another_size_correct_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12% more than predicted of a 135M run say nothing of a 7B run; another 7B run's 3% do."""
    monkeypatch.setenv("QLORA_GUI_CACHE", str(tmp_path))
    config, seven = make({"gradient_checkpointing": "all"}), known_models.of_known("bigscience/bloom-7b1")
    plain = plan(config, seven, budget.card(16))
    small = plan(config, known_models.of_known("HuggingFaceTB/SmolLM2-135M"), budget.card(16))
    for _ in range(8):
        calibration.record("RTX", small.uncorrected, round(1.12 * small.uncorrected))

    def corrected() -> int:
        card = budget.Budget("RTX", 16 * GIB, 16 * GIB, gpu="RTX", correction=calibration.correction("RTX"))
        return plan(config, seven, card).total - plain.total

    assert corrected() == 0
    calibration.record("RTX", round(0.9 * plain.uncorrected), round(0.9 * 1.03 * plain.uncorrected))
    assert corrected() == pytest.approx(0.03 * plain.uncorrected, rel=1e-3)


def test_a_card_without_flash_attention_keeps_more_of_grouped_queries() -> None:
    """Keys and values are repeated for every query head: of 32 heads over 8, as with a mask; BLOOM has nothing to repeat."""
    config = make({"gradient_checkpointing": "none", "batch_size": 4, "max_length": 512})
    for base, more in (("meta-llama/Llama-3.2-1B", True), ("bigscience/bloom-560m", False)):
        of, modern = known_models.of_known(base), budget.card(80)
        before, after = (plan(config, of, dataclasses.replace(modern, flash=flash)) for flash in (True, False))
        tokens, repeated = 4 * 512, 2 * 24 * 64 * 2  # bytes: keys and values of 24 heads more, 64 numbers each
        assert after.total - before.total == (16 * tokens * repeated if more else 0)


def test_a_gpu_has_flash_attention_from_ampere_on() -> None:
    assert not budget.of_gpu("Tesla T4", 16 * GIB, 16 * GIB, "7.5").flash
    for capability in ("8.0", "8.9", "9.0", "12.0", ""):
        assert budget.of_gpu("card", 16 * GIB, 16 * GIB, capability).flash


class _Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(404 if "nobody" in self.path else 200)
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if self.path == "/owner/there/resolve/v1/config.json":
            self.wfile.write(json.dumps(TINY_BLOOM).encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub on this machine that knows `owner/there` at v1."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    hub.answers.cache_clear()
    known_models._asked.cache_clear()
    yield
    server.shutdown()
    hub.answers.cache_clear()


def test_a_shape_comes_from_the_hub(server: None) -> None:
    assert known_models.find(make({"base_model": "owner/there", "revision": "v1"})).hidden == 64
    with pytest.raises(UserError, match=r"gives no config\.json"):
        known_models.find(make({"base_model": "owner/there"}))
    with pytest.raises(UserError, match="knows no base model"):
        known_models.find(make({"base_model": "nobody/this"}))


def test_a_shape_comes_from_a_folder_the_cache_or_the_table(
    bloom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert known_models.find(make({"base_model": str(bloom)})).hidden == 64
    with pytest.raises(UserError, match=r"has no config\.json"):
        known_models.find(make({"base_model": str(tmp_path)}))
    with pytest.raises(UserError, match="does not exist"):
        known_models.find(make({"base_model": "./nowhere"}))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    entry = tmp_path / "models--owner--cached"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("abc")
    (entry / "snapshots" / "abc").mkdir(parents=True)
    (entry / "snapshots" / "abc" / "config.json").write_text(json.dumps(TINY_BLOOM))
    assert known_models.find(make({"base_model": "owner/cached"})).layers == 2
    assert known_models.find(make({"base_model": "owner/cached", "revision": "abc"})).layers == 2
    assert known_models.find(make({"base_model": "mirror/Llama-3.1-8B-Instruct"})).parameters == 8_030_261_248
    assert known_models.find(make({"base_model": "demo"})).parameters == 134_515_008


def test_smaller_bases_keep_their_kind() -> None:
    assert known_models.smaller("Qwen/Qwen2.5-3B-Instruct") == [
        "Qwen/Qwen2.5-1.5B-Instruct",
        "Qwen/Qwen2.5-0.5B-Instruct",
    ]
    assert known_models.smaller("bigscience/bloom-560m") == known_models.smaller("demo") == []


def test_layers_may_be_a_list_of_what_each_is() -> None:
    """As transformers writes the config.json of Nemotron-H."""
    sizes = {key: value for key, value in TINY.items() if key != "num_hidden_layers"}
    kinds = ["mamba", "mlp", "attention"]
    assert model_shape.read({"model_type": "nemotron_h", **sizes, "layers_block_type": kinds}).layers == 3
    with pytest.raises(UserError, match="num_hidden_layers"):
        model_shape.read({"model_type": "nemotron_h", **sizes})
