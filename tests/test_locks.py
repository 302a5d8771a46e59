"""Folders on file systems without locks: told, and one start at a time by another means."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import pytest

from qlora_gui import locks
from qlora_gui.config import make
from qlora_gui.errors import UserError
from qlora_gui.runs import launch
from qlora_gui.runs.store import RunStore
from qlora_gui.system import files
from tests.conftest import TINY, wait_until_ended

ROOT = Path(__file__).parents[1]
# What Python runs before anything else: flock is refused for files that lie below one folder. The kernel grants it on folders
# of NFS and 9p, which lock nothing.
WITHOUT = """
import errno, fcntl, os, stat
_flock, _below, _code = fcntl.flock, os.environ.get("TEST_NO_LOCKS_BELOW"), os.environ.get("TEST_NO_LOCKS_CODE", "ENOLCK")
def flock(file, operation):
    number = file if isinstance(file, int) else file.fileno()
    on_file = stat.S_ISREG(os.fstat(number).st_mode)
    if _below and on_file and os.readlink(f"/proc/self/fd/{number}").startswith(_below):
        raise OSError(getattr(errno, _code), os.strerror(getattr(errno, _code)))
    return _flock(file, operation)
fcntl.flock = flock
"""


@pytest.fixture
def no_locks(store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In this process and in all that it starts, the store's file system has no locks."""
    import fcntl

    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "sitecustomize.py").write_text(WITHOUT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "first"))
    monkeypatch.setenv("TEST_NO_LOCKS_BELOW", str(store.root))
    flock = fcntl.flock
    exec(WITHOUT, {})
    yield
    fcntl.flock = flock


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("code", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_one_at_a_time_also_without_locks(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setenv("TEST_NO_LOCKS_CODE", code)
    store.root.mkdir()
    line = tmp_path / "line"
    program = (
        "import sys, time, filelock\nfrom pathlib import Path\nfrom qlora_gui import locks\n"
        "for _ in range(15):\n"
        "    with locks.Lock(Path(sys.argv[1]), timeout=60):\n"
        "        with open(sys.argv[2], 'a') as file: file.write('(')\n"
        "        time.sleep(0.002)\n"
        "        with open(sys.argv[2], 'a') as file: file.write(')')\n"
    )
    command = [sys.executable, "-c", program, str(store.root / ".start.lock"), str(line)]
    environment = os.environ | {"PYTHONPATH": f"{os.environ['PYTHONPATH']}{os.pathsep}{ROOT}"}
    children = [subprocess.Popen(command, env=environment) for _ in range(4)]
    assert [child.wait(120) for child in children] == [0] * 4
    assert line.read_text() == "()" * 60
    assert sorted(path.name for path in store.root.iterdir()) == [], "nothing is left behind, not even an empty lock"


@pytest.mark.usefixtures("no_locks")
def test_a_run_is_told_trained_once_and_seen_to_live(store: RunStore, llama: Path) -> None:
    knobs = TINY | {"base_model": str(llama), "max_steps": 400, "save_steps": 400, "eval_fraction": 0.0}
    run, other = (store.create(make(knobs | {"name": name})) for name in ("one", "two"))
    launch.start(run, store)
    assert run.is_locked() and run.state() == "running"
    with pytest.raises(UserError, match="'one' is running"):
        launch.start(other, store)
    with pytest.raises(UserError, match="stop it before deleting it"):
        store.delete(run)
    told = [event["text"] for event in run.events()[0] if event["kind"] == "note"]
    assert any("has no locks" in text and "two minutes" in text for text in told)
    launch.kill(run)  # it cannot take its claim back
    assert not run.is_locked() and run.state() == "died"
    launch.start(other, store)
    other.request_stop()
    assert wait_until_ended(other) == "stopped"
    assert not list(other.path.glob(".lock.claim*"))
    store.delete(run)


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize(
    ("change", "held"),
    [
        ({}, True),
        ({"pid": 2**22 + 5}, False),  # beyond what Linux gives: gone
        ({"started": 5.0}, False),  # another process with its number
        ({"boot": "another"}, False),
        ({"host": "elsewhere"}, True),
        ({"processes": "pid:[1]"}, True),  # another container
        ({"host": "elsewhere", "age": 200}, False),
        ({"host": "elsewhere", "age": -2e9}, False),  # of the future, which nobody renews
        ({"processes": "pid:[1]", "age": 200}, False),
        ({"age": 200}, True),
    ],
    ids=range(10),
)
def test_whose_claim_holds(store: RunStore, change: dict[str, object], held: bool) -> None:
    store.root.mkdir()
    lock = store.root / ".lock"
    claim = lock.with_name(".lock.claim")
    claim.write_text(json.dumps(locks._me() | change))
    age = float(str(change.get("age", 0)))
    os.utime(claim, (time.time() - age, time.time() - age))
    assert locks.is_held(lock) is held
    if held:
        with pytest.raises(filelock.Timeout):
            locks.Lock(lock).acquire()
    else:
        with locks.Lock(lock):
            assert json.loads(claim.read_text()) == locks._me()
        assert not claim.exists()


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b'{"host": 3}', b"\xff"])
def test_a_damaged_claim_holds_for_a_moment_only(store: RunStore, body: bytes) -> None:
    store.root.mkdir()
    claim = store.root / ".lock.claim"
    claim.write_bytes(body)
    assert locks.is_held(store.root / ".lock"), "somebody may be writing it"
    os.utime(claim, (1, 1))
    with locks.Lock(store.root / ".lock"):
        assert locks.is_held(store.root / ".lock")


@pytest.mark.usefixtures("no_locks")
def test_what_broke_off_while_it_took_over_blocks_for_a_moment_only(store: RunStore) -> None:
    store.root.mkdir()
    claim = store.root / ".lock.claim"
    claim.write_text(json.dumps(locks._me() | {"boot": "another"}))
    aside = claim.with_name(".lock.claim.break")
    aside.touch()
    with pytest.raises(filelock.Timeout):
        locks.Lock(store.root / ".lock").acquire()
    os.utime(aside, (1, 1))
    with locks.Lock(store.root / ".lock", timeout=5):
        assert not aside.exists()


def test_where_there_are_locks_nothing_is_said(tmp_path: Path) -> None:
    assert (
        files.has_locks(tmp_path)
        and locks.describe_fallback(tmp_path) == ""
        and locks.describe_fallback(tmp_path / "missing") == ""
    )
    with locks.Lock(tmp_path / ".lock"):
        assert locks.is_held(tmp_path / ".lock") and not (tmp_path / ".lock.claim").exists()
    assert not locks.is_held(tmp_path / ".lock")
    assert {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP} <= files.NO_LOCKS
