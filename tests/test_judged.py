"""Real adapters of the demo base, judged: better where it learned, not where its answers were shuffled, and a report."""

import json
from pathlib import Path

import pytest

from qlora_gui.judge import doctor
from qlora_gui.runs.store import RunStore
from tests.commands import evaluated, headless
from tests.conftest import SHARED_DATA, need, train

pytestmark = [pytest.mark.demo, pytest.mark.timeout(2700)]  # minutes, on one core of a small machine
KNOBS = ["--epochs", "1", "--gradient-accumulation", "1", "--gradient-checkpointing", "none", "--dropout", "0"]
KNOBS += ["--eval-steps", "1000", "--save-steps", "1000", "--max-length", "256", "--batch-size", "8", "--answers", "0"]


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
