"""All runs of a folder at a glance: which there are, their size and age, and which are live, without reading any file.

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
_neither: dict[Path, list[str]] = {}


class Seen(NamedTuple):
    """One run, or adapter made elsewhere. `stamp` changes with everything that is reported about it; `made` is when its
    run.json, or else its adapter_config.json, was written (since the epoch)."""

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
    runs = []
    for name in _names(root):
        with contextlib.suppress(OSError):
            runs.append((Path(root, name), _record(f"{root}/{name}").st_mtime))
    return sorted(runs, key=lambda item: (item[1], item[0].name), reverse=True)


def scan(root: Path) -> list[Seen]:
    """All runs of a folder, newest first."""
    seen = {name: _see(f"{root}/{name}", name) for name in _names(root)}
    _neither[root] = sorted(name for name, run in seen.items() if run is None)
    runs = [run for run in seen.values() if run is not None]
    return sorted(runs, key=lambda run: (run.made, run.id), reverse=True)


def see(path: Path) -> Seen | None:
    """One run; None where there is none."""
    return _see(str(path), path.name)


def _see(place: str, name: str) -> Seen | None:
    try:
        made = _record(place)
        names = _names_in(place)
    except OSError:
        return None
    stamp = [made.st_size, made.st_mtime_ns, made.st_ino]
    for file in _FILES if "run.json" in names else (*_FILES, *_ADAPTER):
        if file in names:
            with contextlib.suppress(OSError):
                stat = os.stat(f"{place}/{file}")
                stamp += [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    locked = not names.isdisjoint(_LOCKS) and locks.is_held(f"{place}/.lock")
    stopping, queued = "stop" in names, "queued" in names
    stamp += [locked, stopping, queued, *(file in names for file in (*_FILES, *_ADAPTER))]
    return Seen(name, place, made.st_mtime, locked, stopping, queued, tuple(stamp))


def _record(place: str) -> os.stat_result:
    """The file that makes a folder a run, or an adapter made elsewhere. Raises OSError where it is neither."""
    try:
        return os.stat(f"{place}/run.json")
    except OSError:
        return os.stat(f"{place}/adapter_config.json")


def left_out(root: Path) -> list[str]:
    """Folders left out of the latest listing because their names are not UTF-8, as they can be displayed."""
    return [
        name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for name in _left_out.get(root, [])
    ]


def neither(root: Path) -> list[str]:
    """Folders that the latest `scan` found to be neither runs nor adapters."""
    return _neither.get(root, [])


def why_unlisted(root: Path) -> str:
    """Why an existing folder cannot be listed, so that its runs are unknown; "" where it can be, or does not exist."""
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
        with os.scandir(root) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # a link in a circle, or into a folder that is closed or gone
                    if not entry.name.startswith(".") and entry.is_dir():
                        (names if _is_text(entry.name) else nameless).append(entry.name)
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
