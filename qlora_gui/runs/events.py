"""events.jsonl: one JSON object a line, append only. The trainer writes; everybody else follows from an offset.

Kinds: started, stage, data, base, fit, memory, step, eval, probe, saved, then finished | stopped | failed. Readers ignore kinds
they do not know and a last line that is not finished.
"""

import errno
import json
import math
import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

Event = dict[str, Any]
FINAL = ("finished", "stopped", "failed")


class EventLog:
    """Appends events to one file; every event is one whole line in one write."""

    def __init__(self, path: Path):
        self.path = path
        self._broken = False
        self._end_broken_line()

    def append(self, kind: str, **fields: Any) -> Event:
        """Write one event and give it back. Numbers that JSON has no word for (NaN, infinity) become null."""
        event: Event = {"t": round(time.time(), 3), "kind": kind} | {
            key: _plain(value) for key, value in fields.items()
        }
        line = (json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            whole = b"\n" + line if self._broken else line
            written = os.write(file, whole)
            self._broken = written not in (0, len(whole))
            if written < len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(file)
        return event

    def _end_broken_line(self) -> None:
        """A writer that was killed in mid-line leaves half a line: close it, so that the next one stands alone.

        Appended, and not written at the end that was seen: meanwhile another writer's line may have begun there.
        """
        if self.path.exists() and self.path.stat().st_size:
            with self.path.open("ab+") as file:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")


class Silent(EventLog):
    """Writes nothing: for processes that help with a run whose folder another one writes."""

    def __init__(self) -> None:
        pass

    def append(self, kind: str, **fields: Any) -> Event:
        """The event, as it would have been written."""
        return {"t": round(time.time(), 3), "kind": kind, **fields}


@dataclass(frozen=True)
class _Known:
    """The events of a file up to `end`, as long as its first and last bytes are these."""

    events: list[Event]
    end: int
    begins: bytes
    ends: bytes


_known: OrderedDict[Path, _Known] = OrderedDict()  # a page asks for the same events many times a second
_keeping = threading.Lock()
_MOST_KNOWN, _MARK = 32, 256  # files; bytes


def read(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """The events after byte `offset`, and the offset to go on from. A file that is not there has none.

    They are shared with whoever else reads this file: not to be changed.
    """
    try:
        with path.open("rb") as file:
            known = None if offset else _still(_known.get(path), file)
            start = known.end if known else offset
            file.seek(start)
            events, end = _parsed(file.read(), start)
            if offset:
                return events, end
            if known:
                events = [*known.events, *events]
            _keep(path, events, end, file)
            return list(events), end
    except OSError:  # there is none, or what is there is no file
        return [], offset


def _still(known: _Known | None, file: BinaryIO) -> _Known | None:
    """What is known of a file, unless another one has taken its place."""
    if known is None:
        return None
    begins, ends = _marks(file, known.end)
    return known if (begins, ends) == (known.begins, known.ends) else None


def _marks(file: BinaryIO, end: int) -> tuple[bytes, bytes]:
    file.seek(0)
    begins = file.read(min(_MARK, end))
    file.seek(max(end - _MARK, 0))
    return begins, file.read(min(_MARK, end))


def _keep(path: Path, events: list[Event], end: int, file: BinaryIO) -> None:
    found = _Known(events, end, *_marks(file, end))
    with _keeping:
        _known[path] = found
        _known.move_to_end(path)
        while len(_known) > _MOST_KNOWN:
            _known.popitem(last=False)


def _parsed(body: bytes, offset: int) -> tuple[list[Event], int]:
    whole = body[: body.rfind(b"\n") + 1]
    events = []
    for line in whole.splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and isinstance(event.get("kind"), str) and isinstance(event.get("t"), (int, float)):
            events.append(event)
    return events, offset + len(whole)


def last(events: list[Event], *kinds: str) -> Event | None:
    """The latest event of one of these kinds."""
    return next((event for event in reversed(events) if event["kind"] in kinds), None)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
