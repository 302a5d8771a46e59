"""The rows of a data file as they stand in it: JSON, JSON lines, CSV, Parquet. What they mean is for `formats`.

A row that cannot be read is a RawRow with a fault; what spoils the file as a whole is a UserError. A value that is no
number (NaN, infinity) is an empty cell, None.
"""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from qlora_gui.data import lenient_json, utf8
from qlora_gui.data.turns import is_empty
from qlora_gui.errors import UserError, first_line
from qlora_gui.formatting import gigabytes

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_MOST_ROWS, _ROWS_AT_A_TIME = 100_000_000, 64  # of Parquet: few, for each may unpack to much
_MOST_COLUMNS = 10_000
_UNCLOSED = "a quoted cell is not closed"
_TOO_LONG = f"a cell is longer than {utf8.MOST_LINE:,} characters"
_OTHERS = {  # what files that are no data begin with
    b"\x1f\x8b": "is compressed (gzip): unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd): unpack it first",
    b"bzh91ay&sy": "is compressed (bzip2): unpack it first",
    b"pk\x03\x04": "is a ZIP archive or an Excel file: unpack it, or save it as CSV",
    b"version https://git-lfs": "is only a pointer of Git LFS: fetch the file itself with git lfs pull",
    b"<!doctype html": "is a web page: download the file itself",
    b"<html": "is a web page: download the file itself",
}
Fits = Callable[[Iterable[str]], bool]  # whether a row with these columns is one of the format that is asked for


@dataclass(frozen=True)
class RawRow:
    """A row by its 1-based number and, in CSV, the line where it begins; `fault` says why it could not be read.

    `note` says what it may lack, `beside` names what the file has beside its rows, which is not read.
    """

    number: int
    value: Any = None
    fault: str = ""
    note: str = ""
    beside: tuple[str, ...] = ()
    line: int | None = None


@dataclass
class Contents:
    """The rows of a file, read as they are asked for; `separator` is what stands between the cells of a CSV file."""

    rows: Iterator[RawRow]
    separator: str = ""


def open_rows(path: Path, fits: Fits) -> Contents:
    """The rows of a file of any kind. Raises UserError, also while they are read."""
    suffix = path.suffix.lower()
    if problem := _not_what_it_is_called(path, suffix):
        raise UserError(f"The data file '{path}' {problem}.")
    if suffix in (".csv", ".tsv"):
        dialect = _dialect(path, fits)
        return Contents(_csv(path, dialect), dialect.separator)
    if suffix == ".parquet":
        return Contents(_parquet(path))
    return Contents(_json(path, fits) if suffix == ".json" or _begins_a_list(path) else _jsonl(path))


def without_nan(value: Any) -> Any:
    """A value of Arrow's: NaN and infinity are None, and fields without a value are left out of objects inside.

    Arrow gives every object of a column the fields of all of them, empty where a row does not have them.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        inner = {key: without_nan(item) for key, item in value.items()}
        return {key: item for key, item in inner.items() if item is not None}
    return [without_nan(item) for item in value] if isinstance(value, (list, tuple)) else value


def _not_json(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return "a number has more than 4,300 digits" if "integer string conversion" in str(error) else first_line(error)


def _not_what_it_is_called(path: Path, suffix: str) -> str:
    """Why a file is not the kind of data file that its name suggests, and what to do; "" where it may be."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"PAR1") and suffix != ".parquet":
        return "is Parquet: give it the ending .parquet"
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    return next((message for begin, message in _OTHERS.items() if text.startswith(begin)), "")


def _is_json(body: str) -> bool:
    try:
        lenient_json.parsed(body)
    except (ValueError, RecursionError):
        return False
    return True


def _begins_a_list(path: Path) -> bool:
    """Whether a file under the name .jsonl is really one JSON list."""
    with path.open("rb") as file:
        return file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _json(path: Path, fits: Fits) -> Iterator[RawRow]:
    body = utf8.text(path)
    if not body.strip():
        return
    try:
        value = lenient_json.parsed(body)
    except (ValueError, RecursionError) as error:
        if getattr(error, "msg", "") == "Extra data" and _is_json(body.lstrip().partition("\n")[0]):
            yield from _jsonl(path)  # one value per line: common on the hub under the name .json, and .jsonl of lists
            return
        place = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"The data file '{path}' is not JSON: {_not_json(error)}{place}.") from None
    rows = _listed(path, value, fits)
    beside = _beside(value, rows)
    for number, row in enumerate(rows, 1):
        yield RawRow(number, row, beside=beside)


