"""Read a data set: a file, the shipped demo, or a hub id -> Examples. Imports no torch; the page uses it too.

Every faulty row is named by file and row number, and left out only where that is asked for; unused fields are named too.
"""

import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from qlora_gui import hub
from qlora_gui.data import splits
from qlora_gui.data.bad_rows import NAMED, Fault, FaultyRows
from qlora_gui.data.file_readers import RawRow, open_rows, without_nan
from qlora_gui.data.formats import FORMATS, Example, RowError, example, fits, recognize
from qlora_gui.errors import UserError, first_line
from qlora_gui.references import DataRef

DEMO = Path(__file__).parent / "demo"
SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
_ENDINGS = {suffix[1:] for suffix in SUFFIXES}
_LONGEST_REASON = 300  # characters
_MOST_NAMED = 10_000  # parts of a hub data set's card
_HELD_OUT_NAMES = ("heldout", "held_out", "validation", "valid", "val", "dev", "test", "eval")


@dataclass(frozen=True)
class Source:
    """Where the rows come from: local files, or a hub id. `held_out` is None when rows are split off instead.

    `unused_files` are the names of the data files that lie beside those and are not read.
    """

    name: str
    train: Path | None
    held_out: Path | None = None
    unused_files: tuple[str, ...] = ()

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

    Each Example carries `row`, its 1-based number in the file. Of `rows` that were read to train on, and those held out,
    `skipped` were faulty and are left out, the first of them in `skipped_rows`. `ignored` says in how many rows a column
    or field holds something that is not used. `separator` is what stands between the cells of a CSV file.
    """

    source: Source
    format: str
    train: list[Example]
    held_out: list[Example] | None
    rows: int = 0
    skipped: int = 0
    skipped_rows: list[Fault] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    separator: str = ""


@dataclass
class Survey:
    """What is counted while rows are read: how many, the faulty ones, and those that hold what is not used.

    Of the `usable` rows to train on `duplicates` equal an earlier one; `known` of the data's own held-out rows equal one
    to train on.
    """

    format: str = "auto"
    separator: str = ""
    rows: int = 0
    faulty: int = 0
    named: list[Fault] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    usable: int = 0
    duplicates: int = 0
    known: int = 0

    def add(self, fault: Fault) -> None:
        """Count a faulty row; the first ones are named."""
        self.faulty += 1
        if len(self.named) < NAMED:
            self.named.append(fault)


def find(dataset: str) -> Source:
    """Resolve a dataset name. Raises UserError when it is no file, no folder of files and no hub id."""
    ref = DataRef.find(dataset)
    if ref.is_demo:
        return Source(dataset, DEMO / "train.jsonl", DEMO / "heldout.jsonl")
    if ref.path is not None and ref.path.is_dir():
        return _folder(dataset, ref.path)
    if ref.path is not None and ref.path.is_file():
        if ref.path.suffix.lower() not in SUFFIXES:
            raise UserError(
                f"The data file '{dataset}' is not of a kind this program reads: use one of {', '.join(SUFFIXES)}."
            )
        return Source(dataset, ref.path)
    if Path(dataset).suffix.lower() in SUFFIXES or not hub.looks_like_id(dataset):
        raise UserError(
            f"The data file '{dataset}' does not exist: check the path (relative paths start at {Path.cwd()})."
        )
    return Source(dataset, None)


def load(
    dataset: str, format: str = "auto", split: str = "train", limit: int | None = None, skip_bad_rows: bool = False
) -> Dataset:
    """Read a data set completely, or the first `limit` rows of each of its files.

    Raises UserError for what cannot be read, FaultyRows for rows that cannot be used and are not to be left out.
    """
    source = find(dataset)
    seen = Survey(format)
    train = list(_train(source, split, limit, seen))
    rows = seen.rows
    held_out = list(_own_held_out(source, limit, seen)) if source.held_out else None
    if seen.faulty and not (skip_bad_rows and train):
        raise FaultyRows(seen.named, seen.faulty, seen.rows, some_left=bool(train))
    return Dataset(
        source, seen.format, train, held_out, rows, seen.faulty, seen.named, dict(seen.ignored), seen.separator
    )


def check(dataset: str, format: str = "auto", split: str = "train", skip_bad_rows: bool = False) -> None:
    """Read a data set to its end without keeping its rows. Raises as `load` does."""
    source = find(dataset)
    seen = Survey(format)
    usable = sum(1 for _ in _train(source, split, None, seen))
    for _ in _own_held_out(source, None, seen):
        pass
    if seen.faulty and not (skip_bad_rows and usable):
        raise FaultyRows(seen.named, seen.faulty, seen.rows, some_left=bool(usable))


def survey(dataset: str, format: str = "auto", split: str = "train") -> Survey:
    """Look through a whole data set without keeping its rows. Raises UserError for what cannot be read."""
    source = find(dataset)
    seen = Survey(format)
    keys: set[bytes] = set()
    for row in _train(source, split, None, seen):
        keys.add(splits.identity(row))
        seen.usable += 1
    seen.duplicates = seen.usable - len(keys)
    seen.known = sum(splits.identity(row) in keys for row in _own_held_out(source, None, seen))
    return seen


def _folder(name: str, path: Path) -> Source:
    files: dict[str, list[Path]] = {}
    for file in sorted(path.iterdir()):
        if file.suffix.lower() in SUFFIXES:
            if not file.is_file():
                raise UserError(f"'{file.name}' in the data folder '{name}' is not a plain file: remove it.")
            files.setdefault(file.stem.lower(), []).append(file)
    if "train" not in files:
        raise UserError(f"The data folder '{name}' holds no train file: name one of its files, or add train.jsonl.")
    groups = [files["train"], *(files[stem] for stem in _HELD_OUT_NAMES if stem in files)][:2]
    for group in groups:
        if len(group) > 1:
            names = " and ".join(file.name for file in group)
            raise UserError(f"The data folder '{name}' holds {names}: take one of them out, or name a single file.")
    used = [file for (file,) in groups]
    others = tuple(file.name for listed in files.values() for file in listed if file not in used)
    return Source(name, used[0], used[1] if len(used) > 1 else None, (*others, *_out_of_reach(path)))


def _out_of_reach(folder: Path) -> Iterator[str]:
    """What may hold data in a folder, but is packed, or lies a folder deeper."""
    for entry in sorted(folder.iterdir()):
        inner: list[Path] = []
        if entry.is_dir() and not entry.name.startswith("."):
            with contextlib.suppress(OSError):  # it may be another user's
                inner = list(entry.iterdir())
        if any(file.suffix.lower() in SUFFIXES for file in inner):
            yield f"{entry.name}/"
        elif entry.is_file() and entry.suffix.lower() not in SUFFIXES and {*entry.name.lower().split(".")} & _ENDINGS:
            yield entry.name


def _train(source: Source, split: str, limit: int | None, seen: Survey) -> Iterator[Example]:
    if source.train is None:
        rows = (RawRow(number, row) for number, row in enumerate(_hub_rows(source.name, split), 1))
        yield from _examples(itertools.islice(rows, limit), source.name, seen)
    else:
        yield from _of_file(source.train, limit, seen)


def _own_held_out(source: Source, limit: int | None, seen: Survey) -> Iterator[Example]:
    if source.held_out:
        yield from _of_file(source.held_out, limit, seen)


def _of_file(path: Path, limit: int | None, seen: Survey) -> Iterator[Example]:
    """The Examples of a file; its faulty rows go into `seen`."""
    before = seen.rows
    try:
        contents = open_rows(path, lambda columns: fits(columns, seen.format))
        seen.separator = seen.separator or contents.separator
        yield from _examples(itertools.islice(contents.rows, limit), path.name, seen)
    except OSError as error:
        raise UserError(f"The data file '{path}' cannot be read: {error.strerror or error}.") from None
    if seen.rows == before:
        raise UserError(f"The data file '{path}' is empty: it needs at least one row.")


def _examples(rows: Iterator[RawRow], file: str, seen: Survey) -> Iterator[Example]:
    if seen.format == "auto":
        rows = _recognized(rows, file, seen)
    for row in rows:
        seen.rows += 1
        try:
            if row.fault:
                raise RowError(row.fault)
            parsed, unused = example(row.value, seen.format)
        except RowError as error:
            reason = str(error) if row.fault or not row.note else f"{error}; {row.note}"
            seen.add(Fault(file, row.number, _short(reason), row.line, "" if row.fault else seen.format))
            continue
        seen.ignored.update(unused.union(row.beside))
        yield parsed | {"row": row.number}


def _recognized(rows: Iterator[RawRow], file: str, seen: Survey) -> Iterator[RawRow]:
    """The same rows; the format is that of the first row that is of any. Raises UserError where none is."""
    looked_at: list[RawRow] = []
    for row in rows:
        looked_at.append(row)
        if isinstance(row.value, dict) and (format := recognize(row.value)):
            seen.format = format
            break
    if seen.format == "auto" and (strange := next((row for row in looked_at if not row.fault), None)):
        known = "; ".join(f"{name}: {', '.join(how.columns)}" for name, how in FORMATS.items())
        has = ", ".join(map(str, strange.value)) if isinstance(strange.value, dict) else ""
        raise UserError(
            f"{file} row {strange.number} fits no known format: it has {_short(has) or 'no named fields'}, "
            f"but needs the columns of one of these: {known}."
        )
    return itertools.chain(looked_at, rows)


def _short(text: str) -> str:
    """A sentence that quotes data, in one line and not without end."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_REASON else line[:_LONGEST_REASON] + "…"


