"""The queue: real runs that wait for each other, started by a process of its own that may be killed."""

import itertools
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from qlora_gui import locks
from qlora_gui.cli import sweep
from qlora_gui.config import make
from qlora_gui.errors import UserError
from qlora_gui.runs import launch, queue
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import run_view
from qlora_gui.ui.runs import index
from tests.conftest import TINY, train
from tests.faults.ground import ENDED, until

ROOT = Path(__file__).parents[2]


def starters(store: RunStore) -> list[psutil.Process]:
    words = [queue.MODULE, str(store.root)]
    return [one for one in psutil.process_iter(["cmdline"]) if (one.info["cmdline"] or [])[-2:] == words]


def made(store: RunStore, base: Path, *names: str, **knobs: object) -> list[Run]:
    return [
        store.create(make(TINY | {"base_model": str(base), "name": name, "max_steps": 2} | knobs)) for name in names
    ]


def span(run: Run) -> tuple[float, float]:
    times = [event["t"] for event in run.events()[0]]
    return times[0], times[-1]


@pytest.mark.slow
def test_runs_wait_in_order_through_a_killed_starter(store: RunStore, llama: Path) -> None:
    """Reordered while they wait, the starter killed, started again by a run's end: one after the other, all finish."""
    [first] = made(store, llama, "first", max_steps=12)
    b, c, d = made(store, llama, "b", "c", "d")
    launch.start(first, store)
    queue.add(store, [b])
    queue.add(store, [c, d])
    assert [run.id for run in queue.waiting(store)] == ["b", "c", "d"]
    assert {run.state() for run in (b, c, d)} == {"queued"}
    queue.move(store, d, -2)
    queue.move(store, c, 5)
    assert [run.id for run in queue.waiting(store)] == ["d", "b", "c"]
    with pytest.raises(UserError, match="'b' is queued already"):
        queue.add(store, [b])
    with pytest.raises(launch.BusyError, match="first"):
        launch.start(b, store)
    until(lambda: starters(store))
    for process in starters(store):
        process.kill()
        process.wait(10)
    assert {run.state() for run in (b, c, d)} == {"queued"}
    until(lambda: all(run.state() in ENDED for run in (first, b, c, d)))
    assert [run.state() for run in (first, b, c, d)] == ["finished"] * 4, b.log_tail()
    spans = [span(run) for run in (first, d, b, c)]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans)), spans
    until(lambda: not starters(store), seconds=10)
    assert not queue.waiting(store)


def test_only_one_starter_lives(store: RunStore, llama: Path) -> None:
    [first] = made(store, llama, "first", max_steps=400)
    launch.start(first, store)
    queue.add(store, made(store, llama, "b"))
    until(lambda: locks.is_held(store.root / queue.LOCK))
    command = [sys.executable, "-m", queue.MODULE, str(store.root)]
    assert subprocess.run(command, cwd=ROOT, timeout=30).returncode == 0
    assert len(starters(store)) == 1
    queue.leave(store, store.get("b"))
    assert store.get("b").state() == "stopped"
    until(lambda: not starters(store), seconds=10)


@pytest.mark.slow
def test_a_run_that_cannot_start_does_not_hold_up_the_others(store: RunStore, llama: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    bad, good = made(store, llama, "bad", dataset=str(data)) + made(store, llama, "good")
    data.unlink()
    queue.add(store, [bad, good])
    until(lambda: bad.state() in ENDED and good.state() in ENDED)
    assert (bad.state(), good.state()) == ("failed", "finished"), bad.log_tail()


@pytest.mark.slow
def test_a_launcher_that_fails_at_once_does_not_hold_up_the_others(
    store: RunStore, llama: Path, tmp_path: Path
) -> None:
    """accelerate finds the port taken before anything of this program runs."""
    file, taken = tmp_path / "odd.yaml", socket.create_server(("127.0.0.1", 0))
    file.write_text(
        "distributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 2\nmain_process_ip: 127.0.0.1\n"
        f"main_process_port: {taken.getsockname()[1]}\n"
    )
    [bad], [good] = made(store, llama, "bad", accelerate_config=str(file)), made(store, llama, "good")
    queue.add(store, [bad, good])
    until(lambda: bad.state() in ENDED and good.state() in ENDED)
    assert (bad.state(), good.state()) == ("failed", "finished"), bad.log_tail()
    assert "ended at once" in bad.events()[0][-1]["message"]
    with pytest.raises(UserError, match="ended at once"):
        launch.start(bad, store)
    taken.close()
    file.write_text("distributed_type: MULTI_GPU\nno_such_word: 1\n")  # changed since the run was made
    with pytest.raises(UserError, match="sets no_such_word, which this program does not pass on"):
        launch.start(bad, store)


def test_a_child_of_one_process_of_several_is_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "ACCELERATE_USE_FSDP"):
        monkeypatch.setenv(name, "1")
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "ACCELERATE_USE_FSDP"} & launch.child_environment().keys()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert launch.child_environment()["ACCELERATE_USE_FSDP"] == "1"  # what a person set stays


def test_while_a_run_is_being_started_it_is_not_taken_out(
    store: RunStore, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [run] = made(store, llama, "one")
    queue._mark(run, 1, False)
    monkeypatch.setattr("qlora_gui.runs.store._PATIENCE_SECONDS", 0.1)
    with store.starting(timeout=1):
        for act in (lambda: queue.leave(store, run), lambda: store.delete(run), lambda: queue.move(store, run, 1)):
            with pytest.raises(UserError, match="being started"):
                act()
    assert run.state() == "queued"


def test_a_mark_that_the_queue_did_not_make_starts_nothing(
    store: RunStore, llama: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder from elsewhere says that it waits, before all others: it is shown and told, and never started by itself."""
    gift, damaged, copied, own = made(store, llama, "gift", "damaged", "copied", "own")
    monkeypatch.setattr(queue, "ensure_starter", lambda store: None)
    gift.queue_file.write_text('{"place": -1e9, "resume": false}')
    damaged.queue_file.write_text("{half")
    queue.add(store, [own])
    shutil.copy(own.queue_file, copied.queue_file)
    assert [run.id for run in queue.waiting(store)] == ["own"]
    assert sorted(run.id for run in queue.held_back(store)) == ["copied", "damaged", "gift"]
    assert [(one.state, one.place) for one in index.now(store).summaries if one.id == "gift"] == [("queued", 0)]
    assert "came from elsewhere, and nothing will start it" in run_view.draw(gift).overview
    sweep.show(store)
    assert "held back  gift" in capsys.readouterr().out
    queue.leave(store, gift)
    assert gift.state() == "stopped"
    queue.add(store, [damaged])  # whoever has this folder may
    assert [run.id for run in queue.waiting(store)] == ["own", "damaged"]
    (store.root / ".queue.key").unlink()
    assert queue.waiting(store) == []


@pytest.mark.slow
def test_a_stopped_run_waits_to_be_resumed(store: RunStore, llama: Path) -> None:
    run = train(store, base_model=str(llama), name="once")
    with pytest.raises(UserError, match="no checkpoint"):
        queue.add(store, made(store, llama, "new"), resume=True)
    queue.add(store, [run], resume=True)
    assert run.state() == "queued"
    until(lambda: run.state() == "finished")
    started = [event for event in run.events()[0] if event["kind"] == "started"]
    assert [event["resumed"] for event in started] == [False, True]
