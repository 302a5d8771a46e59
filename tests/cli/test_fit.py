"""`python app.py --headless-fit` as people call it: text, JSON, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_models import NEOX

ROOT = Path(__file__).parents[2]
EXPERIMENT = ["--preset", "experiment-2", "--batch-size", 4, "--max-length", 1024]


def fit(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "app.py"), "--headless-fit", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)


def test_experiment_2_as_text(tmp_path: Path) -> None:
    stock = fit(*EXPERIMENT, "--memory", "16GB", "--way", "stock", cwd=tmp_path)
    assert stock.returncode == 3 and "Does not fit: " in stock.stdout and "GB too much." in stock.stdout
    ours = fit(*EXPERIMENT, "--memory", "16GB", cwd=tmp_path)
    assert ours.returncode == 0 and "Fits: " in ours.stdout, ours.stdout + ours.stderr
    for label in ("4-bit weights", "Checkpoint boundaries", "Framework and context", "Peak, in"):
        assert label in ours.stdout


def test_json_says_the_same_and_names_the_changes(tmp_path: Path) -> None:
    done = fit(*EXPERIMENT, "--memory", "7", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert done.returncode == 3 and told["verdict"] == "does not fit"
    assert told["total"] == sum(told["terms"].values()) > told["free"] == 7 * 2**30
    assert told["rows"] == 4 and told["length"] == 1024 and told["gradient_checkpointing"] == "all"
    assert all(change["saves"] > 0 and change["knobs"] and change["text"] for change in told["changes"])


def test_tight_counts_as_fits_and_is_said(tmp_path: Path) -> None:
    words = [*EXPERIMENT, "--gradient-checkpointing", "all"]
    total = json.loads(fit(*words, "--json", "--memory", "16GB", cwd=tmp_path).stdout)["total"]
    done = fit(*words, "--memory", f"{total // 2**20 + 1}MB", cwd=tmp_path)
    assert done.returncode == 0 and "Fits, but tightly" in done.stdout


def test_a_simulated_step_stands_beside_the_closed_form(llama: Path, tmp_path: Path) -> None:
    words = ["--base-model", llama, "--memory", "8GB", "--gradient-checkpointing", "all", "--json"]
    closed = json.loads(fit(*words, cwd=tmp_path).stdout)
    found = json.loads(fit(*words, "--simulate", cwd=tmp_path).stdout)
    assert found["total"] == sum(found["terms"].values()) == closed["total"] + found["terms"]["simulation"]
    assert abs(found["terms"]["simulation"]) < 0.2 * closed["total"]


@pytest.mark.slow
def test_an_architecture_that_the_closed_form_does_not_know_is_simulated(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NEOX))
    done = fit("--base-model", tmp_path, "--memory", "8GB", "--json", cwd=tmp_path)
    assert done.returncode == 0 and "simulation" in json.loads(done.stdout)["terms"], done.stderr
    told = json.loads(done.stdout)
    assert told["verdict"] == "fits" and told["gradient_checkpointing"] == "none"
    less = (told["total"] + told["terms"]["framework"]) // 2 // 2**20
    done = fit("--base-model", tmp_path, "--memory", f"{less}MB", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["gradient_checkpointing"] == "all"


@pytest.mark.slow
def test_a_plan_stands_where_nothing_can_be_simulated(tmp_path: Path) -> None:
    """An architecture that transformers does not know: neither counted nor simulated, and both are said."""
    (tmp_path / "config.json").write_text(json.dumps(NEOX | {"model_type": "of_tomorrow", "hidden_act": "silu"}))
    words = ["--base-model", tmp_path, "--memory", "8GB"]
    told = json.loads(fit(*words, "--json", cwd=tmp_path).stdout)
    assert told["verdict"] == "fits" and "simulation" not in told["terms"]
    assert "the plan is rough" in told["doubts"][0]
    assert "without a simulated step" in told["doubts"][1] and "does not know" in told["doubts"][1]
    done = fit(*words, cwd=tmp_path)
    assert done.returncode == 0 and all(doubt in done.stdout for doubt in told["doubts"]), done.stderr


def test_the_demo_on_this_machine(tmp_path: Path) -> None:
    done = fit("--json", cwd=tmp_path)
    assert done.returncode in (0, 3) and json.loads(done.stdout)["budget"]["total"] > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memory", "lots"], "--memory 'lots' is not an amount of memory"),
        (["--base-model", "./nowhere"], "does not exist"),
        (["--base-model", "nobody/nothing"], "nobody/nothing"),
        (["--rank", "0"], "rank should be greater than or equal to 1"),
        (["--target-modules", "nope"], "this base has the linears"),
        (["--way", "mine"], "--way"),
        (["--simulate"], "Only steps on a GPU can be simulated"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, words: list[str], said: str) -> None:
    done = fit(*words, cwd=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_its_flags_belong_to_it(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "app.py"), "--memory", "16GB"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2 and "--memory belongs to a headless verb" in done.stderr
