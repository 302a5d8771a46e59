"""Files: what is opened, locked, replaced and named differently from one operating system to the next."""

import errno
import importlib
import os
import re
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from qlora_gui.system.kind import is_windows

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_CAREFUL = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_CAREFUL |= getattr(os, "O_BINARY", 0)  # else Windows writes a carriage return before every line end
_PATIENCE_SECONDS = 2.0
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_LONGEST_PATH = 259  # characters, on Windows without long paths
_INSIDE_A_RUN = 80  # of the longest name below a run's folder, a weight file of a checkpoint
# Devices of DOS, which Windows sees in every folder, whatever ending they have.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])( *\..*| *)", re.IGNORECASE)


def open_carefully(path: Path, flags: int, mode: int = 0o644) -> int:
    """os.open that follows no symlink, waits for no pipe, and writes bytes as they are given.

    Windows has no flags for the first two: whoever is careful looks at what stands there before.
    """
    return os.open(path, flags | _CAREFUL, mode)


def is_locked(path: Path) -> bool | None:
    """Whether a living process holds flock on a file; None on a system without flock, which has to try otherwise.

    Asked without writing. False where there is no such file, and on a file system without locks.
    """
    if fcntl is None:
        return None
    try:
        file = open_carefully(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: readers do not take each other for the holder
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)


def has_locks(folder: Path) -> bool:
    """Whether files in a folder can be locked; True where that cannot be determined.

    NFS without its lock service, and some FUSE and 9p mounts, have no flock, but the kernel grants it on their folders: asked
    is a file, and where there is none, one that is made for it.
    """
    if fcntl is None:
        return True
    try:
        with _some_file(folder) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        return error.errno not in NO_LOCKS
    return True


def _some_file(folder: Path) -> BinaryIO:
    """A file of a folder, open, that nobody locks for anything; a nameless one where none can be opened. Raises OSError."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith((".lock", ".claim")) or not entry.is_file(follow_symlinks=False):
                continue
            with suppress(OSError):
                return os.fdopen(open_carefully(Path(entry.path), os.O_RDONLY), "rb")
    return TemporaryFile(dir=folder)  # type: ignore[return-value]


def replace(source: Path | str, target: Path | str) -> None:
    """Move a file, or a folder to where none is, over what is there: readers see the old one or the new one.

    Windows lets nobody replace a file that somebody reads just now: there it is tried for two seconds.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if not is_windows() or time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


def allocate(body: BinaryIO, size: int) -> None:
    """Give a file so many bytes (at least one) that are really on the disk. Raises OSError where it is full.

    macOS keeps no place for bytes that nobody has written, so there it may still fill up; Windows does.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(body.fileno(), 0, max(size, 1))
    else:
        body.truncate(max(size, 1))


def set_mode(path: Path | str, mode: int) -> None:
    """POSIX permissions. On Windows a file has its folder's, and a profile's folders are their owner's alone."""
    if not is_windows():
        os.chmod(path, mode)


def is_mine_alone(info: os.stat_result) -> bool:
    """Whether a file is this user's and no other may read or write it. Windows reports neither: there a profile's
    folders are their owner's alone.
    """
    return not hasattr(os, "getuid") or (info.st_uid == os.getuid() and not info.st_mode & 0o077)


def is_spelled(path: Path) -> bool:
    """Whether a folder lists exactly this name: Windows and macOS find `Run` by `run`, and Windows by `run.` too."""
    try:
        return path.name in os.listdir(path.parent)
    except OSError:
        return False


def why_not_a_name(name: str) -> str:
    """Why a name can be no folder's on Windows, "" where it can; asked everywhere, for runs are copied and shared."""
    if _DEVICES.fullmatch(name):
        return f"Windows keeps the name '{name}' for a device"
    if name.endswith((".", " ")):
        return "Windows drops a dot or a space at the end of a name"
    if bad := sorted({sign for sign in name if sign in '<>:"/\\|?*' or ord(sign) < 32}):
        return f"Windows has no {' '.join(map(repr, bad))} in names"
    return ""


def why_too_long(folder: Path) -> str:
    """Why a run's folder of this path cannot hold what a run writes, as a sentence; "" where it can."""
    length = len(str(folder)) + _INSIDE_A_RUN
    if not is_windows() or length <= _LONGEST_PATH or _has_long_paths():
        return ""
    return (
        f"The path of the run's folder is too long for Windows ({len(str(folder))} characters, {_LONGEST_PATH - _INSIDE_A_RUN} "
        "at most): choose a shorter one with --adapters-dir, or allow long paths in Windows' settings."
    )


def _has_long_paths() -> bool:
    try:
        winreg: Any = importlib.import_module("winreg")
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Control\FileSystem") as key:
            return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])
    except (ImportError, OSError):
        return False
