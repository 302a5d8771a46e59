"""Locks of files: held by one process at a time, and gone with it.

Where the file system has none (NFS without its lock service, some FUSE and 9p mounts) a claim takes the lock's place: a file
that only one can make, with the process, the machine and its boot in it. It is renewed while its holder lives; one whose
holder is gone, by the process table of the same machine or by its age, is taken over. `describe_fallback` explains that to people.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock
import psutil

from qlora_gui import plain_files
from qlora_gui.system import files, processes

_RENEW_SECONDS, _STALE_SECONDS = 20.0, 120.0  # of claims made on other machines, or in other containers
_BREAK_SECONDS = 20.0  # that taking over a claim may last
_POLL_SECONDS = 0.05
_MARKING_SECONDS = 10.0
STARTING = ".start.lock"
_READER = ".reading-"
_MOST_CLAIM = 4096  # bytes
READERS = ("an evaluation", "an export", "a push to the hub", "Compare, which is loading it")


class Lock:
    """The lock of a file; a context manager. Raises filelock.Timeout when it is not free within `timeout` seconds."""

    def __init__(self, path: Path, timeout: float = 0):
        self.path, self.timeout = path, timeout
        self._held: filelock.BaseFileLock | _Claim | None = None

    def acquire(self) -> "Lock":
        if files.has_locks(self.path.parent):
            self._held = filelock.FileLock(self.path, timeout=self.timeout)
            self._held.acquire()
        else:
            self._held = _Claim(self.path)
            self._held.acquire(self.timeout)
        return self

    def release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def __enter__(self) -> "Lock":
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def describe_fallback(folder: Path) -> str:
    """A note on a folder whose file system has no locks; "" where it has them."""
    if files.has_locks(folder):
        return ""
    return (
        f"The file system of '{folder}' has no locks: files with the process and the machine in them take their place, so "
        "that one run is started at a time. A run that was killed on another machine counts as running for two minutes."
    )


def is_held(path: Path | str) -> bool:
    """Whether a living process holds the lock of this file; False where there is none. Asked without writing, so that it
    can be asked in a folder that is read-only."""
    held = files.is_locked(Path(path))
    if held is None:
        return os.path.exists(path) and _is_held_elsewhere(Path(path))
    return held or (os.path.exists(f"{path}.claim") and _Claim(Path(path)).is_held())


def _is_held_elsewhere(path: Path) -> bool:
    with contextlib.suppress(OSError):
        try:
            with filelock.FileLock(path, timeout=0):
                return False
        except filelock.Timeout:
            return True
    return False


def starting(root: Path, timeout: float) -> Lock:
    """Held while a run is being started in the store `root`, or deleted."""
    return Lock(root / STARTING, timeout)


def marking(root: Path) -> Lock:
    """Held while a mark of `reading` is made in a folder of `root`, and by whoever looks for marks before deleting a folder."""
    return Lock(root / ".marks.lock", timeout=_MARKING_SECONDS)


@contextlib.contextmanager
def _marking_in(folder: Path) -> Iterator[None]:
    """`marking` where the folder is a run of a store, and the store can be written to. A folder elsewhere, such as one that
    was downloaded, is deleted by nobody here: beside it no file is made."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError, filelock.Timeout):
            store = Path(os.path.realpath(folder)).parent
            of_a_store = (store / STARTING).exists() or not files.has_locks(store)  # a claim is removed, and so no sign
            if of_a_store and (folder / "run.json").is_file():
                held.enter_context(marking(store))
        yield


@contextlib.contextmanager
def reading(folders: Sequence[Path], what: str) -> Iterator[None]:
    """Within, `readers` of these folders returns `what`. Where nothing can be written, nothing can be deleted either, and
    no mark is made."""
    made = []
    try:
        for folder in dict.fromkeys(folders):
            claim = _Claim(folder / f"{_READER}{os.getpid()}-{threading.get_ident()}", what)
            with contextlib.suppress(OSError, filelock.Timeout), _marking_in(folder):
                claim.acquire(0)
                made.append(claim)
        yield
    finally:
        for claim in made:
            with contextlib.suppress(OSError):  # its folder was deleted by hand
                claim.release()


