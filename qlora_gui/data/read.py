"""Read a data set: a file, the shipped demo, or a hub id -> Examples. Imports no torch; the page uses it too.

Every wrong row is named by file and row number; nothing is left out here.
"""

import csv
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_gui import hub
from qlora_gui.data.formats import FORMATS, Example, Row, RowError, recognize
from qlora_gui.errors import UserError, first_line

DEMO = Path(__file__).parent / "demo"
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_HELD_OUT_NAMES = ("heldout", "held_out", "validation", "test", "eval")


@dataclass(frozen=True)
class Source:
    """Where the rows come from: local files, or a hub id. `held_out` is None when rows are split off instead."""

    name: str
    train: Path | None
    held_out: Path | None = None

    @property
    def is_hub(self) -> bool:
        return self.train is None

    def fingerprint(self) -> dict[str, str]:
        """The name and the SHA-256 of each local file, to tell whether a data set changed since."""
        files = [path for path in (self.train, self.held_out) if path]
        return {"name": self.name} | {path.name: _sha256(path) for path in files}


@dataclass(frozen=True)
class Dataset:
    """`train` and, where the data set brings its own, `held_out` Examples; the format they were read as.

    Each Example carries `row`, its 1-based number in the file.
    """

    source: Source
    format: str
    train: list[Example]
    held_out: list[Example] | None


def find(dataset: str) -> Source:
    """Resolve a dataset name. Raises UserError when it is no file, no folder of files and no hub id."""
    if dataset == "demo":
        return Source("demo", DEMO / "train.jsonl", DEMO / "heldout.jsonl")
    path = hub.local(dataset)
    if path is not None and path.is_dir():
        return _folder(dataset, path)
    if path is not None and path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(
                f"The data file '{dataset}' is of no kind this program reads: use one of {', '.join(SUFFIXES)}."
            )
        return Source(dataset, path)
    if (
        Path(dataset).suffix.lower() in SUFFIXES
        or dataset.startswith((".", "/", "~"))
        or not hub.looks_like_id(dataset)
    ):
        raise UserError(
            f"The data file '{dataset}' does not exist: check the path (relative paths start at {Path.cwd()})."
        )
    return Source(dataset, None)


def load(dataset: str, format: str = "auto", split: str = "train", limit: int | None = None) -> Dataset:
    """Read a data set completely, or the first `limit` rows. Raises UserError naming file and row."""
    source = find(dataset)
    if source.train is None:
        return _from_hub(source, format, split, limit)
    rows = _read(source.train, limit)
    chosen, train = _convert(rows, format, source.train.name)
    held_out = None
    if source.held_out:
        _, held_out = _convert(_read(source.held_out, limit), chosen, source.held_out.name)
    return Dataset(source, chosen, train, held_out)


def _folder(name: str, path: Path) -> Source:
    files = {file.stem.lower(): file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES}
    if "train" not in files:
        raise UserError(f"The data folder '{name}' holds no train file: name one of its files, or add train.jsonl.")
    return Source(name, files["train"], next((files[stem] for stem in _HELD_OUT_NAMES if stem in files), None))


def _read(path: Path, limit: int | None) -> list[tuple[int, Any]]:
    """The rows of a file with their 1-based numbers."""
    readers = {".csv": _csv, ".tsv": _csv, ".parquet": _parquet, ".json": _json}
    reader = readers.get(path.suffix.lower(), _jsonl)
    try:
        rows = list(itertools.islice(reader(path), limit))
    except UnicodeDecodeError as error:
        raise UserError(f"The data file '{path}' is not UTF-8 at byte {error.start}: save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"The data file '{path}' cannot be read: {error.strerror or error}.") from None
    if not rows:
        raise UserError(f"The data file '{path}' is empty: it needs at least one row.")
    return rows


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    body = path.read_text(encoding="utf-8-sig")
    if not body.strip():
        return
    try:
        value = json.loads(body)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and error.pos and body.lstrip().startswith("{"):
            yield from _jsonl(path)  # one object a line under the name .json: common on the hub
            return
        raise UserError(f"The data file '{path}' is not JSON: {error.msg} at line {error.lineno}.") from None
    except RecursionError:
        raise UserError(f"The data file '{path}' is nested too deeply to be read.") from None
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 and "messages" not in value and "conversations" not in value else [value]
    if not isinstance(value, list):
        raise UserError(f"The data file '{path}' holds no list of rows: make it a JSON list of objects.")
    yield from enumerate(value, 1)


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield number, json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                reason = getattr(error, "msg", "nested too deeply")
                raise UserError(f"{path.name} row {number} is not JSON: {reason}.") from None


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            for number, row in enumerate(reader, 1):
                if None in row:
                    raise UserError(
                        f"{path.name} row {number} has more cells than the header: quote cells with commas."
                    )
                yield number, row
        except csv.Error as error:
            raise UserError(f"{path.name} line {reader.line_num} is not CSV: {error}.") from None


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except pyarrow.ArrowException as error:
        raise UserError(f"The data file '{path}' is not Parquet: {first_line(error)}.") from None


def _from_hub(source: Source, format: str, split: str, limit: int | None) -> Dataset:
    hub.require("datasets", source.name)
    hub.go_offline_if_unreachable()
    import datasets

    try:
        builder = datasets.load_dataset_builder(source.name)
        _only_its_own(source.name, builder.config.data_files or {})
        builder.download_and_prepare()
        part = builder.as_dataset(split=split)
    except UserError:
        raise
    except Exception as error:  # the library raises a dozen types; all of them are about the name, split or network
        reason = first_line(error)
        raise UserError(f"The data set '{source.name}' (split '{split}') cannot be loaded: {reason}") from error
    rows = ((number, dict(row)) for number, row in enumerate(part, 1))
    chosen, train = _convert(list(itertools.islice(rows, limit)), format, source.name)
    return Dataset(source, chosen, train, None)


def _only_its_own(name: str, files: Mapping[str, Sequence[object]]) -> None:
    """Raise UserError for a hub data set whose card names files elsewhere, of this machine say."""
    for file in itertools.chain.from_iterable(files.values()):
        if not str(file).startswith("hf://"):
            raise UserError(f"The data set '{name}' names files that are not its own ('{file}'): choose another one.")


def _convert(rows: list[tuple[int, Any]], format: str, file: str) -> tuple[str, list[Example]]:
    """Rows -> (format name, Examples). Raises UserError naming the first wrong row and how many more there are."""
    chosen = _choose(rows, file) if format == "auto" else format
    reader = FORMATS[chosen][0]
    examples, wrong = [], []
    for number, row in rows:
        try:
            if not isinstance(row, dict):
                raise RowError("it is not an object with named fields")
            examples.append(reader(row) | {"row": number})
        except RowError as error:
            wrong.append(f"{file} row {number} (read as {chosen}): {error}")
    if wrong:
        more = f" ({len(wrong) - 1} more rows are wrong too)" if len(wrong) > 1 else ""
        raise UserError(f"{wrong[0]}{more}.")
    return chosen, examples


def _choose(rows: list[tuple[int, Any]], file: str) -> str:
    row: Row = rows[0][1] if isinstance(rows[0][1], dict) else {}
    if found := recognize(row):
        return found
    known = "; ".join(f"{name}: {', '.join(columns)}" for name, (_, columns) in FORMATS.items())
    has = ", ".join(map(str, row)) or "no named fields"
    raise UserError(f"{file} row {rows[0][0]} fits no known format: it has {has}, and these are read: {known}.")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
