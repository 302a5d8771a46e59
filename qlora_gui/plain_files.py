"""Files in folders that may come from a stranger: opened only where they are plain files, and never through a link.

A folder that somebody sends can hold symbolic links (to be written through, or to have the owner's files shown), hard
links, pipes that never answer, devices, and files of any size.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from qlora_gui.system import files

MOST_TEXT = 64 << 20  # bytes of a file that is read whole
MOST_CONFIG = 4 << 20  # bytes of a config, a template, a run.json
MOST_ENTRIES = 20_000  # files and folders in a folder that is written to
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


class StrangeFile(OSError):
    """Something that is no plain file, or is too large. `str` and `strerror` describe it."""

    def __init__(self, path: Path, problem: str):
        super().__init__(errno.ELOOP, f"'{path}' {problem}", str(path))

    def __str__(self) -> str:
        return str(self.strerror)


def open_to_read(path: Path, follow: bool = False) -> BinaryIO:
    """A plain file, opened. A symbolic link is followed only to a plain file inside the same folder, or, in a snapshot
    of the hub's cache, inside that model's part of it; with `follow` to any plain file.

    Raises StrangeFile, and OSError as `open` does.
    """
    info = os.lstat(path)
    if stat.S_ISLNK(info.st_mode):
        target = Path(os.path.realpath(path, strict=True))  # of a circle pathlib raises no OSError
        if not follow and not target.is_relative_to(_home(path.parent)):
            raise StrangeFile(path, "is a symbolic link that leads out of its folder: put the file itself there")
        path, info = target, os.lstat(target)
    return os.fdopen(_opened(path, info, os.O_RDONLY), "rb")


def _home(folder: Path) -> Path:
    """Where links of a folder may lead: into itself; files of a snapshot in the hub's cache are links to its blobs."""
    folder = folder.resolve()
    return folder.parents[1] if folder.parent.name == "snapshots" else folder


def read_bytes(path: Path, most: int = MOST_TEXT, follow: bool = False) -> bytes:
    """A whole file of at most so many bytes. Raises StrangeFile for a larger one, else as `open_to_read`."""
    with open_to_read(path, follow) as file:
        body = file.read(most + 1)
        if len(body) > most:
            size = os.fstat(file.fileno()).st_size
            raise StrangeFile(path, f"has {size:,} bytes, and at most {most:,} are read")
    return body


def read_text(path: Path, most: int = MOST_TEXT, follow: bool = False, encoding: str = "utf-8") -> str:
    """The text of a whole file. Raises as `read_bytes` does, and UnicodeDecodeError."""
    return read_bytes(path, most, follow).decode(encoding)


def open_to_write(path: Path, append: bool = False) -> BinaryIO:
    """A plain file of this name alone, made where there is none, emptied unless `append`.

    Raises StrangeFile for a link of either kind, a pipe, a device: none of them is written to or emptied.
    """
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        info = None
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else 0)
    handle = _opened(path, info, flags)
    try:
        if os.fstat(handle).st_nlink > 1:
            raise StrangeFile(path, _hard())
        if not append:
            os.ftruncate(handle, 0)
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "ab" if append else "wb")


def _hard() -> str:
    return "has a second name elsewhere (a hard link), under which it would be changed too: put a copy there"


def _opened(path: Path, seen: os.stat_result | None, flags: int) -> int:
    """A handle on a plain file. `seen` is its lstat: anything else is not even opened, for opening alone can block or have effects."""
    if seen is not None and not stat.S_ISREG(seen.st_mode):
        raise StrangeFile(path, _no_file(seen.st_mode))
    try:
        handle = files.open_carefully(path, flags)
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link since it was looked at
            raise StrangeFile(path, _no_file(stat.S_IFLNK)) from None
        raise
    if not stat.S_ISREG(mode := os.fstat(handle).st_mode):
        os.close(handle)
        raise StrangeFile(path, _no_file(mode))
    return handle


def _no_file(mode: int) -> str:
    return f"is {_KINDS.get(stat.S_IFMT(mode), 'something else')} and no plain file: take it away"


def check_folder(folder: Path) -> None:
    """Raise StrangeFile unless a folder is a real one, and everything in it, however deep, a plain file or a folder.

    For folders into which libraries write that open files as they like.
    """
    if stat.S_ISLNK(os.lstat(folder).st_mode):
        raise StrangeFile(
            folder, "is a symbolic link, and what it leads to is not changed: put the folder itself there"
        )
    for number, entry in enumerate(_all(folder), 1):
        info = entry.stat(follow_symlinks=False)
        if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
            raise StrangeFile(Path(entry.path), _no_file(info.st_mode))
        if stat.S_ISREG(info.st_mode) and info.st_nlink > 1:
            raise StrangeFile(Path(entry.path), _hard())
        if number > MOST_ENTRIES:
            raise StrangeFile(folder, f"holds more than {MOST_ENTRIES:,} files: take away what does not belong there")


def check_readable(folder: Path, follow: bool = False) -> None:
    """Raise StrangeFile for what lies in a folder, not deeper, and is neither a folder nor can be opened to be read.

    For folders that libraries read which open files as they like.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir():
                open_to_read(Path(entry.path), follow).close()


def _all(folder: Path) -> Iterator["os.DirEntry[str]"]:
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
