"""Two processes on the CPU: the same rows a step, the losses of one process with twice the batch, stop and resume; and
FSDP, where each keeps half of the 4-bit base."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_gui.config import RunConfig, make
from qlora_gui.data import collate as batches
from qlora_gui.errors import UserError
from qlora_gui.memory import known_models
from qlora_gui.memory.budget import card
from qlora_gui.memory.estimate import plan
from qlora_gui.runs import launch, several
from qlora_gui.runs.store import Run, RunStore
from tests.conftest import TINY, wait_until_ended

ROOT = Path(__file__).parents[2]
# 39 rows are in no batch of four whole: the last step of an epoch is filled up. Two epochs, and no dropout.
KNOBS: dict[str, Any] = TINY | {"max_steps": 0, "epochs": 2, "dropout": 0, "eval_fraction": 0.1, "save_steps": 5}
KNOBS |= {"eval_steps": 5, "gradient_accumulation": 2, "seed": 3}
FSDP_FILE = """compute_environment: LOCAL_MACHINE
distributed_type: FSDP
num_machines: 1
num_processes: 2
mixed_precision: 'no'
main_process_port: 0
fsdp_config:
  fsdp_version: 2
"""


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32, so that sums in another order agree to the sixth digit."""
    monkeypatch.setenv("QLORA_GUI_COMPUTE_DTYPE", "float32")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"Order {n} of {n * n % 7}", "completion": f"It is {n} " * (n % 5 + 1)} for n in range(43)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def start(store: RunStore, base: Path, rows: Path, **knobs: object) -> Run:
    run = store.create(make(KNOBS | {"base_model": str(base), "dataset": str(rows)} | knobs))
    launch.start(run, store)
    return run


def losses(run: Run, kind: str = "step") -> dict[int, float]:
    return {event["step"]: event["loss"] for event in run.events()[0] if event["kind"] == kind}


