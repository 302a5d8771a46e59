"""Exports from the command line, for real: proven to be the same model, whole or not there, and told what is wrong."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_gui import locks
from qlora_gui.export import job
from qlora_gui.runs.store import Run
from tests.commands import ROOT

APP = [sys.executable, str(ROOT / "app.py")]


def exported(folder: Path, adapter: Path, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [*APP, "export", "--adapters", str(adapter), "--rows", "4", "--max-new-tokens", "8", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def test_a_merged_model_is_proven_and_loads_alone(bloom_runs: dict[str, Run], tmp_path: Path) -> None:
    """`bias=all` on the small BLOOM; the folder says what it is made of, and transformers needs nothing else."""
    run = bloom_runs["all"]
    done = exported(tmp_path, run.path, "--to", "merged", "--out", "out/merged")
    assert "Held-out loss" in done.stdout and "as trained" in done.stdout and "of 4 answers identical" in done.stdout
    out = tmp_path / "out" / "merged"
    assert [path.name for path in (tmp_path / "out").iterdir() if not path.name.endswith(".lock")] == ["merged"]
    record = json.loads((out / job.RECORD).read_text())
    measured = record["measured"]
    assert measured["rows"] == 4 and abs(measured["trained"] - measured["exported"]) < 0.1 and measured["kl"] < 1
    model = AutoModelForCausalLM.from_pretrained(out, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.dtype == torch.bfloat16 and model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(run.path).chat_template
    assert len(model(input_ids=torch.arange(1, 9)[None]).logits) == 1
    card = (out / "README.md").read_text()
    assert record["adapter"]["sha256"] in card and record["base"]["fingerprint"] in card and "| 0 |" in card
    assert done.stdout.splitlines()[0] in card


def test_onto_the_trained_weights_the_answers_are_the_trained_ones(bloom_runs: dict[str, Run], tmp_path: Path) -> None:
    exported(tmp_path, bloom_runs["lora_only"].path, "--to", "merged", "--onto", "trained", "--out", "m")
    measured = json.loads((tmp_path / "m" / job.RECORD).read_text())["measured"]
    assert abs(measured["trained"] - measured["exported"]) < 0.01 and measured["kl"] < 0.005


def test_a_gguf_file_has_its_modelfile_and_is_read_by_transformers(bloom_runs: dict[str, Run], tmp_path: Path) -> None:
    run = bloom_runs["all"]
    done = exported(tmp_path, run.path, "--to", "gguf", "--type", "q8_0", "--out", "g")
    assert "Held-out loss" in done.stdout
    names = {path.name for path in (tmp_path / "g").iterdir()}
    assert names == {f"{run.id}-q8_0.gguf", "Modelfile", "README.md", job.RECORD}
    assert (tmp_path / "g" / "Modelfile").read_text().startswith(f"FROM ./{run.id}-q8_0.gguf\n")


def test_a_lora_file_of_trained_biases_is_refused(bloom_runs: dict[str, Run], tmp_path: Path) -> None:
    done = exported(tmp_path, bloom_runs["all"].path, "--to", "gguf-lora", "--out", "l", expect=2)
    assert "A LoRA file cannot hold" in done.stderr and not (tmp_path / "l").exists()
    done = exported(tmp_path, bloom_runs["none"].path, "--to", "gguf-lora", "--out", "l")
    assert "LoRA pairs are the adapter's" in done.stdout and "ADAPTER ./" in (tmp_path / "l" / "Modelfile").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--to", "merged"], "needs --out"),
        (["--out", "x"], "needs --to"),
        (["--to", "merged", "--out", "there"], "is there already: delete it, or name another with --out"),
        (["--to", "onnx", "--out", "x"], "invalid choice: 'onnx'"),
        (["--to", "merged", "--out", "x", "--prompts", "gone.txt"], "The prompts file 'gone.txt' cannot be read"),
        (
            ["--to", "merged", "--out", "x", "--prompts", "p", "--max-new-tokens", "0"],
            "Prompts without answers compare nothing",
        ),
        (["--to", "gguf-lora", "--out", "x", "--prompts", "p"], "A LoRA file is read back whole and asked nothing"),
        (["--to", "merged", "--out", "x", "--rows", "-1"], "A proof on -1 rows"),
        (["--to", "merged", "--out", "x", "--base", "nowhere/at-all"], "nowhere/at-all"),
    ],
)
def test_what_is_wrong_is_one_sentence(words: list[str], told: str, bloom_runs: dict[str, Run], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    command = [*APP, "export", "--adapters", str(bloom_runs["none"].path), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "x").exists()


def test_an_adapter_from_elsewhere_is_merged_and_said_not_to_be_compared(llama: Path, tmp_path: Path) -> None:
    from tests.adapters import made_adapter

    adapter = made_adapter(llama, tmp_path / "adapter", 1, r=4, target_modules=["q_proj"])
    done = exported(tmp_path, adapter, "--to", "merged", "--out", "m")
    assert "Not compared with the trained model: the adapter is not a run of this program" in done.stdout
    assert "Prompts to compare on can be given on the command line (--prompts FILE)." in done.stdout
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m").dtype == torch.bfloat16


def test_a_second_export_of_the_same_is_told(bloom_runs: dict[str, Run], tmp_path: Path) -> None:
    with locks.Lock(tmp_path / ".m.lock"):
        done = exported(tmp_path, bloom_runs["none"].path, "--to", "merged", "--out", "m", expect=2)
    assert "is being made by another process: wait for it" in done.stderr and not (tmp_path / "m").exists()


@pytest.mark.slow
def test_killed_at_any_moment_nothing_looks_whole(bloom_runs: dict[str, Run], tmp_path: Path) -> None:
    """20 kills of everything at random moments; then it is made, whole, over what they left."""
    command = [
        *APP,
        "export",
        "--adapters",
        str(bloom_runs["none"].path),
        "--to",
        "merged",
        "--out",
        "m",
        "--rows",
        "4",
    ]
    began = time.monotonic()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    takes = time.monotonic() - began
    chance = random.Random(0)
    survived = 0
    for _ in range(20):
        shutil.rmtree(tmp_path / "m", ignore_errors=True)
        child = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(chance.uniform(0.3, 1.1) * takes)
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            survived += 1
        child.wait()
        out = tmp_path / "m"
        assert not out.exists() or job.read(out), sorted(out.iterdir())
        assert not any(path.is_dir() and not path.name.startswith(".") and path != out for path in tmp_path.iterdir())
    shutil.rmtree(tmp_path / "m", ignore_errors=True)
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert job.read(tmp_path / "m") and not (tmp_path / ".m.part").exists()


def test_ctrl_c_leaves_nothing(bloom_runs: dict[str, Run], tmp_path: Path) -> None:
    command = [*APP, "export", "--adapters", str(bloom_runs["none"].path), "--to", "merged", "--out", "m"]
    child = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / ".m.part").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGINT)
    child.wait(60)
    assert child.returncode == 130
    deadline = time.monotonic() + 20
    while (tmp_path / ".m.part").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not (tmp_path / ".m.part").exists() and not (tmp_path / "m").exists()


def test_a_comparison_that_fails_leaves_the_model(bloom_runs: dict[str, Run], tmp_path: Path) -> None:
    """Its data is gone: said, and the export is there."""
    run = Run(Path(shutil.copytree(bloom_runs["none"].path, tmp_path / "run")))
    manifest = json.loads((run.path / "run.json").read_text())
    manifest["config"]["dataset"] = str(tmp_path / "gone.jsonl")
    (run.path / "run.json").write_text(json.dumps(manifest))
    done = exported(tmp_path, run.path, "--to", "merged", "--out", "m")
    assert "Not compared with the trained model" in done.stdout and (tmp_path / "m" / "model.safetensors").exists()
