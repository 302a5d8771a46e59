"""Reading events.jsonl: everybody but the trainer follows it from an offset, or as far as it is known already.

A last line that is not finished is left for later; lines that are no event are skipped, which is reported by an event that
`read` puts before the others. A long run is thinned, and read from its end, or by what was added.
"""

import contextlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from qlora_gui import plain_files
from qlora_gui.runs import derived_cache
from qlora_gui.runs.events import FINAL, MOST_BYTES, Event, sound
from qlora_gui.runs.thinning import Thinned


class _Known:
    """What was read of one file up to `end`, as long as its first and last bytes are these. Used under its `lock`. It was
    looked at up to `looked`: behind `end` a last line may have no end.

    `whole` keeps every event, else a long run is thinned (`thinning`). `skipped` counts lines with a fault.
    """

    def __init__(self, whole: bool = False):
        self.lock = threading.Lock()
        self.whole = whole
        self._forget()

    def _forget(self) -> None:
        self.end = self.looked = self.skipped = self._kept_to = 0
        self.marks = (b"", b"")
        self.seen = (0, 0)  # size and time of change when it was read last
        self.mark: Event | None = None  # the latest of `started` and the final ones
        self._why: list[str] = []
        self._whole: list[Event] = []
        self._thin = Thinned()
        self._given: list[Event] | None = None

    def check(self, path: Path, file: BinaryIO) -> None:
        """Forget all where another file has taken this one's place, or it was changed without growing; take over what the
        cache knows of a long one."""
        stat = os.fstat(file.fileno())
        edited = stat.st_size == self.seen[0] and stat.st_mtime_ns != self.seen[1]
        if self.end and (edited or _marks(file, self.end) != self.marks):
            self._forget()
        if not self.end and not self.whole and os.fstat(file.fileno()).st_size > _LONG:
            self._take_over(derived_cache.load(derived_cache.name_of("events", path)), file)

    def advance(self, file: BinaryIO, most: int | None = None) -> bool:
        """Read on from `end`, about `most` bytes or all there are; returns whether something was read."""
        lines = _lines(file, self.end, most)
        before = self.end
        for line, end in lines:
            self.end = end
            if line is None or line.strip():
                self._take(line)
        stat = os.fstat(file.fileno())
        self.seen = stat.st_size, stat.st_mtime_ns
        if most is None or self.end - before < most:
            self.looked = stat.st_size
        if self.end != before:
            self.marks, self._given = _marks(file, self.end), None
        return self.end != before

    def all(self) -> list[Event]:
        """The events, led by notes on them: that lines were skipped, or that not all events are kept."""
        if self._given is None:
            head: list[Event] = []
            if self.skipped:
                head.append({"t": 0.0, "kind": "skipped", "count": self.skipped, "why": list(self._why)})
            if counts := {} if self.whole else self._thin.thinned():
                head.append({"t": 0.0, "kind": "thinned", "counts": counts})
            self._given = head + (self._whole if self.whole else self._thin.all())
        return list(self._given)

    def keep(self, path: Path) -> None:
        """Store what is known of a long file in the cache, now and then."""
        if self.whole or self.end - self._kept_to < _LONG:
            return
        self._kept_to = self.end
        snapshot = {"end": self.end, "marks": [mark.hex() for mark in self.marks], "mark": self.mark, "why": self._why}
        snapshot |= {"seen": self.seen, "skipped": self.skipped, "events": self._thin.plain()}
        derived_cache.keep(derived_cache.name_of("events", path), snapshot)

    def _take_over(self, snapshot: Any, file: BinaryIO) -> None:
        try:
            marks = bytes.fromhex(snapshot["marks"][0]), bytes.fromhex(snapshot["marks"][1])
            stat, (size, changed) = os.fstat(file.fileno()), snapshot["seen"]
            if _marks(file, snapshot["end"]) != marks or (stat.st_size == size and stat.st_mtime_ns != changed):
                return
            thin = Thinned.from_plain(snapshot["events"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            return
        self.seen = size, changed
        self.end, self.marks, self.mark, self._why = snapshot["end"], marks, snapshot["mark"], snapshot["why"]
        self.skipped, self._thin, self._kept_to, self._given = snapshot["skipped"], thin, snapshot["end"], None

    def _take(self, line: bytes | None) -> None:
        event, why = _parsed(line)
        if why:
            self.skipped += 1
            if len(self._why) < _MOST_WHY:
                self._why.append(why)
        if event is None:
            return
        if event["kind"] in ("started", *FINAL):
            self.mark = event
        if self.whole:
            self._whole.append(event)
        else:
            self._thin.add(event)


_known: OrderedDict[tuple[Path, bool], _Known] = OrderedDict()  # a page asks for the same many times per second
_keeping = threading.Lock()
_MOST_KNOWN, _MARK = 32, 256  # files; bytes
_BLOCK, _LONG, _TAIL = 1 << 20, 8 << 20, 1 << 20  # bytes
_MOST_WHY = 3


def read(path: Path, offset: int = 0, whole: bool = False) -> tuple[list[Event], int]:
    """The events after byte `offset`, and the offset to go on from. A file that is not there has none.

    Without an offset those of a run of more than a few thousand are thinned, unless `whole`. What is no event is left out.
    Both are reported by an event at the beginning: `skipped` with `count` and the first reasons `why`, `thinned` with the
    `counts` that there were of each kind. They are shared with whoever else reads this file: not to be changed.
    """
    try:
        with plain_files.open_to_read(path) as file:
            known = _Known(whole=True) if offset else _get_known(path, whole)
            known.end = offset or known.end
            with known.lock:
                if not offset:
                    known.check(path, file)
                known.advance(file)
                known.keep(path)
                return known.all(), known.end
    except OSError:  # there is none, or what is there is no file
        return [], offset


def behind(path: Path) -> int:
    """How many bytes of a file `read` would have to parse; of what is known already, or by the cache, none."""
    try:
        with plain_files.open_to_read(path) as file:
            known = _get_known(path)
            if not known.lock.acquire(blocking=False):  # being read just now
                return max(os.fstat(file.fileno()).st_size - known.end, 1)
            try:
                known.check(path, file)
                return os.fstat(file.fileno()).st_size - max(known.end, known.looked)
            finally:
                known.lock.release()
    except OSError:
        return 0


def catch_up(path: Path) -> None:
    """Read a long file piece by piece, so that others can ask in between how far it is (`behind`)."""
    with contextlib.suppress(OSError), plain_files.open_to_read(path) as file:
        known, more = _get_known(path), True
        while more:
            with known.lock:
                known.check(path, file)
                more = known.advance(file, 4 * _BLOCK)
                known.keep(path)


def mark(path: Path) -> Event | None:
    """The latest of `started` and the final events, found from the file's end; None where there is none near it."""
    if behind(path) <= _TAIL:
        read(path)
        return _get_known(path).mark
    newest = tail(path)
    if not newest:  # a lost write may leave megabytes of nothing behind the last line
        read(path)
        return _get_known(path).mark
    return next((event for event in reversed(newest) if event["kind"] in ("started", *FINAL)), None)


def recent(path: Path) -> list[Event]:
    """The events as far as they can be had at once: of a long file that nobody has read yet those of its end."""
    return read(path)[0] if behind(path) <= _TAIL else tail(path)


def tail(path: Path) -> list[Event]:
    """The events of a file's last megabyte."""
    try:
        with plain_files.open_to_read(path) as file:
            start = max(os.fstat(file.fileno()).st_size - _TAIL, 0)
            lines = [line for line, _ in _lines(file, start, None)]
    except OSError:
        return []
    events = [_parsed(line)[0] for line in (lines[1:] if start else lines)]
    return [event for event in events if event is not None]


def _get_known(path: Path, whole: bool = False) -> _Known:
    with _keeping:
        known = _known.setdefault((path, whole), _Known(whole))
        _known.move_to_end((path, whole))
        while len(_known) > _MOST_KNOWN:
            _known.popitem(last=False)
        return known


def _marks(file: BinaryIO, end: int) -> tuple[bytes, bytes]:
    file.seek(0)
    begins = file.read(min(_MARK, end))
    file.seek(max(end - _MARK, 0))
    return begins, file.read(min(_MARK, end))


def _lines(file: BinaryIO, start: int, most: int | None) -> Iterator[tuple[bytes | None, int]]:
    """Whole lines from a byte on, each with the byte after it, until about `most` bytes were read.

    A line that is too long to be an event comes as None: it is never held in memory.
    """
    file.seek(start)
    end, held, dropped = start, b"", 0
    while block := file.read(_BLOCK):
        first, *more = block.split(b"\n")
        rest = held + first if not dropped else b""
        dropped += len(first) if dropped else 0
        for part in more:
            end += (dropped or len(rest)) + 1
            yield (None if dropped else rest), end
            dropped, rest = 0, part
        if len(rest) > MOST_BYTES:
            dropped, rest = len(rest), b""
        held = rest
        if most is not None and end - start >= most:
            return


def _parsed(line: bytes | None) -> tuple[Event | None, str]:
    """The event of a line, None where it is none, and what is wrong with it."""
    if line is None or len(line) > MOST_BYTES:
        return None, "a line of more than 4 MB"
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None, "a line that is not JSON"
    return sound(event)
