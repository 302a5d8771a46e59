"""Is a lock file held? Asked without writing, so that it can be asked in a folder that is read-only."""

import contextlib
import os
from pathlib import Path

import filelock

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock of this file (filelock's); False where there is no such file."""
    if fcntl is None:
        return path.exists() and _is_held_elsewhere(path)
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: readers do not take each other for the holder
        return False
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(file)


def _is_held_elsewhere(path: Path) -> bool:
    with contextlib.suppress(OSError):
        try:
            with filelock.FileLock(path, timeout=0):
                return False
        except filelock.Timeout:
            return True
    return False