def _beside(value: Any, rows: list[Any]) -> tuple[str, ...]:
    """The names of what stands around a list of rows and is not read."""
    if not isinstance(value, dict) or (rows and rows[0] is value):
        return ()
    return tuple(f"{name} beside the rows" for name, item in value.items() if item is not rows and not is_empty(item))


def _is_plain(items: list[Any]) -> bool:
    """Whether a list is of texts or numbers, like tags, and so not of rows."""
    return bool(items) and not any(isinstance(item, (dict, list)) for item in items)


def _listed(path: Path, value: Any, fits: Fits) -> list[Any]:
    """The rows of a JSON value: a list, an object around one, or a single row."""
    if isinstance(value, dict):
        lists = {key: item for key, item in value.items() if isinstance(item, list) and not _is_plain(item)}
        if fits(value) or not lists:
            return [value]
        filled = {key: item for key, item in lists.items() if item}
        if len(filled) > 1:
            raise UserError(
                f"The data file '{path}' holds several lists ({', '.join(filled)}): save the one to train on as a file."
            )
        value = next(iter((filled or lists).values()))
    if not isinstance(value, list):
        raise UserError(f"The data file '{path}' holds no list of rows: make it a JSON list of objects.")
    return value


def _jsonl(path: Path) -> Iterator[RawRow]:
    for line in utf8.lines(path):
        if line.fault:
            yield RawRow(line.number, fault=line.fault)
        elif line.text.strip():
            try:
                yield RawRow(line.number, lenient_json.parsed(line.text))
            except (ValueError, RecursionError) as error:
                yield RawRow(line.number, fault=f"it is not JSON: {_not_json(error)}")


class _Feed:
    """Lines for csv.reader, which remembers how far it has read and what was not UTF-8."""

    def __init__(self, path: Path, skipped: int = 0):
        self._lines = utf8.lines(path)
        self.number = 0
        self.fault = ""
        for _ in range(skipped):
            next(self)

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number = line.number
        self.fault = self.fault or line.fault
        return line.text


@dataclass(frozen=True)
class _Dialect:
    """How a CSV file is written: what separates cells, spaces after it, lines before the header, and the columns."""

    separator: str
    spaced: bool = False
    skipped: int = 0
    columns: tuple[str, ...] = ()


def _dialect(path: Path, fits: Fits) -> _Dialect:
    """Chosen by the header: the separator that gives the columns of a known format, else the one with most columns.

    Ties go to the one that the file's name suggests. Excel's first line `sep=;` states it outright.
    """
    csv.field_size_limit(utf8.MOST_LINE)
    first = next((line.text for line in utf8.lines(path)), "").strip("\r\n")
    if first.lower().startswith("sep=") and first[4:] in SEPARATORS:
        return _header(path, first[4:], 1)
    order = sorted(SEPARATORS, key=lambda mark: mark != ("\t" if path.suffix.lower() == ".tsv" else ","))
    dialects = [_header(path, mark) for mark in order]
    return next(
        (dialect for dialect in dialects if fits(dialect.columns)),
        max(dialects, key=lambda dialect: len(dialect.columns)),
    )


def _header(path: Path, separator: str, skipped: int = 0) -> _Dialect:
    """The header as this separator cuts it; without columns where it cannot be read so."""
    try:
        spaced = csv.reader(_Feed(path, skipped), delimiter=separator, skipinitialspace=True, strict=True)
        cells = next(filter(None, spaced), [])
        exact = next(filter(None, csv.reader(_Feed(path, skipped), delimiter=separator)), [])
    except csv.Error:
        return _Dialect(separator, skipped=skipped)
    columns = tuple(cell.strip() or f"column {number}" for number, cell in enumerate(cells, 1))
    return _Dialect(separator, any(cell.startswith(" ") for cell in exact[1:]), skipped, columns)


