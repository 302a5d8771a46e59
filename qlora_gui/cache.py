"""Cached quantized models: where they are on disk, how large they are, and how they are cleared.

One folder per base and quantization. Whoever writes or loads one holds its lock; `model.quantized` does both.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

import filelock

from qlora_gui import hub

_ASIDE = ".part"


class Entry(NamedTuple):
    """One cached model. `name` says base, quantization and device; `bytes` is its size on disk."""

    name: str
    path: Path
    bytes: int


def folder() -> Path:
    """The folder of all cached models."""
    return hub.cache_dir() / "quantized"


def aside(name: str) -> Path:
    """Where an entry is written before it is moved to its place."""
    return folder() / (name + _ASIDE)


def lock(name: str) -> filelock.BaseFileLock:
    """The lock of one entry, not yet held. Raises OSError when the folder cannot be made."""
    folder().mkdir(parents=True, exist_ok=True)
    return filelock.FileLock(folder() / f"{name}.lock")


def entries() -> list[Entry]:
    """All cached models, largest first; leftovers of interrupted writes count as well."""
    if not folder().is_dir():
        return []
    cached = [Entry(path.name, path, _size(path)) for path in folder().iterdir() if path.is_dir()]
    return sorted(cached, key=lambda entry: (-entry.bytes, entry.name))


def clear() -> int:
    """Delete every entry that nobody is writing or loading at the moment; returns the bytes freed.

    A process that has loaded a base keeps it: its memory holds what it needs.
    """
    return sum(remove(entry.name) for entry in entries())


def remove(name: str) -> int:
    """Delete one entry; returns the bytes freed, 0 when it is in use or cannot be deleted."""
    path = folder() / name
    size = _size(path)
    try:
        with lock(name.removesuffix(_ASIDE)).acquire(timeout=0):
            shutil.rmtree(path)
    except (filelock.Timeout, OSError):
        return size - _size(path)
    return size


def _size(path: Path) -> int:
    try:
        return sum(file.stat().st_size for file in path.iterdir())
    except OSError:
        return 0  # gone meanwhile
