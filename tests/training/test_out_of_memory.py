"""Runs that do not fit: a limit refuses their memory, for real, in the real child process."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from qlora_gui.config import RunConfig, make
from qlora_gui.data import collate
from qlora_gui.memory import known_models
from qlora_gui.memory.budget import GIB, card
from qlora_gui.memory.estimate import plan
from qlora_gui.models import device as devices
from qlora_gui.runs import launch
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.training import __main__ as program
from qlora_gui.training import limit, oom, preflight
from qlora_gui.training.trainer import arguments
from tests.conftest import TINY, last, train, wait_until_ended
from tests.steps import config_of, rows_of, trainable

CPU = torch.device("cpu")
HEAVY: dict[str, object] = {"batch_size": 8, "max_length": 192, "max_steps": 2, "eval_fraction": 0}


def peak_of(base: Path, batch: int) -> int:
    """Bytes of all tensors alive at the peak of a preflight with that many rows."""
    config = config_of(base_model=str(base), **(HEAVY | {"batch_size": batch}))
    model, rows = trainable(base, config), rows_of(base, 40)
    with limit._Limited(2**40) as counted:
        counted.watch(model.parameters())
        preflight.two_steps(model, rows, batch, _collate(), arguments(config, "unused", CPU, batch))
    return max(counted.peaks.values())


def _collate() -> collate.Collate:
    return collate.Collate(1, 192)


def run_within(store: RunStore, monkeypatch: pytest.MonkeyPatch, size: int, **knobs: object) -> Run:
    """Train a run that may hold `size` bytes of tensors."""
    monkeypatch.setenv("QLORA_GUI_MEMORY_LIMIT", f"{size / 2**20:.3f}MB")
    run = store.create(make(TINY | HEAVY | knobs))
    launch.start(run, store)
    wait_until_ended(run)
    return run


def test_the_preflight_changes_nothing(llama: Path) -> None:
    config = config_of(base_model=str(llama))
    model = trainable(llama, config)
    before = {name: part.clone() for name, part in model.named_parameters()}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    preflight.two_steps(model, rows_of(llama), 4, _collate(), arguments(config, "unused", CPU, 4))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(part, before[name]) for name, part in model.named_parameters())
    assert all(part.grad is None for part in model.parameters())


@pytest.mark.slow
def test_a_run_that_is_too_large_goes_on_with_smaller_micro_batches(
    llama: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-way between what 8 rows and what 4 rows take: 8 x 1 becomes 4 x 2, said in an event, and it finishes."""
    size = (peak_of(llama, 8) + peak_of(llama, 4)) // 2
    run = run_within(store, monkeypatch, size, base_model=str(llama))
    assert run.state() == "finished", run.log_tail()
    changed = last(run.events()[0], "fit")
    assert changed and changed["knobs"]["batch_size"] == 4 and changed["knobs"]["gradient_accumulation"] == 2
    assert "micro-batch 4, accumulation 2" in changed["text"] and changed["text"] in run.log_tail()
    assert run.config().batch_size == 8  # what was asked for stays as it was


