"""events.jsonl: one JSON object a line, append only. The trainer writes; everybody else follows from an offset.

Kinds: started, stage, data, base, fit, memory, step, eval, probe, saved, then finished | stopped | failed. Readers ignore kinds
they do not know and a last line that is not finished.
"""

import errno
import json
import math
import os
import time
from pathlib import Path
from typing import Any

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


def read(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """The events after byte `offset`, and the offset to go on from. A file that is not there has none."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            body = file.read()
    except OSError:  # there is none, or what is there is no file
        return [], offset
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
