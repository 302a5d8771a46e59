"""Runs in real child processes on small real models: events, files, exact reload, stop and resume."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from safetensors.torch import load_file
from transformers import set_seed

from qlora_gui.config import RunConfig, make
from qlora_gui.data import chat_template, collate, load, tokenization
from qlora_gui.data.chat import Chat
from qlora_gui.models import base as bases
from qlora_gui.models import lora
from qlora_gui.runs import event_file, launch
from qlora_gui.runs.events import KINDS, EventLog, names
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.training.trainer import RunTrainer, arguments
from tests.conftest import TINY, last, train, wait_until_ended

CPU = torch.device("cpu")


def kinds(run: Run) -> list[str]:
    return [event["kind"] for event in run.events()[0]]


def test_a_run_leaves_its_events_in_order(bloom_runs: dict[str, Run]) -> None:
    run = bloom_runs["none"]
    assert run.state() == "finished"
    seen = [kind for kind in kinds(run) if kind != "stage"]
    assert seen[:4] == ["started", "data", "base", "eval"] and seen[-2:] == ["saved", "finished"]
    found = run.events()[0]
    steps = [event for event in found if event["kind"] == "step"]
    assert [event["step"] for event in steps] == [1, 2, 3, 4, 5, 6]
    for event in steps:
        assert event["loss"] > 0 and event["grad_norm"] > 0 and event["learning_rate"] >= 0
        assert event["tokens_per_second"] > 0 and event["memory"] > 10**8 and event["eta"] >= 0
    assert [event["step"] for event in found if event["kind"] == "eval"] == [0, 3, 6]
    for event in found:
        assert set(event) - {"t", "kind"} <= set(names(KINDS[event["kind"]])), event["kind"]
    data = last(found, "data")
    assert data and data["used"] + data["dropped"] + data["held_out"] == 345 and data["format"] == "prompt-completion"
    end = found[-1]
    assert end["loss_after"] < end["loss_before"]


@pytest.mark.slow
def test_no_gradient_is_zero_in_the_first_step_with_checkpointing(llama: Path, store: RunStore) -> None:
    run = train(store, base_model=str(llama), gradient_checkpointing="all", max_steps=2)
    first = next(event for event in run.events()[0] if event["kind"] == "step")
    assert first["grad_norm"] > 0


def test_the_folder_loads_with_plain_peft_without_this_package(bloom: Path, bloom_runs: dict[str, Run]) -> None:
    code = f"""
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base = AutoModelForCausalLM.from_pretrained({str(bloom)!r})
tokenizer = AutoTokenizer.from_pretrained({str(bloom_runs["all"].path)!r})
chat = [{{"role": "user", "content": "My kettle?"}}]
ids = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)
before = base(**ids).logits
model = PeftModel.from_pretrained(base, {str(bloom_runs["all"].path)!r}).eval()
print(float((model(**ids).logits - before).abs().max()) > 1e-3, "qlora_gui" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", timeout=120)
    assert done.stdout.split() == ["True", "False"], done.stderr
    card = (bloom_runs["all"].path / "README.md").read_text()
    assert str(bloom) in card and "| rank | 6 |" in card and "| 6 |" in card
    assert (bloom_runs["all"].path / "chat_template.jinja").read_text() == chat_template.PLAIN


def prepared(base: Path, config: RunConfig) -> Any:
    set_seed(config.seed)
    model = bases.load_model(str(base), config.quant_type, config.double_quant, CPU, torch.float32)
    lora.prepare(model, config)
    return lora.attach(model, config)


def encoded(base: Path, count: int = 24) -> tuple[list[tokenization.Encoded], Any]:
    tokenizer = bases.load_tokenizer(base)
    return tokenization.encode_all(load.load("demo", limit=count).train, Chat(tokenizer), 192)[0], tokenizer


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_the_reloaded_adapter_equals_the_trained_model(bloom: Path, store: RunStore, tmp_path: Path, bias: str) -> None:
    """The adapter is trained and saved here, then loaded by plain PEFT on a fresh base: the same logits."""
    from peft import PeftModel

    config = make(TINY | {"base_model": str(bloom), "bias": bias, "rank": 4, "dropout": 0})
    run = store.create(config)
    examples, tokenizer = encoded(bloom)
    model = prepared(bloom, config)
    start = {name: part.clone() for name, part in model.named_parameters() if name.endswith(".bias")}
    trainer = RunTrainer(
        run=run,
        log=EventLog(run.events_file),
        held_out=[],
        model=model,
        args=arguments(config, str(run.checkpoints), CPU, config.batch_size),
        train_dataset=collate.as_rows(examples),
        data_collator=collate.Collate(tokenizer.pad_token_id),
        processing_class=tokenizer,
    )
    trainer.train()
    moved = [name for name, part in model.named_parameters() if name in start and not torch.equal(part, start[name])]
    # 4 linears and 2 norms a layer, and 2 norms outside
    biases = {"none": 0, "lora_only": 3 * 4, "all": 3 * 6 + 2}[bias]
    assert len(moved) == biases
    model.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(name.endswith(".bias") for name in saved) == biases
    assert all(part.dtype == torch.float32 for part in saved.values())
    fresh = bases.load_model(str(bloom), config.quant_type, config.double_quant, CPU, torch.float32)
    reloaded = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter")).eval()
    batch = collate.Collate(tokenizer.pad_token_id)(collate.as_rows(examples[:4]))
    del batch["tokens"]
    with torch.no_grad():
        expected, got = model.eval()(**batch).logits, reloaded(**batch).logits
    assert (expected - got).abs().max() <= 1e-5 * expected.abs().max()


def test_trained_biases_stay_fp32_under_bf16(bloom: Path) -> None:
    """bitsandbytes would cast a trained bias to the compute dtype in place; ours must not be."""
    config = make(TINY | {"bias": "all"})
    model = bases.load_model(str(bloom), "nf4", True, CPU, torch.bfloat16)
    lora.prepare(model, config)
    model = lora.attach(model, config)
    batch = collate.Collate(0)(collate.as_rows(encoded(bloom, 4)[0]))
    del batch["tokens"]
    model(**batch).loss.backward()
    trained = [(name, part) for name, part in model.named_parameters() if part.requires_grad and name.endswith(".bias")]
    assert len(trained) == 20
    for name, part in trained:
        assert part.dtype == torch.float32 and part.grad is not None and part.grad.abs().max() > 0, name


def test_bitsandbytes_still_casts_trained_biases() -> None:
    """Guards the workaround in models/lora.py: when this fails, upstream mended it and TrainedBiasLinear4bit can go."""
    linear = bnb.nn.Linear4bit(64, 64, bias=True, compute_dtype=torch.bfloat16)
    linear.bias.data = linear.bias.data.float()
    linear.to("cpu")
    linear(torch.zeros(1, 64, dtype=torch.bfloat16))
    assert linear.bias.dtype == torch.bfloat16


def test_the_embedding_is_left_alone(bloom: Path) -> None:
    model = bases.load_model(str(bloom), "nf4", True, CPU, torch.bfloat16)
    lora.prepare(model, make(TINY))
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert model.transformer.ln_f.weight.dtype == torch.float32


@pytest.mark.slow
def test_a_packed_run_trains(llama: Path, bloom: Path, store: RunStore) -> None:
    for base in (llama, bloom):
        run = train(store, base_model=str(base), packing=True)
        found = run.events()[0]
        data, prepared_base = last(found, "data"), last(found, "base")
        assert data and prepared_base and prepared_base["rows"] < data["used"] and prepared_base["chunked_loss"]


@pytest.fixture
def long_run(bloom: Path, store: RunStore) -> Run:
    """A run that has taken at least four of its 4,000 steps and saved a checkpoint, with trained biases."""
    run = store.create(
        make(TINY | {"base_model": str(bloom), "max_steps": 4000, "bias": "all", "name": "long", "warmup_ratio": 0})
    )
    launch.start(run, store)
    deadline = time.monotonic() + 60
    while run.last_checkpoint() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run.state() == "running", run.log_tail()
    return run


def test_stop_saves_an_adapter_and_resume_goes_on(long_run: Run, store: RunStore) -> None:
    long_run.request_stop()
    assert wait_until_ended(long_run, 30) == "stopped" and long_run.has_adapter()
    stopped = long_run.events()[0][-1]
    checkpoint = long_run.last_checkpoint()
    assert checkpoint and checkpoint.name == f"checkpoint-{stopped['step']}"
    offset = long_run.events()[1]
    launch.start(long_run, store, resume=True)
    deadline = time.monotonic() + 60
    while not any(event["kind"] == "step" for event in long_run.events(offset)[0]) and time.monotonic() < deadline:
        time.sleep(0.1)
    long_run.request_stop()
    assert wait_until_ended(long_run, 30) == "stopped"
    fresh = [event for event in long_run.events(offset)[0] if event["kind"] in ("started", "step")]
    assert fresh[0]["resumed"] and fresh[1]["step"] == stopped["step"] + 1


@pytest.mark.slow
def test_a_resumed_run_takes_the_steps_of_an_uninterrupted_one(bloom_runs: dict[str, Run], store: RunStore) -> None:
    whole = bloom_runs["all"]
    broken = Run(store.root / "broken")
    shutil.copytree(whole.path, broken.path)
    shutil.rmtree(broken.checkpoints / "checkpoint-6")
    (broken.path / "adapter_config.json").unlink()
    broken.events_file.unlink()
    launch.start(broken, store, resume=True)
    assert wait_until_ended(broken) == "finished", broken.log_tail()
    steps = {event["step"]: event["loss"] for event in whole.events()[0] if event["kind"] == "step"}
    again = {event["step"]: event["loss"] for event in broken.events()[0] if event["kind"] == "step"}
    assert again == pytest.approx({step: steps[step] for step in (4, 5, 6)}, rel=1e-5)
    weights = [load_file(run.path / "adapter_model.safetensors") for run in (whole, broken)]
    assert all(torch.allclose(part, weights[1][name], atol=1e-5) for name, part in weights[0].items())


def test_a_killed_run_died_and_resumes(long_run: Run, store: RunStore) -> None:
    assert launch.kill(long_run)
    assert long_run.state() == "died" and long_run.log_tail()
    assert launch.find(long_run) is None
    launch.start(long_run, store, resume=True)
    assert long_run.state() == "running"
    long_run.request_stop()
    assert wait_until_ended(long_run, 30) == "stopped"


def test_one_run_at_a_time_and_no_delete_while_live(long_run: Run, store: RunStore, llama: Path) -> None:
    other = store.create(make(TINY | {"base_model": str(llama)}))
    with pytest.raises(launch.UserError, match="'long' is running: stop it"):
        launch.start(other, store)
    with pytest.raises(launch.UserError, match="already running"):
        launch.start(long_run, store)
    with pytest.raises(launch.UserError, match="stop it before deleting"):
        store.delete(long_run)
    long_run.request_stop()
    assert long_run.state() == "stopping"
    wait_until_ended(long_run, 30)
    store.delete(long_run)
    assert not long_run.path.exists()


@pytest.mark.slow
def test_a_stop_before_the_first_step_leaves_no_adapter(bloom: Path, store: RunStore) -> None:
    run = store.create(make(TINY | {"base_model": str(bloom)}))
    launch.start(run, store)
    run.request_stop()
    assert wait_until_ended(run, 60) == "stopped"
    if run.events()[0][-1]["step"] == 0:
        assert not run.has_adapter() and run.events()[0][-1]["message"]


def test_an_unfinished_line_and_unknown_kinds_do_not_disturb(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append("step", step=1, max_steps=2, loss=float("nan"))
    log.append("from-the-future", x=1)
    with path.open("a") as file:
        file.write('{"t": 1, "kind": "st')
    found, offset = event_file.read(path)
    assert [event["kind"] for event in found] == ["step", "from-the-future"] and found[0]["loss"] is None
    assert event_file.read(path, offset) == ([], offset)
    EventLog(path).append("stopped")
    found = event_file.read(path, offset)[0]
    assert [event["kind"] for event in found] == ["skipped", "stopped"] and found[0]["count"] == 1
    assert json.loads(path.read_text().splitlines()[-1])["kind"] == "stopped"
