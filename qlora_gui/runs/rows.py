"""The rows of a run: what it learns from and what it is measured on, the same for everybody who asks."""

from dataclasses import dataclass

from qlora_gui.data import read, tokens
from qlora_gui.data.formats import Example
from qlora_gui.runs.config import RunConfig


@dataclass(frozen=True)
class Rows:
    """The format the rows were read as, the rows to train on, and the held-out ones (maybe none)."""

    format: str
    train: list[Example]
    held_out: list[Example]


def rows_of(config: RunConfig) -> Rows:
    """Read a run's data and hold rows out, unless the data brings held-out rows. Raises UserError."""
    found = read.load(config.dataset, config.dataset_format, config.dataset_split)
    if found.held_out is not None:
        return Rows(found.format, found.train, found.held_out)
    train, held_out = tokens.split_held_out(found.train, config.eval_fraction, config.seed)
    return Rows(found.format, train, held_out)
