"""The check: a real one on this machine, and what it says where something is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_gui import hardware, hub, nvidia
from qlora_gui.check import client, machine, numbers
from qlora_gui.check.lines import Line, for_an_issue, verdict, without_names
from qlora_gui.check.numbers import Numbers
from qlora_gui.cli import main
from qlora_gui.config import make
from qlora_gui.memory import budget, known_models, run_time
from qlora_gui.memory.estimate import plan
from qlora_gui.memory.run_time import LayerSpeed, Speed
from qlora_gui.runs.store import RunStore
from qlora_gui.ui.train import check_panel

ROOT = Path(__file__).parents[2]
KEYS = (
    "system torch device disk hub browser bitsandbytes llama-trained bloom-trained out-of-memory speed llama-losses "
    "llama-gradients llama-text bloom-losses bloom-gradients bloom-text repeats"
).split()


@pytest.mark.slow
def test_a_real_check_passes_here_and_leaves_only_the_speed(tmp_path: Path) -> None:
    """Both small models trained by the real trainer, against fp32; a run that met a limit; the estimate that follows."""
    cache = tmp_path / "cache"
    cache.mkdir()
    environment = os.environ | {"QLORA_GUI_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "app.py"), "--headless-check", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=900)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    found = {line["key"]: line for line in lines[:-1]}
    assert list(found.keys() & set(KEYS)) and set(KEYS) <= found.keys(), found.keys()
    assert not [line for line in lines[:-1] if line["state"] == "failed"]
    # What a step needs besides its rows is not the same on every processor: 4, or 2.
    assert re.search(r"went on with micro-batch [24] of 8", found["out-of-memory"]["text"])
    assert lines[-1]["failed"] is False and "checks passed" in lines[-1]["verdict"]
    pasted = lines[-1]["for_an_issue"]
    assert str(Path.home()) + "/" not in pasted and str(tmp_path) not in pasted and "Llama: three steps" in pasted
    assert sorted(path.name for path in cache.iterdir() if path.name != "torch_view.json") == ["speed.json"]
    assert not (tmp_path / "adapters").exists()
    fit = [sys.executable, str(ROOT / "app.py"), "--headless-fit", "--json"]
    told = json.loads(subprocess.run(fit, capture_output=True, text=True, cwd=tmp_path, env=environment).stdout)
    assert told["time"]["seconds"] > 0 and told["time"]["tokens"] > 10_000


GRADS = {"a": torch.ones(4), "b": torch.arange(4.0)}
GOOD = Numbers([5.0, 4.0], [5.0, 4.5], 4.0, GRADS, 10.0, {"a": torch.arange(4)}, [[1, 2], [3]], True, "float16")


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, []),
        ({"steps": [5.0, 4.2]}, ["x-losses"]),
        ({"held_out": [5.0, float("nan")]}, ["x-losses"]),
        ({"grads": {"a": GRADS["a"], "b": -GRADS["b"]}}, ["x-gradients"]),
        ({"grads": {"a": GRADS["a"]}}, ["x-gradients"]),
        ({"grads": {"a": GRADS["a"], "b": GRADS["b"] * float("nan")}}, ["x-gradients"]),
        ({"loss": 4.4}, ["x-gradients"]),
        ({"answers": [[1, 2], []]}, ["x-text"]),
    ],
)
def test_numbers_that_rounding_does_not_explain_fail(change: dict[str, Any], failed: list[str]) -> None:
    cpu = replace(GOOD, dtype="float32")
    found = list(numbers.lines("x", replace(GOOD, **change), cpu, [0.0, 0.5]))
    assert [line.key for line in found if line.state == "failed"] == failed


def test_another_text_fails_only_where_no_near_tie_explains_it() -> None:
    cpu = replace(GOOD, dtype="float32", answers=[[1, 2], [4]])
    near, far = (list(numbers.lines("x", GOOD, cpu, [0.0, lead]))[-1] for lead in (5e-3, 5e-2))
    assert near.state == "ok" and "near ties" in near.text and far.state == "failed"


def test_what_only_a_card_can_tell_has_its_line() -> None:
    cpu = {"x": replace(GOOD, dtype="float32")}
    same = {line.key: line for line in numbers.kernels({"x": GOOD}, cpu, "gpu")}
    assert {key: line.state for key, line in same.items()} == {"repeats": "ok", "quantized": "ok", "fp16": "ok"}
    other = replace(GOOD, repeats=False, largest=30_000.0, packed={"a": torch.tensor([0, 1, 2, 4])})
    found = {line.key: line for line in numbers.kernels({"x": other}, cpu, "gpu")}
    assert {key: line.state for key, line in found.items()} == {
        "repeats": "warning",
        "quantized": "failed",
        "fp16": "warning",
    }
    assert "1 of 4 bytes" in found["quantized"].text and "30,000 of 65,504" in found["fp16"].text


def test_a_text_for_everybody_has_no_private_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "marialuise")
    monkeypatch.setattr("platform.node", lambda: "marias-laptop.example.org")
    text = (
        "FileNotFoundError: '/home/marialuise/my secret/x.so' and /opt/other/lib/libcudart.so.13, marialuise@marias-laptop "
        "hf_abcdefghijklmnopqrstuv GPU-0123abcd-4567-89ab-cdef-0123456789ab C:\\Users\\marialuise\\x.dll 3/4 tokens/s"
    )
    said = without_names(text)
    for private in ("marialuise", "marias", "secret/", "hf_abc", "0123abcd", "/opt"):
        assert private not in said, said
    assert "libcudart.so.13" in said and "3/4 tokens/s" in said


def test_a_worker_that_dies_is_a_failed_line(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dies.py").write_text(
        "import json, os, signal\nprint(json.dumps({'key': 'a', 'state': 'ok', 'text': 'one'}), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(client, "MODULE", "dies")
    monkeypatch.setattr(machine, "lines", lambda store: iter([Line("torch", "ok", "torch 2.13.")]))
    assert main.main(["--headless-check", "--adapters-dir", str(store.root)]) == 1
    said = capsys.readouterr().out
    assert f"ended by signal {signal.SIGSEGV.value}" in said and "2 of 5 checks failed" in said
    assert "To paste into an issue" in said


def test_no_check_while_a_run_trains(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    run = store.create(make({"name": "busy"}))
    with run.lock():
        assert main.main(["--headless-check", "--adapters-dir", str(store.root)]) == 2
    assert "The run 'busy' is running: check the machine when it has ended." in capsys.readouterr().err


def test_what_is_short_is_a_warning_with_a_remedy(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    card = hardware.Device("Tesla T4", "cuda", 16 << 30, 4 << 30)
    monkeypatch.setattr(hardware, "devices", lambda: [card])
    monkeypatch.setattr(hardware, "holders", lambda: [nvidia.Holder(7, "/usr/bin/python3", 12 << 30)])
    monkeypatch.setattr(hardware, "trouble", lambda: "This machine's GPU (Tesla T4) is not used, for so.")
    monkeypatch.setattr(hub, "answers", lambda: False)
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1 << 30})())
    found = {line.key: line for line in machine.lines(store)}
    assert found["torch"].state == "failed" and "is not used, for so" in found["torch"].text
    assert {found[key].state for key in ("memory", "disk", "hub", "browser")} == {"warning"}
    assert "python3 (12.0 GB)" in found["holders"].text and "/usr/bin" not in found["holders"].text
    assert all(found[key].fix for key in ("memory", "disk", "hub", "browser"))
    assert "warning" in verdict(list(found.values()), 3) and "1 of" in verdict(list(found.values()), 3)


def test_an_estimate_follows_from_the_speed_of_a_layer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLORA_GUI_CACHE", str(tmp_path))
    config = make({"base_model": "bigscience/bloom-7b1", "dataset": "demo", "max_steps": 10, "epochs": 1})
    shape = known_models.find(config, ask=False)
    here = budget.of_cpu()
    assert run_time.estimate(config, shape, plan(config, shape, here)) is None
    run_time.keep(
        Speed(
            "cpu", "bfloat16", "2.13", (LayerSpeed(576, 10**6, 10_000.0, 0.0), LayerSpeed(4096, 2 * 10**8, 320.0, 0.0))
        )
    )
    found = run_time.estimate(config, shape, plan(config, shape, here, checkpointing="none"))
    assert found is not None
    weights = shape.linear_weights + shape.vocab * shape.hidden
    assert found.tokens_per_second == pytest.approx(320 * 2e8 / weights)
    assert found.step_tokens == 16 * 512 and found.step_seconds == pytest.approx(16 * 512 / found.tokens_per_second)
    assert found.tokens and found.seconds == pytest.approx(found.tokens / found.tokens_per_second, rel=1e-3)
    again = run_time.estimate(config, shape, plan(config, shape, here, checkpointing="all"))
    assert again is not None and 1.4 < found.tokens_per_second / again.tokens_per_second < 1.5
    assert (
        run_time.estimate(config, shape, plan(config, shape, budget.card(16))) is None
    )  # another card was not measured
    assert str(found).startswith("Time: about ") and "tokens/s" in str(found)
    assert LayerSpeed(4096, 1, 100.0, 1.0).at(100) == pytest.approx(50)
    hub_data = config.model_copy(update={"dataset": "owner/rows"})
    unknown = run_time.estimate(hub_data, shape, plan(hub_data, shape, here))
    assert unknown is not None and unknown.seconds is None and "per step of full rows" in str(unknown)
    run_time.path().write_text('{"cpu": {"layers": []}}')
    assert run_time.known("cpu") is None


def test_the_page_shows_lines_without_private_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "marialuise")
    found = [Line("a", "ok", "one <b>"), Line("b", "failed", "two of marialuise", "Do this.")]
    assert "Still checking" in check_panel.lines(found)
    shown = check_panel.lines(found, verdict(found, 5))
    assert (
        "marialuise" not in shown and "&lt;b&gt;" in shown and "1 of 2 checks failed" in shown and "note bad" in shown
    )
    assert "marialuise" not in for_an_issue(found, "")