def _hub_rows(name: str, split: str) -> Iterator[dict[str, Any]]:
    hub.require("datasets", name)
    hub.go_offline_if_unreachable()
    import datasets

    _check_card(name)
    try:
        builder = datasets.load_dataset_builder(name)
        _only_its_own(name, builder.config.data_files or {})
        builder.download_and_prepare()
        part = builder.as_dataset(split=split)
    except UserError:
        raise
    except Exception as error:  # the library raises a dozen types; all of them are about the name, split or network
        reason = first_line(error)
        raise UserError(f"The data set '{name}' (split '{split}') cannot be loaded: {reason}") from error
    for row in part:
        yield {column: without_nan(cell) for column, cell in row.items()}


def _check_card(name: str) -> None:
    """Raise UserError for a hub data set whose card names files elsewhere, before the library looks for them.

    So nobody learns whether those exist, and no address is contacted. The library reads a card from either of two files.
    """
    from huggingface_hub import hf_hub_download, metadata_load

    for file in ("README.md", ".huggingface.yaml"):
        card: dict[str, Any] = {}
        with contextlib.suppress(Exception):  # none there, no network, no YAML: the library says it better
            path = Path(hf_hub_download(name, file, repo_type="dataset"))
            read = metadata_load if file == "README.md" else _yaml
            card = read(path) or {}
        for named in _named_files(card.get("configs") if isinstance(card, dict) else None):
            if "://" in named or named.startswith(("/", "~", "\\")) or ".." in named.replace("\\", "/").split("/"):
                raise UserError(
                    f"The data set '{name}' names files that are not its own ('{named}'): choose another one."
                )


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _named_files(configs: object) -> Iterator[str]:
    """Every text below `data_files` and `data_dir` in the configs of a card, however nested."""
    listed = configs if isinstance(configs, list) else []
    left = [item.get(key) for item in listed if isinstance(item, dict) for key in ("data_files", "data_dir")]
    for _ in range(_MOST_NAMED):
        if not left:
            return
        item = left.pop()
        if isinstance(item, str):
            yield item
        else:
            left += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    raise UserError(f"The card of the data set names more than {_MOST_NAMED:,} files: choose another one.")


def _only_its_own(name: str, files: Mapping[str, Sequence[object]]) -> None:
    """Raise UserError for a hub data set whose card names files elsewhere, of this machine say."""
    for file in itertools.chain.from_iterable(files.values()):
        if not str(file).startswith("hf://"):
            raise UserError(f"The data set '{name}' names files that are not its own ('{file}'): choose another one.")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