def close(one: dict[int, float], other: dict[int, float]) -> bool:
    return one.keys() == other.keys() and all(one[step] == pytest.approx(other[step], rel=2e-4) for step in one)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_with_twice_the_batch(store: RunStore, llama: Path, rows: Path) -> None:
    runs = []
    for name, knobs in {
        "two": {"num_processes": 2, "batch_size": 2},
        "one": {"batch_size": 4},
        "longer": {"batch_size": 2, "gradient_accumulation": 4},
    }.items():
        runs.append(start(store, llama, rows, name=name, **knobs))
        assert wait_until_ended(runs[-1]) == "finished", runs[-1].log_tail(60)
    two, one, longer = runs
    assert len(losses(two)) == 10 and close(losses(two), losses(one)) and close(losses(two), losses(longer))
    assert close(losses(two, "eval"), losses(one, "eval"))
    for kind in ("started", "data", "base", "saved", "finished"):  # only one of them wrote
        assert sum(event["kind"] == kind for event in two.events()[0]) == 1, kind
    checkpoint = two.last_checkpoint()
    assert checkpoint and {path.name for path in checkpoint.glob("rng_state_*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }


@pytest.mark.slow
def test_a_stop_and_a_resume_end_at_the_same_losses(store: RunStore, llama: Path, rows: Path) -> None:
    """Stopped in the middle of an epoch, resumed, and then as if nothing had been."""
    whole = start(store, llama, rows, name="whole", num_processes=2)
    assert wait_until_ended(whole) == "finished", whole.log_tail(60)
    run = start(store, llama, rows, name="stopped", num_processes=2)
    while not losses(run):
        time.sleep(0.05)
    run.request_stop()
    assert wait_until_ended(run) == "stopped", run.log_tail(60)
    last = max(losses(run))
    assert last < max(losses(whole)) and run.has_adapter()
    launch.start(run, store, resume=True)
    assert wait_until_ended(run) == "finished", run.log_tail(60)
    assert close(losses(run), losses(whole))


@pytest.mark.slow
def test_killing_leaves_no_process_and_a_failure_of_one_is_told(store: RunStore, llama: Path, rows: Path) -> None:
    run = start(store, llama, rows, name="killed", num_processes=2, epochs=50)
    while not losses(run):
        time.sleep(0.05)
    agent = launch.find(run)
    assert agent
    family = [agent, *agent.children(recursive=True)]
    assert len(family) >= 3
    workers = [one for one in family if one.pid != agent.pid and "accelerate.commands.launch" not in one.cmdline()]
    ranks = {one.environ().get("RANK"): one for one in workers}
    ranks["1"].kill()  # as the kernel does for want of memory
    assert wait_until_ended(run, 60) == "failed", run.log_tail(60)
    assert "Another process of this run ended" in run.events()[0][-1]["message"]
    deadline = time.monotonic() + 20
    while any(one.is_running() and one.status() != "zombie" for one in family) and time.monotonic() < deadline:
        time.sleep(0.2)
    launch.start(run, store, resume=False)
    while run.state() != "running" or launch.find(run) is None:
        time.sleep(0.05)
    time.sleep(3)
    found = launch.find(run)
    assert found
    family = [found, *found.children(recursive=True)]
    assert launch.kill(run) and run.state() == "died"
    assert not [one for one in family if one.is_running() and one.status() != "zombie"]


@pytest.mark.slow
def test_a_stop_in_a_long_step_is_kept(
    store: RunStore, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 is interrupted, saves and ends; the other, which waits for it, ends too."""
    monkeypatch.setenv("QLORA_GUI_STOP_SECONDS", "2")
    many = tmp_path / "many.jsonl"
    many.write_text('{"prompt": "Order of today", "completion": "It is here"}\n' * 6000)
    knobs = {"fsdp": True, "gradient_accumulation": 1500, "eval_fraction": 0}  # half a minute a step
    run = start(store, llama, many, name="long", num_processes=2, **knobs)
    while not [event for event in events(run, "stage") if event["text"] == "Training"]:
        time.sleep(0.05)
    time.sleep(1)
    found = launch.find(run)
    assert found
    family = [found, *found.children(recursive=True)]
    run.request_stop()
    assert wait_until_ended(run, 30) == "stopped", run.log_tail(60)
    assert "Stopped before the first step" in run.events()[0][-1]["message"]
    deadline = time.monotonic() + 20
    while any(one.is_running() and one.status() != "zombie" for one in family) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [one for one in family if one.is_running() and one.status() != "zombie"]


@pytest.mark.slow
def test_another_number_of_processes_does_not_resume(store: RunStore, llama: Path, rows: Path) -> None:
    run = start(store, llama, rows, name="two", num_processes=2, epochs=1)
    assert wait_until_ended(run) == "finished", run.log_tail(60)
    manifest = json.loads((run.path / "run.json").read_text())
    manifest["config"]["num_processes"] = 1
    (run.path / "run.json").write_text(json.dumps(manifest))
    launch.start(run, store, resume=True)
    assert wait_until_ended(run) == "failed"
    assert "begun with 2 processes" in run.events()[0][-1]["message"]


@pytest.mark.slow
def test_an_accelerate_config_is_used(store: RunStore, llama: Path, rows: Path, tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    settings = "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_machines: 1\nnum_processes: 2\n"
    file.write_text(settings + "mixed_precision: 'bf16'\nmain_process_port: 0\n")
    run = start(store, llama, rows, name="by-file", accelerate_config=str(file), epochs=1)
    assert wait_until_ended(run) == "finished", run.log_tail(60)
    [base] = [event for event in run.events()[0] if event["kind"] == "base"]
    assert base["processes"] == 2 and base["dtype"] == "float32"
    with pytest.raises(UserError, match="does not exist"):
        start(store, llama, rows, name="gone", accelerate_config=str(tmp_path / "no.yaml"))


@pytest.mark.parametrize("name", ["DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_what_is_not_supported_is_said(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from qlora_gui.training import distributed

    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(UserError, match="is not supported: take MULTI_GPU or FSDP"):
        distributed.begin("cpu")


@pytest.mark.slow
def test_two_machines_as_the_slurm_script_starts_them(store: RunStore, llama: Path, rows: Path, tmp_path: Path) -> None:
    """The shipped script with a Slurm of two words: both nodes are this machine, and meet over its network."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "scontrol").write_text("#!/bin/sh\nprintf '127.0.0.1\\n127.0.0.2\\n'\n")
    skip = 'while [ "${1#--}" != "$1" ]; do shift; done\n'
    (tools / "srun").write_text(f'#!/bin/sh\n{skip}SLURM_NODEID=0 exec "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    knobs = KNOBS | {"epochs": 1, "base_model": str(llama), "dataset": str(rows)}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in knobs.items()]
    env = os.environ | {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "x", "SLURM_JOB_NUM_NODES": "2", "PORT": str(port)}
    env |= {"PATH": f"{tools}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    env |= {"ADAPTERS": str(store.root), "GPUS": "1"}
    command = ["sh", str(ROOT / "docs" / "cluster" / "slurm.sh"), *flags]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    run = store.get("job-7")
    assert run.state() == "finished", done.stdout + done.stderr + run.log_tail(40)
    [base] = [event for event in run.events()[0] if event["kind"] == "base"]
    assert base["processes"] == 2 and done.returncode == 0


def events(run: Run, kind: str) -> list[dict[str, Any]]:
    return [event for event in run.events()[0] if event["kind"] == kind]


@pytest.mark.slow
def test_shared_out_it_takes_the_steps_of_whole_bases(store: RunStore, bloom: Path, rows: Path) -> None:
    """Exactly, for the same numbers are computed, whoever keeps the weights."""
    knobs = {"num_processes": 2, "bias": "all", "optimizer": "adamw_8bit", "probe_prompts": 1}
    whole = start(store, bloom, rows, name="whole", **knobs)
    assert wait_until_ended(whole) == "finished", whole.log_tail(60)
    shared = start(store, bloom, rows, name="shared", fsdp=True, **knobs)
    assert wait_until_ended(shared) == "finished", shared.log_tail(60)
    assert len(losses(whole)) == 10 and losses(shared) == losses(whole)
    assert losses(shared, "eval") == losses(whole, "eval")
    assert [event["answers"] for event in events(shared, "probe")] == [e["answers"] for e in events(whole, "probe")]
    weights = [(run.path / "adapter_model.safetensors").read_bytes() for run in (whole, shared)]
    assert weights[0] == weights[1]
    [base] = events(shared, "base")
    assert base["share"] == pytest.approx(base["weights_4bit"] / 2, rel=0.001) and base["share"] > 10_000


@pytest.mark.slow
def test_shared_out_by_a_config_file_a_stop_and_a_resume_change_nothing(
    store: RunStore, llama: Path, rows: Path, tmp_path: Path
) -> None:
    """With layers recomputed, dropout, and linears without LoRA."""
    file = tmp_path / "fsdp.yaml"
    file.write_text(FSDP_FILE)
    knobs = {"gradient_checkpointing": "all", "dropout": 0.1, "target_modules": "q_proj,v_proj", "double_quant": False}
    whole = start(store, llama, rows, name="whole", num_processes=2, **knobs)
    assert wait_until_ended(whole) == "finished", whole.log_tail(60)
    run = start(store, llama, rows, name="shared", accelerate_config=str(file), **knobs)
    while not losses(run) and run.is_live():
        time.sleep(0.05)
    run.request_stop()
    assert wait_until_ended(run) == "stopped" and max(losses(run)) < 10, run.log_tail(60)
    launch.start(run, store, resume=True)
    assert wait_until_ended(run) == "finished", run.log_tail(60)
    assert losses(run) == losses(whole)


def test_the_plan_counts_a_share(tmp_path: Path) -> None:
    """Of 30 layers in 4 processes 8, and 3 that lie there whole, but all statistics; a file asks for it like the knob."""
    file = tmp_path / "fsdp.yaml"
    file.write_text(FSDP_FILE.replace("num_processes: 2", "num_processes: 4"))
    shape = known_models.of_known("bigscience/bloom-7b1")
    plans = [
        plan(RunConfig(**knobs), shape, card(80))
        for knobs in ({}, {"fsdp": True, "num_processes": 4}, {"accelerate_config": str(file)})
    ]
    sizes = [next(term.bytes for term in found.terms if term.key == "weights_4bit") for found in plans]
    statistics = sum(part.weights // 64 + part.weights // 64 // 64 for part in shape.linears) * 30
    assert shape.layers == 30 and sizes[1] == sizes[2]
    assert sizes[1] - statistics == pytest.approx((sizes[0] - statistics) * 11 / 30, rel=1e-3)
    assert several.sharers(RunConfig(accelerate_config=str(tmp_path / "gone.yaml"))) == 1
    with pytest.raises(UserError, match="set num_processes"):
        make({"fsdp": True})


@pytest.mark.parametrize(("count", "world", "size"), [(39, 2, 2), (40, 2, 2), (7, 3, 2), (1, 2, 4), (8, 4, 1)])
def test_every_row_is_read_once_and_steps_are_whole(count: int, world: int, size: int) -> None:
    sampler = batches.WholeSteps(count, world * size, seed=5)
    seen = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert len(order) == len(sampler) and len(order) % (world * size) == 0
        assert sorted(number for number in order if number < count) == list(range(count))
        assert set(order[count:]) <= {count}
        seen.append(order[:count])
    assert count < 3 or seen[0] != seen[1]


def test_a_blank_row_fills_only_a_batch_of_its_own() -> None:
    collate = batches.Collate(0)
    row: batches.Row = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    assert collate([row, batches.BLANK])["input_ids"].tolist() == [[5, 6, 7]]
    alone = collate([batches.BLANK, batches.BLANK])
    assert (alone["labels"] == -100).all() and int(alone["tokens"]) == 0 and os.environ["OMP_NUM_THREADS"] == "1"


def test_what_fits_on_the_smallest_gpu_is_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from qlora_gui.runs.events import Silent
    from qlora_gui.training import distributed, setup

    mine, other = (
        RunConfig(batch_size=4),
        RunConfig(batch_size=1, gradient_accumulation=16, gradient_checkpointing="all"),
    )
    levels: list[str] = []
    said: list[str] = []
    monkeypatch.setattr(distributed, "gathered", lambda given: [given, (other, 1)])
    monkeypatch.setattr(setup.lora, "checkpoint", lambda model, level: levels.append(level))
    ready = setup.Ready(mine, SimpleNamespace(get_base_model=lambda: None), [], batches.Collate(0), 4)
    assert setup.agreed(ready, Silent(), said.append).config == other
    assert levels == ["all"] and "micro-batch 1" in said[0]


def test_processes_that_compute_in_different_formats_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An RTX 2080 Ti beside a 3090: gradients of fp16 are scaled, those of bf16 are not, and DDP would average them."""
    from qlora_gui.training import distributed, run

    monkeypatch.setattr(
        distributed, "gathered", lambda given: [given, ("float16", "RTX 2080 Ti"), ("bfloat16", "RTX 3090")]
    )
    with pytest.raises(UserError, match=r"RTX 2080 Ti in float16, RTX 3090 in bfloat16. Set QLORA_GUI_COMPUTE_DTYPE"):
        run._check_alike(torch.device("cpu"))
    monkeypatch.setattr(distributed, "gathered", lambda given: [given, given])
    run._check_alike(torch.device("cpu"))
