"""The demo model for real: one command, minutes on two cores, and an adapter that is visibly better."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from qlora_gui.judge import doctor
from qlora_gui.model import demo
from qlora_gui.runs.store import RunStore
from tests.conftest import SHARED_DATA, need, train

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.demo


def test_an_interrupted_preparation_leaves_no_half_model(tmp_path: Path) -> None:
    """Killed in the middle of the conversion, then made whole by the next attempt."""
    code = "from qlora_gui.model import demo; demo.ensure(lambda text: print(text, flush=True))"
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=300)
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
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


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


def test_the_demo_adapter_answers_headless(demo_run: tuple[Path, str]) -> None:
    folder, _ = demo_run
    (folder / "prompts.txt").write_text("My blender leaks, order B-2231, and my guests come tomorrow!\n")
    words = ["--headless-compare", "--adapters", "adapters/demo", "--prompts", "prompts.txt", "--out", "out.json"]
    command = [sys.executable, str(ROOT / "app.py"), *words, "--max-new-tokens", "64"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    out = json.loads((folder / "out.json").read_text())
    assert [column["adapter"] is None for column in out["columns"]] == [True, False]
    [asked] = out["prompts"]
    assert json.loads(asked["answers"][1])["order"] == "B-2231"


KNOBS = ["--epochs", "1", "--gradient-accumulation", "1", "--gradient-checkpointing", "none", "--dropout", "0"]
KNOBS += ["--eval-steps", "1000", "--save-steps", "1000", "--max-length", "256", "--batch-size", "8", "--answers", "0"]


def headless(folder: Path, *words: str, seconds: float = 1500) -> str:
    command = [sys.executable, str(ROOT / "app.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=seconds)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def real_runs(tmp_path_factory: pytest.TempPathFactory, bloom: Path) -> Path:
    """Four real runs in one store: the demo base on the shared data (rank 16), and with its answers shuffled (rank 8);
    a small BLOOM with two kinds of biases. Gives the working directory."""
    need(SHARED_DATA.exists(), "the shared data set is not beside this checkout")
    folder = tmp_path_factory.mktemp("judged")
    headless(folder, "--headless-train", "--dataset", str(SHARED_DATA), "--name", "shared", *KNOBS)
    rows = json.loads(SHARED_DATA.read_text(encoding="utf-8"))[:400]
    answers = [row["output"] for row in rows]
    shuffled = [row | {"output": answer} for row, answer in zip(rows, answers[7:] + answers[:7], strict=True)]
    (folder / "shuffled.json").write_text(json.dumps(shuffled))
    told = ["--dataset", "shuffled.json", "--name", "shuffled", "--rank", "8", "--eval-fraction", "0.02"]
    headless(folder, "--headless-train", *told, *KNOBS)
    store = RunStore(folder / "adapters")
    for bias in ("none", "all"):
        train(store, base_model=str(bloom), name=f"bloom-{bias}", bias=bias)
    return folder


def evaluated(folder: Path, *words: str) -> list[dict[str, Any]]:
    headless(folder, "--headless-evaluate", "--adapters", *words, "--out", "out.json", "--max-new-tokens", "64")
    found: list[dict[str, Any]] = json.loads((folder / "out.json").read_text())["evaluations"]
    return found


def test_one_epoch_of_the_shared_data_lowers_the_held_out_loss(real_runs: Path) -> None:
    end = RunStore(real_runs / "adapters").get("shared").events()[0][-1]
    assert end["loss_after"] <= 0.75 * end["loss_before"]


def test_the_real_adapter_is_judged_better(real_runs: Path) -> None:
    """100 rows that were held out: better, with an interval that excludes zero; the doctor finds nothing bad."""
    [found] = evaluated(real_runs, "adapters/shared")
    assert found["loss"]["rows"] == 100 and found["loss"]["high"] < 0 and found["loss"]["p_holm"] < 0.01
    assert found["verdict"]["kind"] == "better" and found["verdict"]["text"].startswith("Better on the task: loss -0.")
    assert found["dependence"]["adapter"] > found["dependence"]["base"] / 2
    run = RunStore(real_runs / "adapters").get("shared")
    findings = doctor.after(run.config(), run.events()[0], found)
    assert not [one for one in findings if one.level == "bad"], findings


def test_shuffled_answers_are_not_judged_better(real_runs: Path) -> None:
    """Its loss may fall, for it learned what answers look like; that they answer nothing is seen, and said why."""
    rows = json.loads(SHARED_DATA.read_text(encoding="utf-8"))[1000:1100]
    (real_runs / "held-out.json").write_text(json.dumps(rows))
    [found] = evaluated(real_runs, "adapters/shuffled", "--data", "held-out.json")
    assert found["loss"]["rows"] == 100 and found["verdict"]["kind"] in ("worse", "unclear"), found["verdict"]
    assert found["dependence"]["high"] < 0
    run = RunStore(real_runs / "adapters").get("shuffled")
    said = " ".join(f"{one.evidence} {one.why}" for one in doctor.after(run.config(), run.events()[0], found))
    assert "prompt" in said


def test_a_report_of_real_runs(real_runs: Path) -> None:
    headless(
        real_runs, "--headless-evaluate", "--adapters", "adapters/bloom-all", "adapters/bloom-none", "--rows", "20"
    )
    for name in ("report.md", "report.html"):
        headless(real_runs, "--headless-report", "--out", name)
        text = (real_runs / name).read_text(encoding="utf-8")
        assert all(run in text for run in ("shared", "shuffled", "bloom-none", "bloom-all"))
        assert "Better on the task: loss -0." in text and "ignores prompts" in text