def readers(folder: Path) -> list[str]:
    """What the living processes that read this folder are doing; marks of processes that are gone are removed."""
    activities = []
    for file in sorted(folder.glob(f"{_READER}*.claim")):
        claim = _Claim(file.with_name(file.name.removesuffix(".claim")))
        if claim.is_held():
            what = claim._read().get("what")
            activities.append(what if what in READERS else "another process")  # a folder's files may be a stranger's
        else:
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
    return activities


def _claim_of(path: Path) -> Path:
    return path.with_name(path.name + ".claim")


class _Claim:
    """A file that only one process can make; see above."""

    def __init__(self, path: Path, what: str = ""):
        self.path, self.file = path, _claim_of(path)
        self._mine = _me() | ({"what": what} if what else {})
        self._over = threading.Event()

    def acquire(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not (self._make() or (self._take_over() and self._make())):
            if time.monotonic() >= deadline:
                raise filelock.Timeout(str(self.path))
            time.sleep(_POLL_SECONDS)
        threading.Thread(target=self._renew, daemon=True).start()

    def release(self) -> None:
        self._over.set()
        if self._read() == self._mine:
            self.file.unlink(missing_ok=True)

    def is_held(self) -> bool:
        """Whether it exists, and its process is not gone."""
        return self.file.exists() and not self._is_stale()

    def _make(self) -> bool:
        try:
            file = files.open_carefully(self.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return False
        try:
            os.write(file, json.dumps(self._mine).encode())
        except OSError:
            self.file.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        return True

    def _renew(self) -> None:
        while not self._over.wait(_RENEW_SECONDS):
            if self._read() != self._mine:
                return
            with contextlib.suppress(OSError):
                os.utime(self.file)

    def _take_over(self) -> bool:
        """Remove a claim whose holder is gone; one process at a time does so. Returns whether there is none now."""
        if not self.file.exists():
            return True
        if not self._is_stale():
            return False
        aside = self.file.with_name(self.file.name + ".break")
        try:
            os.close(files.open_carefully(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            with contextlib.suppress(OSError):
                if self._age(aside) > _BREAK_SECONDS:  # its maker was killed
                    aside.unlink(missing_ok=True)
            return False
        try:
            if self._is_stale():  # asked again, for another may have taken it over meanwhile
                self.file.unlink(missing_ok=True)
            return not self.file.exists()
        finally:
            aside.unlink(missing_ok=True)

    def _is_stale(self) -> bool:
        claim, mine = self._read(), self._mine
        try:
            here = (claim.get("host"), claim.get("processes")) == (mine["host"], mine["processes"])
            if here:
                return claim.get("boot") != mine["boot"] or not _lives(claim["pid"], claim["started"])
            age = self._age(self.file)  # {}: being written, or damaged; of the future: not renewed by anybody living
            return age > (_STALE_SECONDS if claim else _BREAK_SECONDS) or age < -_STALE_SECONDS
        except FileNotFoundError:
            return True
        except (OSError, KeyError, TypeError):
            return False

    def _read(self) -> dict[str, Any]:
        try:
            value = json.loads(plain_files.read_bytes(self.file, _MOST_CLAIM))
            return value if isinstance(value, dict) else {}
        except (OSError, ValueError, RecursionError):
            return {}

    def _age(self, file: Path) -> float:
        """Seconds since a file was renewed, by the clock of the file system's own machine where that can be asked."""
        probe = self.file.with_name(f"{self.file.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            probe.touch()
            now = probe.stat().st_mtime
        except OSError:
            now = time.time()
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
        return now - file.stat().st_mtime


def _me() -> dict[str, Any]:
    """What identifies this process among those of all machines."""
    pid = os.getpid()
    return {
        "pid": pid,
        "started": _started(pid),
        "host": socket.gethostname(),
        "boot": processes.boot(),
        "processes": processes.table(),
    }


def _started(pid: int) -> float:
    return round(psutil.Process(pid).create_time(), 1)


def _lives(pid: int, started: float) -> bool:
    """Whether the process is alive, and its number has not been reused by another one."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < 2.0
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
