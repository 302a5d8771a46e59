"""All runs of a folder at a glance: what is there, how large and how old, and who lives, without reading a single file.

With thousands of runs this is what a page can do every second; whatever costs more is done again only where the stamp
of a run has changed.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple

from qlora_gui import locks

_FILES = ("events.jsonl", "evaluation.json")
_ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
_LOCKS = {".lock", ".lock.claim"}
_SETTLED_SECONDS = 3.0  # younger, a folder may change again without another time of change
_listed: dict[str, tuple[int, frozenset[str]]] = {}  # names in a folder, by its time of change
_left_out: dict[Path, list[str]] = {}


class Seen(NamedTuple):
    """One run. `stamp` changes with whatever is told of it; `made` is when its run.json was written (since the epoch)."""

    id: str
    folder: str
    made: float
    locked: bool
    stopping: bool
    queued: bool
    stamp: tuple[int, ...]

    @property
    def path(self) -> Path:
        return Path(self.folder)


def folders(root: Path) -> list[tuple[Path, float]]:
    """The runs of a folder and when each was made, newest first."""
    found = []
    for name in _names(root):
        with contextlib.suppress(OSError):
            found.append((Path(root, name), os.stat(os.path.join(root, name, "run.json")).st_mtime))
    return sorted(found, key=lambda one: (one[1], one[0].name), reverse=True)


def scan(root: Path) -> list[Seen]:
    """All runs of a folder, newest first."""
    found = [one for name in _names(root) if (one := _see(f"{root}/{name}", name)) is not None]
    return sorted(found, key=lambda one: (one.made, one.id), reverse=True)


def see(path: Path) -> Seen | None:
    """One run; None where there is none."""
    return _see(str(path), path.name)


def _see(place: str, name: str) -> Seen | None:
    try:
        made = os.stat(f"{place}/run.json")
        names = _names_in(place)
    except OSError:
        return None
    stamp = [made.st_size, made.st_mtime_ns, made.st_ino]
    for file in _FILES:
        if file in names:
            with contextlib.suppress(OSError):
                stat = os.stat(f"{place}/{file}")
                stamp += [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    locked = not names.isdisjoint(_LOCKS) and locks.is_held(f"{place}/.lock")
    stopping, queued = "stop" in names, "queued" in names
    stamp += [locked, stopping, queued, *(file in names for file in (*_FILES, *_ADAPTER))]
    return Seen(name, place, made.st_mtime, locked, stopping, queued, tuple(stamp))


def left_out(root: Path) -> list[str]:
    """Folders that were left out when this one was looked at last, for their names are no UTF-8: those as they can be shown."""
    return [
        name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for name in _left_out.get(root, [])
    ]


def why_unlisted(root: Path) -> str:
    """Why a folder that is there cannot be looked through, so that nobody knows its runs; "" where it can, or is not there."""
    try:
        with os.scandir(root):
            return ""
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"The folder '{root}' cannot be read: {error.strerror or error}."


def _names(root: Path) -> list[str]:
    """The folders that may be runs; those whose name begins with a dot are none."""
    names: list[str] = []
    nameless: list[str] = []
    try:
        with os.scandir(root) as found:
            for one in found:
                with contextlib.suppress(OSError):  # a link in a circle, or into a folder that is closed or gone
                    if not one.name.startswith(".") and one.is_dir():
                        (names if _is_text(one.name) else nameless).append(one.name)
    except OSError:
        return []
    _left_out[root] = sorted(nameless)
    return names


def _is_text(name: str) -> bool:
    """Whether a name can be sent and written: of bytes that are no UTF-8, Python makes halves of characters."""
    return name.isascii() or not any("\ud800" <= sign <= "\udfff" for sign in name)


def _names_in(place: str) -> frozenset[str]:
    changed = os.stat(place).st_mtime_ns
    known = _listed.get(place)
    if known is not None and known[0] == changed:
        return known[1]
    names = frozenset(os.listdir(place))
    if time.time() - changed / 1e9 > _SETTLED_SECONDS:
        _listed[place] = (changed, names)
    return names
