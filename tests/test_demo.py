"""The demo model for real: one command, minutes on two cores, and an adapter that is visibly better."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qlora_gui.model import demo
from qlora_gui.runs.store import RunStore
from tests.commands import evaluated

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.demo, pytest.mark.timeout(2700)]  # minutes, on one core of a small machine


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
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=2400)
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


def test_the_demo_adapter_is_judged_better(demo_run: tuple[Path, str]) -> None:
    """On the rows that the demo set brings to measure on."""
    [found] = evaluated(demo_run[0], "adapters/demo")
    assert found["loss"]["rows"] == 44 and found["loss"]["high"] < 0
    assert found["verdict"]["kind"] == "better", found["verdict"]
