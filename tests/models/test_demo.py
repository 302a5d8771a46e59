"""The demo base for real: the README's one command gives an adapter that is visibly and measurably better; one whose
answers were shuffled is not; a report of both."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_gui import diagnostics
from qlora_gui.data import load
from qlora_gui.models import demo
from qlora_gui.runs.store import RunStore
from tests.commands import ROOT, evaluated, headless
from tests.conftest import SHARED_DATA, need, train
from tests.export import llama_cpp

pytestmark = [pytest.mark.demo, pytest.mark.timeout(2700)]  # minutes, on one core of a small machine
KNOBS = ["--gradient-accumulation", "1", "--gradient-checkpointing", "none", "--dropout", "0", "--eval-steps", "1000"]
KNOBS += ["--save-steps", "1000", "--max-length", "256", "--batch-size", "8", "--probe-prompts", "0", "--answers", "0"]


@pytest.mark.slow
def test_an_interrupted_preparation_leaves_no_half_model(tmp_path: Path) -> None:
    """Killed in the middle of the conversion, then made whole by the next attempt."""
    code = "from qlora_gui.models import demo; demo.ensure(lambda text: print(text, flush=True))"
    env = os.environ | {"QLORA_GUI_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=env)
    assert child.stdout
    for line in child.stdout:
        if line.startswith(("Converting", "Downloading Hugging")):
            break
    time.sleep(2)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "models" / "demo").exists()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=900)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["demo", "demo.lock"]
    assert (tmp_path / "models" / "demo" / "model.safetensors").stat().st_size > 200_000_000


def test_a_damaged_download_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_GUI_CACHE", str(tmp_path))
    monkeypatch.setattr(demo, "GGUF_SHA256", "0" * 64)
    monkeypatch.setattr(demo.hub, "answers", lambda: False)
    with pytest.raises(demo.UserError, match="its checksum is wrong"):
        demo.ensure(lambda text: None)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["demo.lock"]


def test_no_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_GUI_CACHE", str(tmp_path))
    monkeypatch.setattr(demo.hub, "answers", lambda: False)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with pytest.raises(demo.UserError, match="cannot be downloaded"):
        demo.ensure(lambda text: None)


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The README's headless line; gives its working directory and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, str(ROOT / "app.py"), "--headless-train", "--name", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=2400)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


@pytest.mark.slow
def test_the_demo_learns_its_skill(demo_run: tuple[Path, str]) -> None:
    folder, printed = demo_run
    end = RunStore(folder / "adapters").get("demo").events()[0][-1]
    assert end["kind"] == "finished" and end["loss_after"] <= 0.7 * end["loss_before"]
    assert f"Held-out loss: base {end['loss_before']:.4f}" in printed
    answers = [line.removeprefix("Adapter: ") for line in printed.splitlines() if line.startswith("Adapter: {")]
    base = [line for line in printed.splitlines() if line.startswith("Base: ")]
    assert len(answers) == len(base) == 3
    for answer in answers:
        assert set(json.loads(answer)) == {"topic", "product", "order", "urgency", "summary"}
    assert not any(line.startswith("Base:    {") for line in base)


@pytest.mark.slow
def test_the_demo_adapter_answers_headless(demo_run: tuple[Path, str]) -> None:
    folder, _ = demo_run
    (folder / "prompts.txt").write_text("My blender leaks, order B-2231, and my guests come tomorrow!\n")
    words = ["--headless-compare", "--adapters", "adapters/demo", "--prompts", "prompts.txt", "--out", "out.json"]
    command = [sys.executable, str(ROOT / "app.py"), *words, "--max-new-tokens", "64"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=900)
    assert done.returncode == 0, done.stderr
    out = json.loads((folder / "out.json").read_text())
    assert [column["adapter"] is None for column in out["columns"]] == [True, False]
    [asked] = out["prompts"]
    assert json.loads(asked["answers"][1])["order"] == "B-2231"


@pytest.mark.slow
def test_the_demo_adapter_is_judged_better(demo_run: tuple[Path, str]) -> None:
    """On the rows that the demo set brings to measure on; the diagnostics find nothing bad."""
    folder, _ = demo_run
    [found] = evaluated(folder, "adapters/demo")
    assert found["loss"]["rows"] == 44 and found["loss"]["high"] < 0 and found["loss"]["p_holm"] < 0.01
    assert found["verdict"]["kind"] == "better" and found["verdict"]["text"].startswith("Better on the task: loss -")
    assert found["dependence"]["adapter"] > found["dependence"]["base"] / 2
    assert not _bad_findings(folder, "demo", found)


@pytest.mark.slow
@torch.no_grad()
def test_llama_cpp_answers_as_the_demo_adapter_does(demo_run: tuple[Path, str]) -> None:
    """20 held-out prompts: the GGUF file in llama.cpp gives the greedy answers of the merged model in transformers.

    An answer is the greedy one if every token of it is the likeliest after those before it, and an end mark after the last.
    """
    folder, _ = demo_run
    words = ["--headless-export", "--adapters", "adapters/demo", "--onto", "trained"]
    printed = headless(folder, *words, "--to", "gguf", "--out", "in-gguf", "--rows", "4", "--max-new-tokens", "32")
    assert "4 of 4 answers identical" in printed
    headless(folder, *words, "--to", "merged", "--dtype", "fp16", "--out", "merged", "--rows", "0")
    model = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    questions = [row["messages"][:1] for row in load.load("demo").held_out[:20]]
    asked = [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in questions]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in asked]
    answers = llama_cpp.ask(folder / "in-gguf" / "demo-f16.gguf", prompts=prompts, tokens=80)["answers"]
    end = model.generation_config.eos_token_id
    ends = {end} if isinstance(end, int) else {*end}
    identical = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        likeliest = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 :].argmax(-1).tolist()
        identical += likeliest[:-1] == answer and (likeliest[-1] in ends or len(answer) == 80)
    assert identical >= 19, f"{identical} of 20: near ties may fall otherwise, as llama.cpp rounds to fp16 on its way"


@pytest.mark.slow
def test_a_report_of_real_runs(demo_run: tuple[Path, str], bloom: Path) -> None:
    """The demo's, and two of a small BLOOM with two kinds of biases."""
    folder, _ = demo_run
    for bias in ("none", "all"):
        train(RunStore(folder / "adapters"), base_model=str(bloom), name=f"bloom-{bias}", bias=bias)
    headless(folder, "--headless-evaluate", "--adapters", "adapters/bloom-all", "adapters/bloom-none", "--rows", "20")
    for name in ("report.md", "report.html"):
        headless(folder, "--headless-report", "--out", name)
        text = (folder / name).read_text(encoding="utf-8")
        assert all(run in text for run in ("demo", "bloom-none", "bloom-all")) and "Better on the task: loss -" in text


