"""The index of runs: as the folders say, whatever is in the cache, and fast enough for thousands."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from qlora_gui.config import make
from qlora_gui.runs import derived_cache, event_file, queue, scan
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.store import RunStore
from qlora_gui.ui import app
from qlora_gui.ui.app import build_app
from qlora_gui.ui.runs import index
from qlora_gui.ui.runs import table as runs_table
from qlora_gui.ui.runs.index import summaries
from tests.many_runs import LONG, make_runs


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_GUI_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty runs, one of them of 6,000 events."""
    folder = tmp_path_factory.mktemp("many") / "adapters"
    make_runs(folder, 60, 6_000)
    return folder


@pytest.fixture
def runs(many: Path, tmp_path: Path) -> RunStore:
    shutil.copytree(many, tmp_path / "adapters")
    return RunStore(tmp_path / "adapters")


def anew(store: RunStore) -> list[object]:
    """What a page says that has just been started."""
    index._indexes.clear()
    event_file._known.clear()
    found = [one.row() for one in summaries(store)]
    kept(store)  # what the background writes would come in between
    return found


def kept(store: RunStore) -> Path:
    index.get_index(store)._keep()
    return derived_cache.folder() / derived_cache.name_of("runs", store.root)


def test_with_and_without_the_cache_it_says_the_same(runs: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = anew(runs)
    assert len(whole) == 60 and len({str(row) for row in whole}) == 60
    file = kept(runs)
    read: list[str] = []
    reading = index.read
    monkeypatch.setattr(index, "read", lambda run, seen: (read.append(run.id), reading(run, seen))[1])
    assert anew(runs) == whole and not read, "nothing is read again"
    good = file.read_bytes()
    for damage in (
        b"",
        b"x",
        good[:-9],
        good.replace(b"finished", b"failedxx", 1),
        b"1 00\n" + good.partition(b"\n")[2],
    ):
        file.write_bytes(damage)
        read.clear()
        assert anew(runs) == whole and len(read) == 60
    derived_cache.keep(file.name, {"knobs": ["of another version"], "runs": {}})
    assert anew(runs) == whole
    derived_cache.keep(
        file.name, {"knobs": list(make({}).model_dump()), "runs": {"run-0001": [[1], {"id": 3}], "x": 5}}
    )
    assert anew(runs) == whole
    place = derived_cache.folder()
    shutil.rmtree(place)
    place.write_text("no folder")
    assert anew(runs) == whole, "also where nothing can be kept"


def test_what_changes_behind_its_back_is_seen(runs: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    anew(runs)
    kept(runs)

    def row(name: str) -> list[object]:
        found = {one.id: one.row() for one in summaries(runs)}
        assert found.get(name) == {one[0]: one for one in anew(runs)}.get(name), "a page that was just started agrees"
        kept(runs)
        return found.get(name, [])

    run = runs.get("run-0003")
    assert row(run.id)[1] == "finished"
    EventLog(run.events_file).append("started", pid=1, resumed=True)
    assert row(run.id)[1] == "died"
    with run.lock():
        assert row(run.id)[1] == "running" and "run-0003" in app.text(runs)
        run.request_stop()
        assert row(run.id)[1] == "stopping"
    run.stop_file.unlink()
    body = run.events_file.read_text()
    stat = run.events_file.stat()
    run.events_file.write_text(body.replace('"loss": 2.9', '"loss": 3.9'))  # as long as before, and made to look as old
    os.utime(run.events_file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert row(run.id)[5] == 3.9
    (run.path / "adapter_config.json").unlink()
    assert not next(one for one in summaries(runs) if one.id == run.id).adapter
    monkeypatch.setattr(queue, "ensure_starter", lambda store: None)
    queue.add(runs, [run])
    assert row(run.id)[1] == "queued, 1."
    queue.leave(runs, run)
    assert row(run.id)[1] == "stopped"
    manifest = json.loads((run.path / "run.json").read_text())
    manifest["config"]["base_model"] = "org/another"
    (run.path / "run.json").write_text(json.dumps(manifest))
    assert row(run.id)[2] == "another"
    shutil.rmtree(run.path)
    assert row(run.id) == []
    shutil.copytree(runs.get("run-0004").path, run.path)
    assert row(run.id)[1] == "finished"
    (runs.root / ".hidden").mkdir()
    shutil.copy(run.path / "run.json", runs.root / ".hidden" / "run.json")
    (runs.root / "no-run").mkdir()
    (runs.root / "file").write_text("x")
    assert len(summaries(runs)) == 60 == len(runs.all())


def test_a_young_run_that_never_began_has_died_when_it_is_old(store: RunStore) -> None:
    run = store.create(make({"name": "one"}))
    assert summaries(store)[0].state == "starting"
    moment = time.time() - 60
    os.utime(run.path / "run.json", (moment, moment))
    assert summaries(store)[0].state == "died"


def test_what_cannot_be_read_at_once_comes_later(runs: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = threading.Event()
    reading = index.read
    monkeypatch.setattr(index, "read", lambda run, seen: (turn.wait(20), reading(run, seen))[1])
    monkeypatch.setattr(index, "PATIENCE_SECONDS", -1.0)
    began = time.monotonic()
    look = index.now(runs)
    assert time.monotonic() - began < 5 and look.unread == 60 and look.summaries[0].row()[1:3] == ["…", "…"]
    table = runs_table.drawn(look.summaries, runs_table.NEWEST_FIRST, [])
    assert "60 are still being read" in table
    turn.set()
    deadline = time.monotonic() + 30
    while index.now(runs).unread and time.monotonic() < deadline:
        time.sleep(0.1)
    assert index.now(runs).unread == 0 and index.now(runs).version != look.version
    assert [one.row() for one in index.now(runs).summaries] == anew(runs)


def test_a_long_run_is_read_in_the_background(runs: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MUCH", 1 << 19)
    run = runs.get(LONG)
    assert run.events_file.stat().st_size > 1 << 19
    event_file._known.clear()
    assert not index.summary(run, index.PATIENCE_SECONDS).read
    assert run.state() == "finished", "its end is known without reading it"
    assert "Its events are being read" in index.reading(run)
    deadline = time.monotonic() + 30
    while index.reading(run) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert index.reading(run) == "" and index.summary(run).step == 6_000


def test_opening_a_long_run_waits_for_none_of_its_events(runs: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MUCH", 1 << 19)
    monkeypatch.setattr(event_file, "_TAIL", 1 << 16)
    event_file._known.clear()
    monkeypatch.setattr(index.Index, "read_on", lambda self: None)  # nobody reads it meanwhile either
    opened = next(one.fn for one in build_app(runs).fns.values() if getattr(one.fn, "__name__", "") == "detail")
    values = [part.get("value", "") if isinstance(part, dict) else part for part in opened([LONG], "").values()]
    shown = " ".join(part for part in values if isinstance(part, str))
    assert "Its events are being read: 0%" in shown and "finished" in shown and "Died" not in shown
    assert event_file.behind(runs.get(LONG).events_file) > 1 << 19, "something read them all"


def test_who_looks_at_once_shares_a_look(runs: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    anew(runs)
    scans: list[int] = []
    scanned = scan.scan
    monkeypatch.setattr(scan, "scan", lambda root: (scans.append(1), scanned(root))[1])
    index.get_index(runs)._look = index.Look((), "")
    threads = [threading.Thread(target=index.glance, args=(runs,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(scans) == 1


def test_names_in_a_folder_are_not_kept_while_it_may_still_change(store: RunStore) -> None:
    run = store.create(make({"name": "one"}))
    for _ in range(50):  # within one tick of the file system's clock
        run.request_stop()
        found = scan.see(run.path)
        assert found and found.stopping
        run.stop_file.unlink()
        found = scan.see(run.path)
        assert found and not found.stopping


def test_the_table_shows_a_page_and_finds_the_rest(runs: RunStore) -> None:
    found = summaries(runs)
    drawn = runs_table.drawn(found, runs_table.NEWEST_FIRST, [], most=20)
    assert drawn.count("<tr data-run") == 20 and "20 of 60 runs: click" in drawn
    assert "All runs: click" in runs_table.drawn(found, runs_table.NEWEST_FIRST, [])
    drawn = runs_table.drawn(found, runs_table.NEWEST_FIRST, [], "RUN-003 finished", most=20)
    assert drawn.count("<tr data-run") == 10 and "10 of 10 runs that match, of 60" in drawn
    assert runs_table.drawn(found, runs_table.NEWEST_FIRST, [], "no-such").count("<tr data-run") == 0
