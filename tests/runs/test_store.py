"""Names that no disk can hold, files nested too deeply, and disks without room: a sentence each time."""

import errno
import json
import os
from pathlib import Path

import pytest

from qlora_gui import hardware, hub
from qlora_gui.config import make
from qlora_gui.data import load
from qlora_gui.errors import UserError, first_line
from qlora_gui.runs import disk_reserve
from qlora_gui.runs import store as stores
from qlora_gui.runs.store import RunStore
from qlora_gui.ui.runs.index import summaries
from qlora_gui.ui.train import form


@pytest.mark.parametrize("named", ["/" + "x" * 300, "~nobody-at-all/x", "/a\0b", "x" * 5000])
@pytest.mark.parametrize("knob", ["base_model", "dataset", "accelerate_config"])
def test_names_that_no_disk_can_hold(store: RunStore, tmp_path: Path, knob: str, named: str) -> None:
    assert hub.local(named) is None
    for one in (store, RunStore(tmp_path / "shared", [tmp_path])):
        form.judge({knob: named, "revision": "main" if knob == "base_model" else ""}, one)
        if knob != "accelerate_config":
            with pytest.raises(UserError):
                one.create(make({knob: named}))
    with pytest.raises(UserError, match="does not exist"):
        load.find(named)


def test_what_is_nested_too_deeply_is_damaged(store: RunStore) -> None:
    deep = "[" * 100_000
    run = store.create(make({"name": "deep"}))
    run.events_file.write_text(deep + "\n")
    run.queue_file.write_text(deep)
    assert [told["kind"] for told in run.events()[0]] == ["skipped"] and run.state() == "queued"
    (run.path / "run.json").write_text(deep)
    with pytest.raises(UserError, match="has no readable"):
        run.config()
    assert [one.id for one in summaries(store)] == ["deep"]


def test_without_room_no_folder_stays(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, body: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stores, "write_whole", full)
    with pytest.raises(UserError, match="No space left"):
        store.create(make({"name": "one"}))
    assert not (store.root / "one").exists()


def test_the_folder_is_blamed_only_for_what_lies_in_it(tmp_path: Path) -> None:
    denied = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "checkpoints" / "x"))
    assert "make it writable" in disk_reserve.why_not_written(tmp_path, denied)
    elsewhere = PermissionError(errno.EACCES, "Permission denied", "/somewhere/else")
    assert disk_reserve.why_not_written(tmp_path, elsewhere) == ""


def test_an_error_without_words_has_a_first_line() -> None:
    assert first_line(StopIteration()) == "StopIteration" and first_line(ValueError("a\nb")) == "a"


def test_a_run_of_faulty_rows_is_made_only_where_they_are_left_out(store: RunStore, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=r"rows\.jsonl row 2 \(read as prompt-completion\): 'completion' is missing"):
        store.create(make({"dataset": str(tmp_path / "rows.jsonl")}))
    assert store.all() == []
    assert store.create(make({"dataset": str(tmp_path / "rows.jsonl"), "skip_bad_rows": True})).config().skip_bad_rows


@pytest.mark.parametrize(
    ("gpus", "wanted", "said"),
    [
        (0, 9, "no GPU, and 2 cores, but num_processes is 9: set it to 1"),
        (2, 3, "2 GPUs, but num_processes is 3: set it to 2"),
        (1, 2, "1 GPU, but num_processes is 2: set it to 1"),
        (2, 2, ""),
    ],
)
def test_more_processes_than_there_are_gpus_are_refused_before_they_start(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, gpus: int, wanted: int, said: str
) -> None:
    cards = [hardware.Device("Tesla T4", "cuda", 2**34, 2**34)] * gpus or [hardware.Device("CPU", "cpu", 2**34, 2**34)]
    monkeypatch.setattr(hardware, "devices", lambda: cards)
    monkeypatch.setattr(hardware, "cores", lambda: 2)
    _, faults = form.judge({"num_processes": wanted}, store)
    assert said in faults.get("num_processes", "") and bool(faults) == bool(said)
    if said:
        with pytest.raises(UserError, match=said):
            store.create(make({"num_processes": wanted}))
        assert store.all() == []
