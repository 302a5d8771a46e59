"""A little disk space, reserved for the final event of a run or an evaluation whose disk is full."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from qlora_gui import plain_files

_BYTES = 256 << 10
_NEARLY_NONE = 4 << 20  # bytes free: too few for a checkpoint of any size
_FULL = (errno.ENOSPC, errno.EDQUOT)
_WORDS = ("no space left", "disk quota", "os error 28", "os error 122", "unexpected pos", "failed writing file")


class Reserve:
    """A file of real bytes that are freed when they are needed."""

    def __init__(self, folder: Path):
        self.file = folder / ".reserve"

    def give_back(self) -> None:
        """Free the bytes."""
        with contextlib.suppress(OSError):
            self.file.unlink(missing_ok=True)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[Reserve]:
    """Hold a reserve within the context. Raises no error where the disk is full already."""
    reserve = Reserve(folder)
    with contextlib.suppress(OSError), plain_files.open_to_write(reserve.file) as file:
        file.write(os.urandom(_BYTES))  # no zeros: some file systems keep no place for those
    try:
        yield reserve
    finally:
        reserve.give_back()


def why_not_written(folder: Path, error: BaseException, then: str = "resume from the last checkpoint") -> str:
    """A sentence for a full or a read-only disk; "" for any other error.

    `then` is what to do when there is room. Libraries wrap the system's error in errors of their own.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.filename and not str(seen.filename).startswith(str(folder)):
            return ""  # another disk, or a folder of somebody else's
        if isinstance(seen, OSError) and seen.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return (
                f"The folder '{folder}' cannot be written to any more ({seen.strerror}): make it writable, then {then}."
            )
        full = isinstance(seen, OSError) and seen.errno in _FULL
        if full or (any(word in str(seen).lower() for word in _WORDS) and _is_full(folder)):
            return f"The disk of '{folder}' is full: free some space, then {then}."
        seen = seen.__cause__ or seen.__context__
    return ""


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < _NEARLY_NONE
    except OSError:
        return False
