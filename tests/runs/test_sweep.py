"""Sweeps: the grid, what cannot fit, and six real runs that are queued from the command line."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qlora_gui import report
from qlora_gui.cli import sweep as queued
from qlora_gui.config import make
from qlora_gui.errors import UserError
from qlora_gui.memory import budget, sweeps
from qlora_gui.report import markdown
from qlora_gui.runs import queue, sweep
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.store import RunStore
from tests.conftest import TINY
from tests.faults.ground import until

ROOT = Path(__file__).parents[2]
SIX: dict[str, Any] = {"name": "six", "rank": [8, 16, 64], "bias": ["none", "all"], "alpha": 16}


def test_lists_make_the_grid() -> None:
    found = sweep.expand(SIX)
    assert found.name == "six" and found.varies == ("rank", "bias")
    assert [found.cell(config) for config in found.configs] == [
        {"rank": rank, "bias": bias} for rank in (8, 16, 64) for bias in ("none", "all")
    ]
    assert [config.name for config in found.configs] == [f"six-{number}" for number in range(1, 7)]
    assert {config.alpha for config in found.configs} == {16}


def test_a_knob_that_takes_a_list_varies_by_lists_of_lists() -> None:
    [one] = [["query_key_value", "dense"]]
    with pytest.raises(UserError, match="Nothing varies"):
        sweep.expand({"target_modules": one})
    found = sweep.expand({"target_modules": ["all-linear", one], "learning_rate": [1e-4, 2e-4]})
    assert [config.target_modules for config in found.configs] == ["all-linear", "all-linear", one, one]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"rank": 8}, "Nothing varies"),
        ({"rank": []}, "list of 'rank' is empty"),
        ({"rank": [8, "many"]}, "With rank many: rank should be a valid integer"),
        ({"rank": [8, 0]}, "With rank 0"),
        ({"name": ["a", "b"]}, "cannot vary"),
        ({"name": "a b", "rank": [1, 2]}, "use letters"),
        ({"ranks": [1, 2]}, "did you mean 'rank'"),
        ({"rank": list(range(1, 10)), "seed": list(range(10))}, "90 runs"),
    ],
)
def test_what_makes_no_grid_is_said(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        sweep.expand(values)


def test_lines_of_the_page_are_read() -> None:
    text = "rank: 8, 16,64\nbias: [none, all]\nlearning-rate: 1e-4, 0.0002\nuse_rslora: yes, no"
    assert sweep.parse(text) == {
        "rank": [8, 16, 64],
        "bias": ["none", "all"],
        "learning_rate": [1e-4, 0.0002],
        "use_rslora": [True, False],
    }
    assert sweep.expand(sweep.parse(text)).configs[0].learning_rate == 1e-4
    for wrong in ("rank 8 16", "- 8", "rank: [8", "8"):
        with pytest.raises(UserError):
            sweep.expand(sweep.parse(wrong))


def test_what_cannot_fit_is_refused_before_anything_runs() -> None:
    """The report's experiment 2 on 16 GB: the long batches are refused, the short one is not."""
    values = {"base_model": "bigscience/bloom-7b1", "batch_size": [1, 32], "max_length": 2048}
    cells = sweeps.planned(sweep.expand(values), budget.card(16))
    assert [cell.refused for cell in cells] == [False, True] and "Does not fit" in cells[1].verdict_text
    assert [config.batch_size for config in sweeps.fitting(cells)] == [1]
    with pytest.raises(UserError, match=r"No run of this sweep fits.*batch size 1 "):
        sweeps.fitting(sweeps.planned(sweep.expand(values), budget.card(4)))


def test_means_are_over_whole_combinations_only() -> None:
    """A run that failed would else tip the scale: rank 8 has the easier bias alone."""
    ends = [({"rank": 8, "bias": "all"}, 1.0), ({"rank": 16, "bias": "all"}, 2.0), ({"rank": 16, "bias": "none"}, 9.0)]
    assert sweep.by_value(ends, "rank") == {"8": 1.0, "16": 2.0}
    assert sweep.by_value(ends, "bias") == {"all": 2.0, "none": 9.0}
    assert sweep.by_value(ends[:1], "rank") == {}


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "app.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)


def test_a_run_that_diverged_is_told_without_a_loss(store: RunStore) -> None:
    run = store.create(make({"name": "nan"}))
    EventLog(run.events_file).append("finished", step=3, seconds=1, loss_before=2.0, loss_after=float("nan"))
    assert queued._losses(run, "finished") == ""


def test_a_sweep_of_knobs_there_are_not_is_none(store: RunStore) -> None:
    run = store.create(make({"name": "odd"}), {"name": "x", "varies": ["nosuch"]})
    assert run.sweep() is None


@pytest.mark.slow
def test_a_sweep_from_the_command_line(tmp_path: Path, llama: Path) -> None:
    """Six real runs, one refused value named; followed to their end, and each knows its sweep."""
    lines = [f"{name}: {value}" for name, value in (TINY | {"max_steps": 2, "base_model": str(llama)}).items()]
    (tmp_path / "sweep.yaml").write_text("\n".join([*lines, "name: six", "bias: [none, all]"]))
    done = run(tmp_path, "--headless-sweep", "--config", "sweep.yaml", "--rank", "4,8,12")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 runs over bias, rank" in done.stdout and "six-6 (bias all, rank 12): finished" in done.stdout
    store = RunStore(tmp_path / "adapters")
    runs = store.all()
    assert len(runs) == 6 and not queue.waiting(store)
    assert {one.sweep() for one in runs} == {("six", ("bias", "rank"))}
    told = markdown.render(report.written(store))
    assert "**The sweep six.** 6 runs over bias and rank" in told
    assert "In the sweep six the lowest held-out loss" in told and "moved the loss most" in told
    again = run(tmp_path, "--headless-sweep", "--config", "sweep.yaml", "--rank", "4,8")
    assert again.returncode == 2 and "already a run 'six-1'" in again.stderr
    assert len(store.all()) == 6
    told = run(tmp_path, "--headless-queue")
    assert told.returncode == 0 and "Nothing runs or waits" in told.stdout


def test_one_run_is_queued_and_the_command_returns(tmp_path: Path, llama: Path) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in (TINY | {"max_steps": 2}).items()]
    done = run(tmp_path, "--headless-train", "--queue", "--base-model", str(llama), "--name", "later", *words)
    assert done.returncode == 0 and "Run later waits" in done.stdout, done.stderr
    one = RunStore(tmp_path / "adapters").get("later")
    until(lambda: one.state() == "finished")
