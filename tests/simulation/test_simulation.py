"""Will it fit, by simulation: fake tensors against really allocated storages, few layers against all, the child."""

import gc
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_gui.config import RunConfig, make
from qlora_gui.errors import UserError
from qlora_gui.memory import simulated_step
from qlora_gui.models import attention, lora, lora_kernel, norms
from qlora_gui.models import base as bases
from qlora_gui.models import chunked_loss as loss
from qlora_gui.models.families import bloom
from qlora_gui.simulation import __main__, client, fake_model
from qlora_gui.simulation.cuda_emulation import cuda_rules
from qlora_gui.simulation.live_bytes import LiveBytes
from qlora_gui.simulation.step import backward, make_optimizer, peak_of_step
from tests import module_graph

ROWS, LENGTH, LAYERS = 2, 96, 3
MANY = 9  # layers; few are up to 7
BLOOM_7B = {"model_type": "bloom", "hidden_size": 4096, "n_layer": 30, "n_head": 32, "vocab_size": 250880}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_GUI_CACHE", str(tmp_path / "cache"))


def run_of(**knobs: object) -> RunConfig:
    return make({"rank": 4, "gradient_checkpointing": "all"} | knobs)


def real_model(folder: Path, run: RunConfig, way: str = "ours") -> Any:
    model = bases.load_model(str(folder), run.quant_type, run.double_quant, torch.device("cpu"), torch.bfloat16)
    return __main__.prepared(model, run) if way == "ours" else __main__.usual(model, run)