@pytest.mark.slow
def test_shuffled_answers_are_not_judged_better(tmp_path: Path) -> None:
    """Its loss may fall, for it learned what answers look like; that they answer nothing is seen, and said why."""
    need(SHARED_DATA.exists(), "the shared data set is not beside this checkout")
    rows = json.loads(SHARED_DATA.read_text(encoding="utf-8"))[:400]
    answers = [row["output"] for row in rows]
    shuffled = [row | {"output": answer} for row, answer in zip(rows, answers[7:] + answers[:7], strict=True)]
    (tmp_path / "shuffled.json").write_text(json.dumps(shuffled))
    told = ["--dataset", "shuffled.json", "--name", "shuffled", "--rank", "8", "--eval-fraction", "0.02"]
    headless(tmp_path, "--headless-train", *told, "--epochs", "1", *KNOBS)
    held_out = json.loads(SHARED_DATA.read_text(encoding="utf-8"))[1000:1100]
    (tmp_path / "held-out.json").write_text(json.dumps(held_out))
    [found] = evaluated(tmp_path, "adapters/shuffled", "--data", "held-out.json", "--max-new-tokens", "16")
    assert found["loss"]["rows"] == 100 and found["verdict"]["kind"] in ("worse", "unclear"), found["verdict"]
    assert found["dependence"]["high"] < 0
    run = RunStore(tmp_path / "adapters").get("shuffled")
    said = " ".join(f"{one.evidence} {one.why}" for one in diagnostics.after(run.config(), run.history(), found))
    assert "prompt" in said
    headless(tmp_path, "--headless-report", "--out", "report.md")
    assert "ignores prompts" in (tmp_path / "report.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_one_epoch_of_the_shared_data_is_judged_better(tmp_path: Path) -> None:
    """A tenth of an hour of two cores: 100 rows that were held out, an interval that excludes zero, nothing bad found."""
    need(SHARED_DATA.exists(), "the shared data set is not beside this checkout")
    headless(tmp_path, "--headless-train", "--dataset", str(SHARED_DATA), "--name", "shared", "--epochs", "1", *KNOBS)
    end = RunStore(tmp_path / "adapters").get("shared").events()[0][-1]
    assert end["loss_after"] <= 0.75 * end["loss_before"]
    [found] = evaluated(tmp_path, "adapters/shared", "--max-new-tokens", "16")
    assert found["loss"]["rows"] == 100 and found["loss"]["high"] < 0 and found["loss"]["p_holm"] < 0.01
    assert found["verdict"]["kind"] == "better" and found["verdict"]["text"].startswith("Better on the task: loss -0.")
    assert found["dependence"]["adapter"] > found["dependence"]["base"] / 2
    assert not _bad_findings(tmp_path, "shared", found)


def _bad_findings(folder: Path, name: str, found: dict[str, Any]) -> list[diagnostics.Finding]:
    run = RunStore(folder / "adapters").get(name)
    return [one for one in diagnostics.after(run.config(), run.history(), found) if one.level == "bad"]
