"""Deleting what somebody reads, and disks that fill up under whatever writes: refused or safe, said, and nothing half."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest

from qlora_gui import locks
from qlora_gui import report as reports
from qlora_gui.check import machine
from qlora_gui.cli.report import report
from qlora_gui.config import make
from qlora_gui.errors import UserError
from qlora_gui.evaluation import job
from qlora_gui.evaluation import run as evaluate
from qlora_gui.inference import protocol
from qlora_gui.inference.client import CompareClient
from qlora_gui.inference.sampling import Decoding
from qlora_gui.memory import calibration
from qlora_gui.preferences.votes import Column, Vote, VoteLog
from qlora_gui.report import collect
from qlora_gui.runs import event_file, launch, queue, scan
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import actions, app
from qlora_gui.ui.runs import index, summary
from qlora_gui.ui.train import tab
from tests.faults import disks
from tests.faults.ground import until


@pytest.fixture
def copied(bloom_runs: dict[str, Run], store: RunStore) -> Run:
    """A trained run of its own."""
    shutil.copytree(bloom_runs["none"].path, store.root / "mine")
    return store.get("mine")


def test_a_run_is_not_deleted_while_it_is_read(store: RunStore) -> None:
    run, other = (store.create(make({"name": name})) for name in ("one", "two"))
    with locks.reading([run.path, run.path], "an evaluation"):
        with pytest.raises(UserError, match="'one' is being read by an evaluation: delete it when that is done"):
            store.delete(run)
        store.delete(other)
    store.delete(run)
    assert store.all() == [] and not list(store.root.glob(".deleted*"))


def test_a_reader_that_was_killed_keeps_nothing(store: RunStore) -> None:
    run = store.create(make({"name": "one"}))
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom qlora_gui import locks\n"
        "with locks.reading([Path(sys.argv[1])], 'an evaluation'):\n    print('reads', flush=True)\n    sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout and child.stdout.readline() == "reads\n"
    assert locks.readers(run.path) == ["an evaluation"]
    child.kill()
    child.wait()
    assert locks.readers(run.path) == [] and not list(run.path.glob(".reading*"))
    store.delete(run)


@pytest.mark.slow
def test_an_evaluation_and_a_comparison_that_load_a_run_keep_it(copied: Run, store: RunStore) -> None:
    """Both for real: refused while they read; an adapter that Compare has loaded answers also after it was deleted."""
    job.start([copied], job.Settings(rows=20, max_new_tokens=0))
    with pytest.raises(UserError, match="is being read by an evaluation"):
        store.delete(copied)
    until(lambda: not job.state(copied).running, "the end of the evaluation")
    assert job.result(copied), job.state(copied)
    base, client, refused = copied.config().base_model, CompareClient(), []

    def say(text: str) -> None:
        try:
            store.delete(copied)
        except UserError as error:
            refused.append(str(error))

    try:
        client.columns(base, "", [copied.path], say=say)
        assert refused and all("Compare, which is loading it" in text for text in refused)
        store.delete(copied)
        asked = [[{"role": "user", "content": "Where is my parcel?"}]] * 2
        events = list(client.answer(asked, Decoding(max_new_tokens=4)))
        assert events[-1] == protocol.Done() and all(answer.ended for answer in protocol.collect(events, 2))
    finally:
        client.close()


@pytest.mark.slow
def test_a_run_that_is_gone_by_hand_ends_its_evaluation_with_a_sentence(copied: Run) -> None:
    said: list[str] = []

    def progress(done: int, of: int) -> None:
        shutil.rmtree(copied.path, ignore_errors=True)

    found = evaluate.evaluate([copied.path], None, job.Settings(rows=6, max_new_tokens=0), said.append, progress)
    assert found["evaluations"] and any("was deleted in the meantime" in text for text in said)


def test_what_is_deleted_while_a_report_is_written_is_named(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [store.create(make({"name": name})) for name in ("first", "second", "third")]
    for run in runs:
        EventLog(run.events_file).append("finished", step=1)
    whole = collect._experiment

    def slowly(number: int, run: Run, *rest: object) -> object:
        if run.id == "second":
            store.delete(run)
        return whole(number, run, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(collect, "_experiment", slowly)
    blocks = reports.written(store)
    for render in reports.RENDERERS.values():
        text = render(blocks)
        assert "left out" in text and "second" in text and "third" in text and "2 experiments" in text


def test_half_a_deletion_leaves_no_half_of_a_run(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = store.create(make({"name": "one"}))

    def killed(path: Path, **how: object) -> None:
        (Path(path) / "events.jsonl").unlink(missing_ok=True)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(UserError, match="cannot be deleted"):
            store.delete(run)
    assert store.all() == [], "it is out of sight"
    again = store.create(make({"name": "one"}))
    store.delete(again)
    assert list(store.root.glob(".deleted*")) == [], "what was left is removed with the next one"


def vote(prompt: str) -> Vote:
    turns = [{"role": "user", "content": prompt}]
    columns = (Column("base"), Column("mine", "ab"))
    return Vote("s", prompt, turns, columns, (0, 1), 1, ("a" * 3000, "b" * 3000), (1, 1))


@pytest.fixture
def small(store: RunStore) -> Iterator[Callable[[int], None]]:
    """The store on a disk of its own; what is given back fills it but for so many bytes."""
    try:
        with disks.small_disk(store.root, 4 << 20):
            yield lambda leave: disks._fill(store.root / "ballast", leave)
    except OSError as error:
        pytest.skip(f"needs a small disk: {error}")


@pytest.mark.parametrize("leave", [0, 1000, 4096])
def test_a_vote_on_a_full_disk_is_told_and_can_be_given_again(
    store: RunStore, small: Callable[[int], None], leave: int
) -> None:
    log = VoteLog(store.root)
    log.add(vote("before"))
    size = log.path.stat().st_size
    small(leave)
    written = 0
    with pytest.raises(UserError, match=r"vote cannot be written.*No space left.*free some space and try again"):
        for _ in range(5):
            log.add(vote("meanwhile"))
            written += 1
    body = log.path.read_bytes()
    assert body.endswith(b"\n") and len(body) >= size, "no half line stays"
    (store.root / "ballast").unlink()
    log.add(vote("after"))
    assert [one.prompt for one in log.read()] == ["before", *["meanwhile"] * written, "after"]
    assert not any(event["kind"] == "skipped" for event in event_file.read(log.path, whole=True)[0])


def test_the_queue_on_a_full_disk(store: RunStore, small: Callable[[int], None]) -> None:
    runs = [store.create(make({"name": f"q{number}"})) for number in range(3)]
    small(0)
    with pytest.raises(UserError, match=r"place of 'q0' in the queue cannot be written.*No space left"):
        queue.add(store, runs)
    assert queue.waiting(store) == [] and not [file for run in runs for file in run.path.glob(".queued*")]
    (store.root / "ballast").unlink()
    for place, run in enumerate(runs, 1):
        queue._mark(run, place, resume=False)
    small(0)
    with pytest.raises(UserError, match="No space left"):
        queue.move(store, runs[2], -1)
    assert sorted(run.id for run in queue.waiting(store)) == ["q0", "q1", "q2"], "all of them still wait"
    with pytest.raises(UserError, match="The removal of 'q0' from the queue cannot be written"):
        queue.leave(store, runs[0])
    assert runs[0].state() == "queued"


def test_a_report_and_a_stop_on_a_full_disk(
    store: RunStore, small: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = store.create(make({"name": "one"}))
    small(0)
    with pytest.raises(UserError, match="No space left"):
        report(store, [], store.root / "report.html", print)
    assert not list(store.root.glob("*report*")) and not list(store.root.glob(".report*"))
    with pytest.raises(UserError, match="No space left"):
        store.create(make({"name": "two"}))
    assert [one.id for one in store.all()] == ["one"]
    actions.stop(store, run.id)  # a sentence on the page, never a traceback


@pytest.mark.slow
def test_an_evaluation_on_a_full_disk_says_so(copied: Run, tmp_path: Path) -> None:
    try:
        with disks.small_disk(tmp_path / "disk", 8 << 20):
            run = Run(tmp_path / "disk" / "mine")
            shutil.copytree(copied.path, run.path, ignore=shutil.ignore_patterns("checkpoints"))
            job.start([run], job.Settings(rows=60, max_new_tokens=64))
            until(lambda: job.state(run).share > 0 or not job.state(run).running, "a first row")
            disks._fill(tmp_path / "disk" / "ballast", 0)
            until(lambda: not job.state(run).running, "its end")
            assert "is full: free some space, then evaluate again" in job.state(run).fault, job.state(run)
            assert job.result(run) is None and not list(run.path.glob(".evaluation*"))
            with pytest.raises(UserError, match="No space left"):
                for name in ("evaluate.log", job.PROGRESS):  # what they hold would be room
                    (run.path / name).unlink()
                disks._fill(tmp_path / "disk" / "more", 0)
                job.start([run], job.Settings(rows=4, max_new_tokens=0))
    except OSError as error:
        pytest.skip(f"needs a small disk: {error}")


def test_what_the_memory_took_is_kept_whole_or_told(
    small: Callable[[int], None], store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QLORA_GUI_CACHE", str(store.root / "cache"))
    assert calibration.record("T4", 100, 110) == ""
    small(0)
    while not (said := calibration.record("T4", 100, 110)):  # the file's own last block
        pass
    assert "could not be saved for the next prediction" in said and "No space left" in said
    assert calibration.path().read_bytes().endswith(b"\n")
    assert calibration.correction("T4").at(100).factor == 1.1


def test_an_upload_that_does_not_fit_leaves_nothing(
    small: Callable[[int], None], store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QLORA_GUI_CACHE", str(store.root / "cache"))
    monkeypatch.setattr(tab, "_KEEP_FREE", 0)
    (tmp_path / "rows.jsonl").write_bytes(b"x" * (3 << 20))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 0, 2**40))
    small(1 << 20)
    tab._keep(str(tmp_path / "rows.jsonl"))
    assert list((store.root / "cache" / "uploads").iterdir()) == []


def test_a_line_that_was_written_in_part_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append("stage", text="one")
    before = log.path.read_bytes()
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, body: write(file, body[:10]))
        with pytest.raises(OSError, match="No space left"):
            log.append("stage", text="two")
    assert log.path.read_bytes() == before

    def beside(file: int, body: bytes) -> int:
        count = write(file, body[:10])
        with log.path.open("ab") as other:  # another process, in the same moment
            other.write(b'\n{"t": 1.0, "kind": "stage", "text": "other"}\n')
        return count

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", beside)
        with pytest.raises(OSError, match="No space left"):
            log.append("stage", text="three")
    log.append("stage", text="four")
    told, *found = event_file.read(log.path)[0]
    assert told["count"] == 1 and [event["text"] for event in found] == ["one", "other", "four"]


def test_nobody_begins_to_read_between_the_look_for_readers_and_the_move(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = store.create(make({"name": "run"})), []

    def move(source: Path, target: Path) -> None:
        with pytest.raises(filelock.Timeout), filelock.FileLock(locks.marking(store.root).path, timeout=0):
            pass
        asked.append(source)
        source.rename(target)

    monkeypatch.setattr("qlora_gui.runs.store.files.replace", move)
    with locks.reading([run.path], "an evaluation"), pytest.raises(UserError, match="being read by an evaluation"):
        store.delete(run)
    assert not asked
    store.delete(run)
    assert asked == [run.path] and not run.path.exists()


def test_a_run_that_lies_elsewhere_is_read_without_a_file_beside_it(store: RunStore, tmp_path: Path) -> None:
    downloads = tmp_path / "Downloads"
    downloads.mkdir()
    shutil.copytree(store.create(make({"name": "run"})).path, downloads / "copied")
    with store.starting(timeout=1):
        (downloads / "link").symlink_to(store.root / "run")
    with locks.reading([downloads / "copied", downloads / "link"], "an evaluation"):
        assert locks.readers(store.root / "run") == locks.readers(downloads / "copied") == ["an evaluation"]
        assert (store.root / ".marks.lock").exists()  # where the link leads to
    assert sorted(file.name for file in downloads.iterdir()) == ["copied", "link"]


def test_many_who_delete_and_read_at_once(store: RunStore) -> None:
    runs = [store.create(make({"name": f"run-{number}"})) for number in range(12)]
    lost: list[str] = []

    def read(run: Run) -> None:
        for _ in range(10):
            with locks.reading([run.path], "an evaluation"):
                if run.path.is_dir() and not (run.path / "run.json").exists():
                    lost.append(run.id)

    def delete(run: Run) -> None:
        for _ in range(10):
            try:
                store.delete(run)
            except UserError:
                continue

    threads = [threading.Thread(target=what, args=(run,)) for run in runs for what in (read, delete)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not lost
    for run in store.all():
        assert json.loads((run.path / "run.json").read_text())


def test_one_link_that_leads_nowhere_hides_no_run(store: RunStore, llama: Path) -> None:
    run = store.create(make({"name": "run"}))
    (store.root / "loop").symlink_to("loop")
    os.mkdir(os.fsencode(store.root) + b"/caf\xe9")
    (Path(os.fsdecode(os.fsencode(store.root) + b"/caf\xe9")) / "run.json").write_text("{}")
    assert [one.id for one in store.all()] == ["run"] and [one.id for one in scan.scan(store.root)] == ["run"]
    assert scan.left_out(store.root) == ["caf\\xe9"] and "caf\\xe9" in app.text(store)
    with run.lock(), pytest.raises(launch.BusyError):
        launch.check_free(store, config=make({}))


def test_a_folder_that_nobody_can_look_through_starts_nothing(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.root.mkdir()

    def gone(path: object) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), str(path))

    monkeypatch.setattr(os, "scandir", gone)
    with pytest.raises(UserError, match="cannot be read: Transport endpoint"):
        launch.check_free(store, config=make({}))


@pytest.mark.parametrize("what", ["a link that leads to nothing", "a file"])
def test_an_adapters_folder_that_is_none_is_told_as_what_it_is(tmp_path: Path, what: str) -> None:
    root = tmp_path / "adapters"
    root.symlink_to(tmp_path / "usb" / "adapters") if "link" in what else root.write_text("")
    with pytest.raises(UserError, match=f"which is {what}: put a folder there"):
        RunStore(root).create(make({}))
    [line] = [line for line in machine._disks(RunStore(root)) if "cannot be made" in line.text]
    assert line.state == "failed" and what.replace("a file", "no folder") in line.text


@pytest.mark.parametrize("place", ["1" + "0" * 400, "-Infinity", "Infinity", "NaN", '"x"'])
def test_a_damaged_mark_of_the_queue_stops_no_one(store: RunStore, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(queue, "ensure_starter", lambda store: None)
    damaged, fine = (store.create(make({"name": name})) for name in ("damaged", "fine"))
    damaged.queue_file.write_text(f'{{"place": {place}, "resume": false}}')
    queue.add(store, [fine])
    assert [run.id for run in queue.waiting(store)] == ["fine"] and [damaged.id] == [
        run.id for run in queue.held_back(store)
    ]
    assert len(index.now(store).summaries) == 2


def test_a_lost_write_behind_the_last_line_changes_no_state(store: RunStore) -> None:
    run = store.create(make({"name": "run"}))
    log = EventLog(run.events_file)
    log.append("started", pid=1, resumed=False)
    log.append("finished", step=3, seconds=1.0)
    with run.events_file.open("ab") as file:
        file.write(b"\0" * (9 << 20))
    assert run.state() == "finished"
    event_file.catch_up(run.events_file)
    assert index.reading(run) == "" and run.state() == "finished"


def test_a_run_with_the_longest_name_can_be_deleted(store: RunStore) -> None:
    run = store.create(make({"name": "run"}))
    long = Run(store.root / ("x" * 255))
    run.path.rename(long.path)
    store.delete(long)
    assert not long.path.exists()


def test_a_run_is_found_by_any_way_to_its_folder(store: RunStore, tmp_path: Path) -> None:
    run = store.create(make({"name": "run"}))
    (tmp_path / "link").symlink_to(store.root)
    command = [sys.executable, "-c", "import time; time.sleep(60)", launch.MODULE, str(run.path)]
    with subprocess.Popen(command) as child:
        try:
            by_link = Run(tmp_path / "link" / "run")
            until(lambda: launch.find(by_link) is not None, seconds=10)
            assert launch.kill(by_link) and launch.find(by_link) is None
        finally:
            child.kill()


def test_a_time_that_no_calendar_has_is_left_empty() -> None:
    assert summary._made(1e17) == "" and summary._made(0.0)