def real_batch(run: RunConfig, way: str = "ours") -> dict[str, torch.Tensor]:
    ids = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH)
    batch = {"input_ids": ids, "labels": ids.clone()}
    if way == "stock":
        batch["attention_mask"] = (torch.arange(LENGTH) < torch.tensor([[50], [LENGTH]])).long()
    elif run.packing:
        places = torch.arange(LENGTH).repeat(ROWS, 1)
        batch |= {"position_ids": places % 40, "blocks": places // 40 + 1}
    return batch


def config_of(folder: Path) -> Any:
    return fake_model.read_config(json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize("base", ["bloom", "llama"])
@pytest.mark.parametrize(
    ("way", "knobs"),
    [
        ("ours", {"gradient_checkpointing": "none"}),
        ("ours", {"gradient_checkpointing": "all", "bias": "all", "dropout": 0, "double_quant": False}),
        ("ours", {"gradient_checkpointing": "every-2", "optimizer": "adamw_8bit", "rank": 300}),
        ("ours", {"gradient_checkpointing": "none", "packing": True, "optimizer": "adamw_torch"}),
        ("ours", {"gradient_checkpointing": "none", "attention": "eager", "gradient_accumulation": 1}),
        ("stock", {"gradient_checkpointing": "all", "bias": "lora_only"}),
        ("stock", {"gradient_checkpointing": "none"}),
    ],
)
def test_simulated_equals_really_allocated_storages_to_the_byte(
    base: str, way: Any, knobs: dict[str, object], request: pytest.FixtureRequest
) -> None:
    folder, run = request.getfixturevalue(base), run_of(**knobs)
    simulated = __main__.peaks(config_of(folder), LAYERS, run, ROWS, LENGTH, way)
    batch = real_batch(run, way)
    with cuda_rules(only_causal=set(batch) == {"input_ids", "labels"}):
        real = peak_of_step(real_model(folder, run, way), batch, run, way)
    assert simulated == real


@pytest.mark.parametrize("base", ["bloom", "llama"])
@pytest.mark.parametrize("checkpointing", ["none", "all"])
def test_the_count_equals_what_torchs_allocator_reports(
    base: str, checkpointing: str, request: pytest.FixtureRequest
) -> None:
    """Bytes alive after every part of the step, from the allocator's own events: an account of its own."""
    run = run_of(gradient_checkpointing=checkpointing)
    batch = real_batch(run)
    with cuda_rules():
        model = real_model(request.getfixturevalue(base), run)
        counted: list[int] = []
        with LiveBytes(block=1) as tracker:
            tracker.watch([*fake_model.tensors_of(model), *batch.values()])
            before = tracker.live
            for kept_on_cpu in steps(model, batch, run):
                counted.append(tracker.live - before + kept_on_cpu)
        gc.collect()
        reported = allocator_reports(lambda: steps(model, batch, run))
    assert counted == reported and max(counted) > 2 * counted[0] > 0


def steps(model: Any, batch: dict[str, torch.Tensor], run: RunConfig) -> Iterator[int]:
    """Two micro-batches and an optimizer step; gives after each part the bytes that are no tensor of CUDA's."""
    trained = [part for part in model.parameters() if part.requires_grad]
    optimizer = make_optimizer(trained, run)
    for part in trained:
        part.grad = torch.zeros_like(part)
    optimizer.step()
    optimizer.zero_grad()
    yield 0
    for _ in range(2):
        loss = model(**batch).loss
        yield torch.get_rng_state().nbytes * LAYERS if run.gradient_checkpointing == "all" else 0
        backward(loss)
        yield 0
    optimizer.step()
    yield 0


def allocator_reports(run: Callable[[], Iterator[int]]) -> list[int]:
    """Bytes alive at every yield of what was allocated since the beginning, from the events that the profiler keeps."""
    mark = 12_345_677  # bytes of a tensor that only says: a part has ended
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        for _ in run():
            torch.empty(mark, dtype=torch.uint8)
    waiting, events = list(profile.profiler.kineto_results.experimental_event_tree()), []
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.name == "[memory]":
            events.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    alive: dict[int, int] = {}
    found = []
    for _, pointer, size in sorted(events):
        if size == mark:
            found.append(sum(alive.values()))
        elif size > 0:
            alive[pointer] = size
        if size < 0:  # of what was there before nothing is counted
            alive.pop(pointer, None)
    return found


def test_every_choice_by_device_is_made_as_on_a_gpu() -> None:
    """Fake tensors lie on the CPU: a new branch on the device needs its other side in simulation/cuda_emulation.py."""
    files = [Path(part.__file__) for part in (attention, bloom, lora_kernel, loss, lora, norms)]
    found = [line.strip() for file in files for line in file.read_text().splitlines() if "device.type" in line]
    known = ["hidden.device.type", "query.device.type", "x.device.type", "linear.weight.device.type"]
    known += ["chunk_rows(", "rows.device.type", "key.device.type"]
    assert len(found) == len(known) and all(any(word in line for line in found) for word in known)


KINDS = {
    "bloom": {"model_type": "bloom", "hidden_size": 64, "n_head": 4, "n_layer": MANY},
    "llama": {"model_type": "llama", "num_hidden_layers": MANY},
    "two kinds of layers": {"model_type": "gemma2", "num_hidden_layers": MANY, "head_dim": 16, "sliding_window": 32},
}
SIZES = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("way", "checkpointing"), [("ours", "none"), ("ours", "every-2"), ("stock", "all")])
def test_few_layers_tell_the_bytes_of_all(kind: str, way: Any, checkpointing: str) -> None:
    base = KINDS[kind] if kind == "bloom" else SIZES | KINDS[kind]
    run = run_of(gradient_checkpointing=checkpointing)
    config = fake_model.read_config(base)
    assert __main__.layer_counts(config, checkpointing)[1] < MANY
    all_layers = __main__.peaks(config, MANY, run, ROWS, LENGTH, way)
    found = __main__.simulate(base, run, ROWS, LENGTH, way, checkpointing)
    assert found["resident"] == all_layers.resident
    assert found["peak"] == max(all_layers.places.values())


def test_a_base_with_logits_of_its_own_has_no_chunked_loss() -> None:
    assert not fake_model.own_logits(fake_model.read_config(SIZES | KINDS["llama"]))
    assert fake_model.own_logits(fake_model.read_config(SIZES | KINDS["two kinds of layers"]))


def test_a_mask_whose_rows_are_not_aligned_is_copied_for_every_layer() -> None:
    odd, even = (__main__.peaks(fake_model.read_config(KINDS["bloom"]), 3, run_of(gradient_checkpointing="none"), ROWS,
                                length, "ours") for length in (95, 96))  # fmt: skip
    copies = [peaks.places["forward", 2] - peaks.places["forward", 1] for peaks in (odd, even)]
    assert copies[0] - copies[1] > 0.8 * 4 * 95 * 96 * 2 > 0


def test_lora_costs_16_bytes_a_parameter_while_gradients_exist() -> None:
    base = SIZES | KINDS["llama"]
    small, large = (
        __main__.simulate(base, run_of(rank=rank, optimizer="adamw_torch_fused"), ROWS, LENGTH) for rank in (64, 128)
    )
    parameters = MANY * 64 * (4 * (64 + 64) + 3 * (64 + 128))
    assert large["resident"] - small["resident"] == 12 * parameters  # weight, two Adam states, all fp32
    gradients = large["phases"]["optimizer"] - large["resident"] - (small["phases"]["optimizer"] - small["resident"])
    assert gradients == pytest.approx(4 * parameters, abs=65536)


@pytest.mark.slow
def test_experiment_2_the_stock_way_and_ours() -> None:
    """BLOOM-7B1 at 4 x 1024 in the real child: 16 GB are too little for the stock way, and enough for ours."""
    config = make({"rank": 20, "bias": "all", "gradient_checkpointing": "all"})
    ours = simulated_step.simulate(BLOOM_7B, config, 4, 1024)
    assert ours.resident < ours.peak == max(ours.phases.values()) == ours.phases[ours.peak_in] < 8 * 2**30
    question = {"base": BLOOM_7B, "config": config.model_dump(), "rows": 4, "length": 1024, "way": "stock"}
    stock = json.loads(client._start(client.STEP, question).stdout)
    assert stock["peak"] > 20 * 2**30 and stock["peak_in"] == "loss"
    assert stock["ram"] < 2e9  # of the child itself


@pytest.mark.slow
def test_an_answer_is_kept_by_all_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    base = SIZES | KINDS["llama"]
    first = simulated_step.simulate(base, run_of(), ROWS, LENGTH)
    (kept,) = client.folder().iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/no/such/python")
        assert simulated_step.simulate(base, run_of(name="another", learning_rate=1e-5), ROWS, LENGTH) == first
        with pytest.raises(OSError):
            simulated_step.simulate(base, run_of(rank=8), ROWS, LENGTH)
    kept.write_text("{")
    assert simulated_step.simulate(base, run_of(), ROWS, LENGTH) == first
    assert json.loads(kept.read_text())["peak"] == first.peak


def test_an_answer_is_kept_by_the_code_that_gives_it() -> None:
    """What the child imports is hashed, but for what only reads the question and refuses it."""
    waiting, seen = ["qlora_gui.simulation.__main__", client.PARAMETERS], set()
    while waiting:
        if (module := waiting.pop()) not in seen:
            seen.add(module)
            waiting += module_graph.inner(module_graph.MODULES[module]) if module in module_graph.MODULES else ()
    beside = "config data errors files hub memory plain_files references settings_yaml system".split()
    parts = {module.split(".")[1] for module in seen} - set(beside)
    assert parts == {name.removesuffix(".py") for name in client._CODE} - {"training"}


def test_another_file_that_decides_gives_another_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "qlora_gui"
    shutil.copytree(Path(client.__file__).parents[1], package)
    monkeypatch.setattr(client, "__file__", str(package / "simulation" / "client.py"))
    keys = {client._libraries.__wrapped__()[-1]}
    for name in (*client._CODE, "models"):
        file = package / name
        with (file if file.suffix else next(file.rglob("*.py"))).open("a") as code:
            code.write("\n")
        keys.add(client._libraries.__wrapped__()[-1])
    assert len(keys) == 2 + len(client._CODE)


@pytest.mark.slow
def test_what_cannot_be_simulated_is_a_sentence() -> None:
    with pytest.raises(UserError, match="'nonsense'"):
        __main__.simulate({"model_type": "nonsense"}, run_of(), 1, 32)
    with pytest.raises(UserError, match="query_key_value"):
        __main__.simulate(KINDS["bloom"], run_of(target_modules="q_proj"), 1, 32)
    with pytest.raises(UserError, match="divisible") as caught:
        simulated_step.simulate(KINDS["bloom"] | {"n_head": 7}, run_of(), 1, 32)
    assert "\n" not in str(caught.value) and not list(client.folder().glob("*"))
