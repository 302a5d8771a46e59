"""The benchmark scripts are whole: the GPU one runs dry on a CPU, the others say what they would do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *words], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("script", ["train_speed.py", "gpu.py", "page_start.py"])
def test_says_how_it_is_called(script: str) -> None:
    assert "usage" in run(script, "--help")


@pytest.mark.slow
def test_gpu_runs_dry_and_loses_no_part(tmp_path: Path) -> None:
    run("gpu.py", "--dry-run", "--out", str(tmp_path / "gpu.json"))
    result = json.loads((tmp_path / "gpu.json").read_text())
    parts = result["parts"]
    assert set(parts) == {"needs", "experiments", "fit", "speed", "unsloth", "decode"}
    assert all(line["of_limit"] > 0 and line["bytes_a_token"] > 0 for line in parts["decode"]["lines"])
    assert parts["needs"]["summary"]["versions"]["bitsandbytes"]
    assert all(line["seconds"] for line in parts["experiments"]["lines"])
    assert all(line["planned"] > 0 and line["simulated"] > 0 for line in parts["fit"]["lines"])
    assert {line["way"] for line in parts["speed"]["lines"] if "tokens_per_second" in line} >= {"ours", "trainer"}
    assert {line["rows"] for line in parts["decode"]["lines"]} == {1, 3}


def test_a_contestant_is_a_tool_and_a_number_format() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "train_speed.py"), "--contestants", "trainer:auto"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "auto is for ours only" in done.stderr