@pytest.mark.slow
def test_without_auto_fit_it_ends_with_an_autopsy(
    llama: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (peak_of(llama, 8) + peak_of(llama, 4)) // 2
    run = run_within(store, monkeypatch, size, base_model=str(llama), auto_fit=False)
    end = run.events()[0][-1]
    assert run.state() == "failed" and end["bug"] is False and not run.is_locked()
    found = end["autopsy"]
    assert found["phase"] == "Trying the longest batch" and found["step"] == 0
    assert found["predicted"] > 0 and abs(found["free"] - size) < 2**20
    assert found["changes"] and found["changes"] == sorted(found["changes"], key=lambda one: -one["saves"])
    assert end["message"].startswith("Out of memory in the stage") and "were predicted" in end["message"]
    monkeypatch.delenv("QLORA_GUI_MEMORY_LIMIT")
    best = next(change for change in found["changes"] if "batch_size" in change["knobs"])
    again = train(store, **(HEAVY | {"base_model": str(llama)} | best["knobs"]))
    assert again.state() == "finished"


def test_what_no_change_can_fit_ends_with_an_autopsy_too(
    llama: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_within(store, monkeypatch, 2**19, base_model=str(llama))
    end = run.events()[0][-1]
    assert run.state() == "failed" and end["autopsy"]["predicted"] > 2**19


def test_smaller_steps_keep_the_rows_of_a_step() -> None:
    config, rows = config_of(batch_size=12, gradient_accumulation=2), 12
    seen = []
    while (smaller := preflight.smaller_step(config, rows)) is not None:
        config, rows = smaller
        seen.append((config.batch_size, config.gradient_accumulation, config.gradient_checkpointing))
    assert seen == [(6, 4, "none"), (3, 8, "none"), (1, 24, "none"), (1, 24, "all")]


@pytest.mark.parametrize(("batch", "accumulation", "rows"), [(4, 4, 5), (3, 4, 4), (1, 1, 8), (2, 3, 7)])
def test_smaller_steps_of_packed_rows_do_so_to_the_row(batch: int, accumulation: int, rows: int) -> None:
    config, whole = config_of(packing=True, batch_size=batch, gradient_accumulation=accumulation), rows * accumulation
    while (smaller := preflight.smaller_step(config, rows)) is not None:
        config, fewer = smaller
        assert fewer * config.gradient_accumulation == whole and config.batch_size >= 1
        assert fewer <= rows // 2 or (fewer == rows == 1 and config.gradient_checkpointing == "all")
        rows = fewer
    assert rows == 1


def test_memory_errors_are_known_by_their_cause() -> None:
    def wrapped(inner: BaseException) -> BaseException:
        try:
            raise ValueError("outer") from inner
        except ValueError as error:
            return error

    assert devices.ran_out(torch.OutOfMemoryError("x")) and devices.ran_out(wrapped(torch.OutOfMemoryError("x")))
    assert devices.ran_out(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not devices.ran_out(ValueError("shape")) and not devices.ran_out(None)
    assert not devices.ran_out(RuntimeError("CUDA error: device-side assert triggered"))
    assert not devices.ran_out(KeyError("out of memory"))  # a name, not a message


# As the libraries say it.
SHORT = {
    "driver": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cublas-handle": RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cudnn-9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "nccl": RuntimeError("NCCL error: unhandled cuda error. Last error: Cuda failure 2 'out of memory'"),
    "bitsandbytes": RuntimeError("Error out of memory at line 90 in file /src/csrc/ops.cu"),
    "hip": RuntimeError("HIP error: hipErrorOutOfMemory"),
    "xpu": RuntimeError("UR error: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY"),
    "mps": RuntimeError("MPS backend out of memory (MPS allocated: 5.43 GB)"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    "cpu-windows": RuntimeError("[enforce fail] data. DefaultCPUAllocator: not enough memory: you tried to allocate 1"),
    "kernel": OSError(12, "Cannot allocate memory"),
    "c++": RuntimeError("std::bad_alloc"),
    "python": MemoryError(),
}


@pytest.mark.parametrize("error", SHORT.values(), ids=SHORT)
def test_a_lack_of_memory_is_known_by_any_library_s_words(error: Exception) -> None:
    assert devices.ran_out(error)
    tried = []

    def try_it(config: RunConfig, rows: int) -> None:
        assert rows == config.batch_size
        tried.append(config.batch_size)
        if config.batch_size > 2:
            raise error

    said: list[str] = []
    fitted, rows = preflight.fitted(
        config_of(batch_size=8), 8, try_it, lambda level: None, lambda config, text: said.append(text)
    )
    assert tried == [8, 4, 2] and fitted.batch_size == rows == 2 and "micro-batch 2" in said[-1]


def test_what_is_no_lack_of_memory_is_not_retried() -> None:
    def try_it(config: RunConfig, rows: int) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        preflight.fitted(config_of(batch_size=8), 8, try_it, lambda level: None, lambda config, text: None)


@pytest.mark.parametrize("optimizer", ["adamw_torch_fused", "adamw_8bit"])
def test_a_row_that_overflows_leaves_the_adapter_as_it_was(llama: Path, optimizer: str) -> None:
    """fp16 has no number beyond 65,504: the preflight meets such a row without a loss scaler that would skip it."""
    config = config_of(base_model=str(llama), optimizer=optimizer)
    model, rows = trainable(llama, config, torch.float16), rows_of(llama)
    worst = max(rows, key=lambda row: len(row["input_ids"]))["input_ids"][-1]
    with torch.no_grad():
        model.get_input_embeddings().weight[worst] = torch.inf
    before = {name: part.clone() for name, part in model.named_parameters() if part.requires_grad}
    args = arguments(config, "unused", CPU, 4)
    args.fp16 = False  # its scaler is the Trainer's; there is none for a CPU
    preflight.two_steps(model, rows, 4, _collate(), args)
    assert all(torch.equal(part, before[name]) for name, part in model.named_parameters() if name in before)


def test_an_autopsy_of_a_card_too_full_to_be_asked(
    llama: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process left no room for a context: then the driver refuses even to say what is free."""

    def full(*args: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    card = SimpleNamespace(total_memory=16 << 30, is_integrated=False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", full)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert devices.free_and_total(torch.device("cuda", 0)) == (0, 16 << 30)
    for name, value in {
        "get_device_capability": (7, 5),
        "get_device_name": "Tesla T4",
        "memory_reserved": 0,
        "max_memory_allocated": 0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    monkeypatch.setattr(devices, "pick", lambda: torch.device("cuda", 0))
    told = oom.describe(store.create(make(TINY | HEAVY | {"base_model": str(llama)})))
    assert told["bug"] is False and told["autopsy"]["free"] == 0 and told["autopsy"]["total"] == 16 << 30


@pytest.mark.parametrize("stage", ["loads", "forward"])
def test_a_lack_of_memory_by_any_name_ends_in_plain_words(
    llama: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise SHORT["cublas"]

    where = {"loads": "qlora_gui.models.quantized_cache.load", "forward": "qlora_gui.models.causality.check"}
    monkeypatch.setattr(where[stage], full)
    run = store.create(make(TINY | HEAVY | {"base_model": str(llama)}))
    monkeypatch.setattr(sys, "argv", ["qlora_gui.training", str(run.path)])
    assert program.main() == 1
    end = run.events()[0][-1]
    assert end["kind"] == "failed" and end["bug"] is False and "autopsy" in end
    assert end["message"].startswith("Out of memory in the stage 'Loading the base model")


def test_a_limit_is_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_GUI_MEMORY_LIMIT", "0.5GB")
    assert limit.budget(CPU).free == GIB // 2
    config = make({"base_model": "bigscience/bloom-560m", "gradient_checkpointing": "auto"})
    assert preflight.resolve(config, CPU).gradient_checkpointing == "none"
    assert plan(config, known_models.find(config), card(80)).checkpointing == "none"


def test_headless_tells_the_autopsy_and_keeps_the_run(llama: Path, tmp_path: Path) -> None:
    """Ends with 1; the changes come as flags, and the folder stays, for the page to retry from."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (TINY | HEAVY).items()]
    command = [sys.executable, "app.py", "--headless-train", "--adapters-dir", str(tmp_path), "--name", "large"]
    done = subprocess.run(
        [*command, "--base-model", str(llama), *flags],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"QLORA_GUI_MEMORY_LIMIT": "1MB"},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        "The run failed. Out of memory" in done.stderr and "(--batch-size 4 --gradient-accumulation 2)" in done.stderr
    )
    assert RunStore(tmp_path).get("large").state() == "failed"
