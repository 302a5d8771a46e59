"""Uploads that nobody uses any more are removed, never one that a run names; both are told."""

import os
import shutil
import time
from pathlib import Path

import pytest

from qlora_gui.cli import main
from qlora_gui.config import make
from qlora_gui.errors import UserError
from qlora_gui.runs import queue, uploads
from qlora_gui.runs.store import RunStore
from qlora_gui.ui.runs import cache as disk
from qlora_gui.ui.train import tab

ROW = '{"prompt": "a", "completion": "b"}\n'


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_GUI_CACHE", str(tmp_path / "cache"))


def upload(tmp_path: Path, name: str, days: float = -0.001, rows: int = 3) -> Path:
    source = tmp_path / name
    source.write_text(ROW * rows + ROW.replace("a", name))
    kept = Path(tab._keep(str(source)))
    aged(kept, days)
    return kept


def aged(path: Path, days: float) -> None:
    os.utime(path, (time.time() - days * 86_400,) * 2)


def test_only_what_no_run_names_goes_and_only_when_it_is_old(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, waits, old, young = (upload(tmp_path, f"{name}.jsonl") for name in ("used", "waits", "old", "young"))
    store.create(make({"name": "run", "dataset": str(used)}))
    monkeypatch.setattr(queue, "ensure_starter", lambda store: None)
    queue.add(store, [store.create(make({"name": "waiting", "dataset": str(waits)}))])
    for path, days in ((used, 400), (waits, 400), (old, 8), (young, 3)):
        aged(path, days)
    assert [one.name for one in uploads.sweep(store.named())] == [old.name]
    assert [path.exists() for path in (used, waits, old, young)] == [True, True, False, True]
    told = disk.uploaded(uploads.entries(store.named()), uploads.removed())
    assert "waiting" in told and "no run" in told and old.name in told and "7 days" in told
    store.delete(store.get("run"))
    assert [one.name for one in uploads.sweep(store.named())] == [used.name], "with its last run it goes too"


def test_a_run_of_another_folder_keeps_its_upload(store: RunStore, tmp_path: Path) -> None:
    kept = upload(tmp_path, "rows.jsonl", days=100)
    other = RunStore(tmp_path / "elsewhere")
    run = other.create(make({"name": "run", "dataset": str(kept)}))
    assert uploads.sweep(store.named()) == [] and uploads.entries()[0].runs == ("run",)
    other.delete(run)
    assert [one.name for one in uploads.sweep(store.named())] == [kept.name]
    assert [path.name for path in uploads.folder().iterdir()] == ["removed.jsonl"], "its note goes with it"


def test_without_its_note_the_runs_folder_says_it(store: RunStore, tmp_path: Path) -> None:
    kept = upload(tmp_path, "rows.jsonl", days=100)
    store.create(make({"name": "run", "dataset": str(kept)}))
    Path(f"{kept}.runs").unlink()
    assert uploads.sweep(store.named()) == []
    Path(f"{kept}.runs").write_bytes(b"\xff\0\n" + b"x" * 10_000)
    assert uploads.sweep(store.named()) == []


def test_much_goes_earlier_the_oldest_first(store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [upload(tmp_path, f"{days}.jsonl", days=days, rows=1000) for days in (2, 3, 4)]
    fresh = upload(tmp_path, "fresh.jsonl", rows=1000)
    monkeypatch.setattr(uploads, "MOST_BYTES", 80_000)  # two of them
    assert [one.name for one in uploads.sweep(store.named())] == [kept[2].name, kept[1].name]
    assert kept[0].exists() and fresh.exists()
    monkeypatch.setattr(uploads, "MOST_BYTES", 0)
    uploads.sweep(store.named())
    assert not kept[0].exists() and fresh.exists(), "what came today stays: its run may be about to be started"


def test_what_broke_off_is_removed_and_links_are_left_alone(store: RunStore, tmp_path: Path) -> None:
    part = uploads.folder() / "ab-x.jsonl.part"
    part.write_text("half")
    aged(part, 2)
    (tmp_path / "mine.jsonl").write_text(ROW)
    (uploads.folder() / "link.jsonl").symlink_to(tmp_path / "mine.jsonl")
    assert uploads.sweep(store.named()) == [] and not part.exists() and (tmp_path / "mine.jsonl").exists()


def test_the_command_line_says_what_is_kept(
    store: RunStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(tmp_path, "rows.jsonl")
    assert main.main(["--headless-cache", "--adapters-dir", str(store.root)]) == 0
    assert "1 uploads, 1 of them named by no run and removed after 7 days" in capsys.readouterr().out


def test_a_damaged_run_stops_no_sweep(store: RunStore, tmp_path: Path) -> None:
    kept = upload(tmp_path, "rows.jsonl", days=100)
    run = store.create(make({"name": "run", "dataset": str(kept)}))
    for body in ("[]", "{", '{"config": []}', '{"config": {"dataset": 5}}'):
        (run.path / "run.json").write_text(body)
        with pytest.raises(UserError):
            run.config()
        list(store.named())
        uploads.entries(store.named())


def test_what_is_uploaded_again_is_young_again(store: RunStore, tmp_path: Path) -> None:
    kept = upload(tmp_path, "rows.jsonl", days=100)
    assert upload(tmp_path, "rows.jsonl") == kept
    assert uploads.sweep(store.named()) == [] and kept.exists()


@pytest.mark.parametrize("away", ["unmounted", "renamed", "closed"])
def test_a_run_whose_folder_is_away_keeps_its_upload(store: RunStore, tmp_path: Path, away: str) -> None:
    kept = upload(tmp_path, "rows.jsonl", days=100)
    drive = tmp_path / "usb" / "adapters"
    run = RunStore(drive).create(make({"name": "run", "dataset": str(kept)}))
    if away == "unmounted":
        shutil.rmtree(drive)
        drive.mkdir()  # the empty folder where it is mounted
    elif away == "renamed":
        drive.rename(tmp_path / "usb" / "old")
    else:
        (run.path / "run.json").unlink()
        (run.path / "run.json").symlink_to("run.json")  # what cannot be opened, even by root
    assert uploads.sweep(store.named()) == [] and kept.exists()
