"""Files that were uploaded to the page: kept for the runs that name them, and removed when none does any longer.

Beside each lies a note of the runs that were made with it, whichever folder they are in. What no run names is removed after
a week, or after a day where all uploads take too much space in total. What was removed is recorded.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from qlora_gui import hub, locks, plain_files
from qlora_gui.files import append_line

KEPT_DAYS, YOUNG_DAYS = 7, 1
MOST_BYTES = 20 << 30
_DAY = 86_400.0
_USES, _PART = ".runs", ".part"
_REMOVED = "removed.jsonl"


class Upload(NamedTuple):
    """One file. `runs` are the names of the runs that name it, `days` how old it is."""

    name: str
    path: Path
    bytes: int
    days: float
    runs: tuple[str, ...]


def folder() -> Path:
    """Where uploads lie."""
    return hub.private("uploads")


def note_use(named: Iterable[str], run: Path) -> None:
    """Write down that a run names files, so far as these are uploads."""
    home = folder().resolve()
    for name in named:
        path = hub.local(name) if name else None
        if path is not None and path.resolve().parent == home:
            with contextlib.suppress(OSError):  # then it is found by looking through the folder of the runs
                append_line(Path(f"{path.resolve()}{_USES}"), f"{run.absolute()}\n".encode())


def entries(named: Iterable[tuple[str, str]] = ()) -> list[Upload]:
    """All uploads, the largest first. `named` are (run, what it names), of the runs that are looked at anyway."""
    users: dict[Path, set[str]] = {}
    for run, name in named:
        path = hub.local(name)
        if path is not None:
            users.setdefault(path.resolve(), set()).add(run)
    uploads = []
    for path in _files():
        with contextlib.suppress(OSError):
            stat = path.stat()
            runs = users.get(path.resolve(), set()) | _noted(path)
            days = (time.time() - stat.st_mtime) / _DAY
            uploads.append(Upload(path.name, path, stat.st_size, days, tuple(sorted(runs))))
    return sorted(uploads, key=lambda upload: (-upload.bytes, upload.name))


def sweep(named: Iterable[tuple[str, str]]) -> list[Upload]:
    """Remove what no run names and is old enough; returns what was removed."""
    uploads = entries(named)
    free = sorted((upload for upload in uploads if not upload.runs), key=lambda upload: -upload.days)
    total, removed = sum(upload.bytes for upload in uploads), []
    for upload in free:
        if upload.days > KEPT_DAYS or (upload.days > YOUNG_DAYS and total > MOST_BYTES):
            with contextlib.suppress(OSError):
                upload.path.unlink()
                Path(f"{upload.path}{_USES}").unlink(missing_ok=True)
                total -= upload.bytes
                removed.append(upload)
                record = {
                    "t": round(time.time()),
                    "name": upload.name,
                    "bytes": upload.bytes,
                    "days": round(upload.days, 1),
                }
                append_line(folder() / _REMOVED, (json.dumps(record) + "\n").encode())
    for part in folder().glob(f"*{_PART}"):  # of an upload that broke off
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > YOUNG_DAYS * _DAY:
                part.unlink()
    return removed


def removed(most: int = 5) -> list[tuple[str, float]]:
    """The names of what was removed last, and when (seconds since the epoch), the newest first."""
    records = []
    with contextlib.suppress(OSError):
        for line in (folder() / _REMOVED).read_text(encoding="utf-8").splitlines()[-most:]:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                records.append((str(record["name"]), float(record["t"])))
    return records[::-1]


def _files() -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder()):
            if (
                entry.is_file(follow_symlinks=False)
                and not entry.name.endswith((_USES, _PART))
                and entry.name != _REMOVED
            ):
                yield Path(entry.path)


def _noted(path: Path) -> set[str]:
    """The runs that its note names and that still name it, or cannot be read at the moment."""
    runs = set()
    with contextlib.suppress(OSError):
        for line in Path(f"{path}{_USES}").read_text(encoding="utf-8", errors="replace").splitlines():
            if _may_name(Path(line), path.name[:12]):
                runs.add(Path(line).name)
    return runs


def _may_name(run: Path, begins: str) -> bool:
    """Whether a run names the upload that begins so, or might: its folder's folder may be on a drive that is away.

    As text: the beginning, which no other file has, is enough.
    """
    try:
        return begins in plain_files.read_bytes(run / "run.json").decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError):
        return not (run.parent / locks.STARTING).exists()  # which every folder has in which a run was ever started
    except (OSError, ValueError):
        return True