def _csv(path: Path, dialect: _Dialect) -> Iterator[RawRow]:
    feed = _Feed(path, dialect.skipped)
    names, separator = dialect.columns, dialect.separator
    _refuse_twice(path, names)
    reader = csv.reader(feed, delimiter=separator, strict=True, skipinitialspace=dialect.spaced)
    number = -1  # the header's
    while True:
        line, feed.fault = feed.number + 1, ""
        cells, fault = _cells(reader, feed)
        if cells is None:
            return
        if not cells and not fault:
            continue  # an empty line
        number += 1
        if fault.startswith(_UNCLOSED):  # it swallowed the rest of the file, so nobody knows how many rows that is
            raise UserError(f"The data file '{path}' is broken at line {line}: {fault}; close that quotation mark.")
        if fault == _TOO_LONG:  # the reader stands in the middle of it: what follows would be read as rows
            raise UserError(
                f"The data file '{path}' is broken at line {line}: {fault}; cut it, or close the quotation mark that it opens."
            )
        if fault and feed.number > line:  # what stands there may have been rows of their own
            fault += f"; it spans lines {line:,} to {feed.number:,}, all of which are read as one row"
        if number:
            row = {name: cells[place] if place < len(cells) else None for place, name in enumerate(names)}
            fault, note = fault or _too_many(cells, len(names), separator), _too_few(cells, len(names))
            yield RawRow(number, row, fault, note, line=line)
        elif fault:
            raise UserError(f"The header of the data file '{path}', line {line}, cannot be read: {fault}.")


def _cells(reader: Any, feed: _Feed) -> tuple[list[str] | None, str]:
    """The cells of the next row, None at the end of the file, and why they cannot be read."""
    try:
        cells = next(reader)
    except StopIteration:
        return None, ""
    except csv.Error as error:
        reason = str(error)
        if "unexpected end of data" in reason:
            return [], f"{_UNCLOSED} before the end of the file, line {feed.number}"
        elif "field larger than field limit" in reason:
            reason = _TOO_LONG
        elif "expected after" in reason:
            reason = f"a quotation mark inside a quoted cell is not doubled ({reason})"
        return [], feed.fault or reason
    return cells, feed.fault


def _too_many(cells: list[str], most: int, separator: str) -> str:
    if not any(cells[most:]):
        return ""  # Excel fills rows up with separators
    return (
        f"it has more cells than the header ({len(cells)}, not {most}): quote cells that hold {SEPARATORS[separator]}"
    )


def _too_few(cells: list[str], least: int) -> str:
    return "" if len(cells) >= least else f"it has fewer cells than the header ({len(cells)}, not {least})"


def _refuse_twice(path: Path, names: Sequence[str]) -> None:
    """Raise UserError for a duplicate column name, and for more columns than rows of texts have."""
    if len(names) > _MOST_COLUMNS:
        raise UserError(f"The data file '{path}' has {len(names):,} columns, and at most {_MOST_COLUMNS:,} are read.")
    counts = Counter(names)
    if twice := next((name for name in names if counts[name] > 1), None):
        raise UserError(f"The data file '{path}' has the column '{twice}' twice: rename one of them.")


def _parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        number, unpacked, memory = 0, 0, psutil.virtual_memory().total
        file = pyarrow.parquet.ParquetFile(path)
        _refuse_twice(path, file.schema_arrow.names)
        if file.metadata.num_rows > _MOST_ROWS:
            raise UserError(
                f"The data file '{path}' says that it has {file.metadata.num_rows:,} rows, and at most {_MOST_ROWS:,} are "
                "read: split it up."
            )
        for batch in file.iter_batches(batch_size=_ROWS_AT_A_TIME):
            for place in range(len(batch)):  # one by one: what a batch holds once may be a text of each of its rows
                [row] = batch.slice(place, 1).to_pylist()
                number += 1
                size = _characters(row)
                unpacked += size
                if unpacked > memory:
                    raise UserError(
                        f"The data file '{path}' unpacks to more than {gigabytes(memory)}, all the memory that this "
                        "machine has: split it up."
                    )
                if size > utf8.MOST_LINE:
                    yield RawRow(number, fault=f"it has {size:,} characters, and at most {utf8.MOST_LINE:,} are read")
                else:
                    yield RawRow(number, {name: without_nan(cell) for name, cell in row.items()})
    except MemoryError:  # Arrow's own is one as well: whoever limits the memory says so
        raise
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:  # the latter of values Python has no type for
        raise UserError(f"The data file '{path}' is not Parquet: {first_line(error)}.") from None


def _characters(value: Any) -> int:
    """The total length of the texts in a row."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, (list, tuple)) else 0
