"""Going on with a run: from a checkpoint that is as it was written, and with the rows and the base that it began with."""

import contextlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_gui.data.load import DEMO
from qlora_gui.errors import UserError
from qlora_gui.evaluation import job
from qlora_gui.evaluation import run as evaluate
from qlora_gui.runs import changes, checkpoints, launch, queue
from qlora_gui.runs.changes import ChangedError
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import run_view
from qlora_gui.ui.runs import resuming
from tests.conftest import last, train, wait_until_ended

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def trained(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, data, and a run of six steps on them, with checkpoints at 4 and 6."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(llama, folder / "base")
    rows = (DEMO / "train.jsonl").read_text().splitlines()[:40]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    knobs = {"save_steps": 2, "eval_steps": 6, "eval_fraction": 0.1}
    train(
        RunStore(folder / "adapters"),
        base_model=str(folder / "base"),
        dataset=str(folder / "rows.jsonl"),
        name="run",
        **knobs,
    )
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Run:
    """That run, with base and data of its own, as if it had died before its last word."""
    for name in ("base", "adapters"):
        shutil.copytree(trained / name, tmp_path / name)
    shutil.copy(trained / "rows.jsonl", tmp_path / "rows.jsonl")
    run = Run(tmp_path / "adapters" / "run")
    for file in (run.path / "run.json", run.events_file):
        file.write_text(file.read_text().replace(str(trained), str(tmp_path)))
    lines = [line for line in run.events_file.read_text().splitlines() if '"finished"' not in line]
    run.events_file.write_text("\n".join(lines) + "\n")
    return run


def store_of(run: Run) -> RunStore:
    return RunStore(run.path.parent)


def losses(run: Run) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in run.events()[0] if event["kind"] == "step"}


def flipped(file: Path) -> None:
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 4
    file.write_bytes(body)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flipped,
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "emptied": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_with_any_file_damaged_is_passed_over_and_named(run: Run, damage: str, tmp_path: Path) -> None:
    newest = run.checkpoints / "checkpoint-6"
    names = sorted(file.name for file in newest.iterdir())
    assert {"adapter_model.safetensors", "optimizer.pt", "trainer_state.json", "whole.json"} <= set(names)
    shutil.copytree(newest, tmp_path / "kept")
    for name in names:
        DAMAGES[damage](newest / name)
        found, wrong = checkpoints.sound(run.checkpoints)
        if name == checkpoints.MARK and damage == "gone":  # then it counts as one of an older version, and is read
            assert found == newest
        elif name == checkpoints.MARK:
            assert found and found.name == "checkpoint-4" and "damaged" in wrong[0]
        else:
            assert found and found.name == "checkpoint-4" and f"checkpoint-6 is damaged ({name} " in wrong[0]
        shutil.rmtree(newest)
        shutil.copytree(tmp_path / "kept", newest)
    assert checkpoints.sound(run.checkpoints) == (newest, [])


@pytest.mark.parametrize("mark", ["sizes alone", "none"])
def test_checkpoints_of_older_versions_tell_what_they_can(run: Run, mark: str) -> None:
    newest = run.checkpoints / "checkpoint-6"
    told = json.loads((newest / checkpoints.MARK).read_text())
    if mark == "none":
        (newest / checkpoints.MARK).unlink()
    else:
        (newest / checkpoints.MARK).write_text(json.dumps({name: one["bytes"] for name, one in told.items()}))
    assert checkpoints.sound(run.checkpoints) == (newest, [])
    for name in ("optimizer.pt", "trainer_state.json"):
        body = (newest / name).read_bytes()
        place = len(body) // 2
        (newest / name).write_bytes(body[:place] + bytes([body[place] ^ 0x80]) + body[place + 1 :])
        assert checkpoints.sound(run.checkpoints)[0] != newest, name
        (newest / name).write_bytes(body)


def test_noise_in_place_of_any_file_raises_nothing(run: Run) -> None:
    dice = random.Random(5)
    newest = run.checkpoints / "checkpoint-6"
    for number in range(60):
        file = newest / dice.choice(sorted(one.name for one in newest.iterdir()))
        body = file.read_bytes()
        with contextlib.suppress(IsADirectoryError):
            file.write_bytes(dice.choice([b"[]", b"null", b"{}", dice.randbytes(dice.randrange(200)), b"[" * 50_000]))
        if number % 3 == 0:
            (newest / checkpoints.MARK).unlink(missing_ok=True)
        checkpoints.sound(run.checkpoints), run.last_checkpoint()
        file.write_bytes(body)


