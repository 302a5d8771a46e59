"""The rows of a run: what it learns from and what it is measured on, the same for every reader."""

from dataclasses import dataclass, field
from typing import Any

from qlora_gui.config import RunConfig
from qlora_gui.data import load, splits
from qlora_gui.data.bad_rows import Fault
from qlora_gui.data.formats import Example
from qlora_gui.runs.events import Data
from qlora_gui.runs.history import RunHistory


@dataclass(frozen=True)
class Rows:
    """The format the rows were read as, the rows to train on, and the held-out ones (maybe none).

    `skipped` rows are faulty and left out, `ignored` counts rows by what they hold that is not used (`data.read`).
    Of the `usable` rows `duplicates` equal an earlier one. `known` held-out rows of the data's own equal rows that are
    trained on, and are left out. `unused_files` lie in the data's folder and are not read.
    """

    format: str
    train: list[Example]
    held_out: list[Example]
    skipped: int = 0
    skipped_rows: list[Fault] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    known: int = 0
    usable: int = 0
    unused_files: tuple[str, ...] = ()

    def event_fields(self) -> dict[str, Any]:
        """What became of the rows before they were tokenized, as fields of a `data` event."""
        return {
            "skipped": self.skipped,
            "skipped_rows": [fault.plain() for fault in self.skipped_rows],
            "ignored": self.ignored,
            "usable": self.usable,
            "duplicates": self.duplicates,
            "known": self.known,
            "unused_files": list(self.unused_files),
        }


def rows_of(config: RunConfig, history: RunHistory | None = None) -> Rows:
    """Read a run's data and hold rows out, unless the data brings held-out rows; none of them is trained on.

    Of a run that was trained (`history`) before copies went to one side, they are the rows that it had. Raises UserError.
    """
    trained = history.latest(Data) if history else None
    together = trained is None or trained.duplicates is not None or "duplicates" in trained.nulls
    dataset = load.load(config.dataset, config.dataset_format, config.dataset_split, skip_bad_rows=config.skip_bad_rows)
    return divided(dataset, config, together)


def divided(dataset: load.Dataset, config: RunConfig, together: bool = True) -> Rows:
    """The rows of a run, of data that has been read; `together` keeps copies on one side."""
    known = 0
    if dataset.held_out is not None:
        train, held_out = dataset.train, splits.without(dataset.held_out, dataset.train)
        known = len(dataset.held_out) - len(held_out)
    else:
        train, held_out = splits.split_held_out(dataset.train, config.eval_fraction, config.seed, together)
    return Rows(
        dataset.format,
        train,
        held_out,
        dataset.skipped,
        dataset.skipped_rows,
        dataset.ignored,
        splits.duplicates(dataset.train),
        known,
        len(dataset.train),
        dataset.source.unused_files,
    )