def test_with_no_whole_checkpoint_there_is_a_sentence(run: Run) -> None:
    for path in checkpoints.newest_first(run.checkpoints):
        flipped(path / "adapter_model.safetensors")
    assert run.last_checkpoint() is not None, "sizes alone do not show it"
    said = r"no intact checkpoint \(checkpoint-6 is damaged \(adapter_model\.safetensors .*checkpoint-4 is.*train again"
    with pytest.raises(UserError, match=said):
        launch.start(run, store_of(run), resume=True)
    with pytest.raises(UserError, match=said):
        queue.add(store_of(run), [run], resume=True)
    assert not any(event["kind"] == "started" for event in run.events()[0][1:]), "nothing was started"


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_a_rotted_one(run: Run) -> None:
    expected = losses(run)
    flipped(run.checkpoints / "checkpoint-6" / "optimizer.pt")
    launch.start(run, store_of(run), resume=True)
    assert wait_until_ended(run) == "finished", run.log_tail()
    told = [event["text"] for event in run.events()[0] if event["kind"] == "note"]
    assert any("checkpoint-6 is damaged (optimizer.pt" in text and "goes on from checkpoint-4" in text for text in told)
    assert "checkpoint-6 is damaged" in run_view.draw(run).overview and "checkpoint-6 is damaged" in run.log_tail()
    assert losses(run) == expected, "the steps after it are those of before"
    assert checkpoints.sound(run.checkpoints)[0] == run.checkpoints / "checkpoint-6", "written anew over the rotted one"


def changed_rows(run: Run) -> str:
    file = Path(run.config().dataset)
    file.write_text("\n".join(file.read_text().splitlines()[::-1]) + "\n")
    return "in its data 'rows.jsonl' has changed"


def other_weights(run: Run) -> str:
    flip = Path(run.config().base_model) / "model.safetensors"
    body = bytearray(flip.read_bytes())
    for place in range(4096, len(body) - 3, 64):
        body[place] ^= 1
    flip.write_bytes(body)
    return "the base 'base' has different weights"


def a_folder_in_its_place(run: Run) -> str:
    file = Path(run.config().dataset)
    rows = file.read_text()
    file.unlink()
    file.mkdir()
    (file / "train.jsonl").write_text(rows)
    return "'rows.jsonl' is gone, 'train.jsonl' is new"


CHANGES = [changed_rows, other_weights, a_folder_in_its_place]


@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__)
def test_a_run_does_not_go_on_with_something_else(
    run: Run, change: Callable[[Run], str], capsys: pytest.CaptureFixture[str]
) -> None:
    launch.check_resume(run)
    said = change(run)
    with pytest.raises(ChangedError) as error:
        launch.start(run, store_of(run), resume=True)
    assert said in str(error.value) and changes.FLAG in str(error.value)
    with pytest.raises(ChangedError):
        queue.add(store_of(run), [run], resume=True)
    assert said in resuming.resume(store_of(run), run.id) and not run.is_live(), "the page asks for a second press"
    launch.check_resume(run, changed=True)
    command = [sys.executable, str(ROOT / "app.py"), "--headless-train", "--resume", run.id, "--adapters-dir"]
    done = subprocess.run([*command, str(run.path.parent)], capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_what_is_changed_goes_on_where_that_is_meant(run: Run) -> None:
    changed_rows(run)
    assert resuming.resume(store_of(run), run.id, changed=True) == ""
    assert wait_until_ended(run) == "finished", run.log_tail()
    assert "Resumed though something has changed: its data has other rows." in run_view.draw(run).overview
    assert changes.describe_data_changes(run) == "", "what it was last trained on is what counts"


@pytest.mark.slow
def test_the_trainer_sees_what_the_page_cannot(run: Run) -> None:
    """Another tokenizer in the same folder: files and weights are the same, the rows as the model reads them are not."""
    file = Path(run.config().base_model) / "chat_template.jinja"
    file.write_text(file.read_text().replace("assistant\n", "model\n"))
    launch.start(run, store_of(run), resume=True)
    assert wait_until_ended(run) == "failed"
    end = last(run.events()[0], "failed") or {}
    assert end["changed"] is True and "read as other tokens" in end["message"] and end["bug"] is False
    assert "read as other tokens" in resuming.resume(store_of(run), run.id), "the page asks, and starts nothing"
    assert (last(run.events()[0], "started", "failed") or {})["kind"] == "failed"
    assert resuming.resume(store_of(run), run.id, changed=True) == ""
    assert wait_until_ended(run) == "finished", run.log_tail()


def test_a_base_of_another_revision_is_told(run: Run, tmp_path: Path) -> None:
    from qlora_gui.models.base import Base
    from qlora_gui.training.resume import Before

    log = EventLog(run.events_file)
    base = last(run.events()[0], "base") or {}
    log.append(
        "base", **{name: value for name, value in base.items() if name not in ("t", "kind")} | {"revision": "aaa"}
    )
    now = Base("org/name", "x", "bbb", base["fingerprint"])
    with pytest.raises(ChangedError, match="'org/name' is of revision bbb and was of aaa"):
        Before(run, log, resume=True, allowed=False).check_base(now)
    Before(run, log, resume=True, allowed=True).check_base(now)
    assert "revision bbb" in (last(run.events()[0], "note") or {})["text"]
    Before(run, log, resume=False, allowed=False).check_base(now)


def test_held_out_rows_of_other_data_are_not_measured(run: Run) -> None:
    changed_rows(run)
    said: list[str] = []
    with pytest.raises(UserError, match=r"no longer known, because in its data 'rows\.jsonl' has changed"):
        evaluate.evaluate([run.path], None, job.Settings(rows=4, max_new_tokens=0), said.append)
    assert any("cannot be told from others" in text for text in said)


def test_the_flag_alone_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "app.py"), "--headless-train", "--resume-changed"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "--resume" in done.stderr
