"""The null card of these tests; without the environment that it needs they are skipped, and say how to make it."""

import json
import os
from collections.abc import Iterator

import pytest

from qlora_gui.data import load
from tests.null_card.host import VARIABLE, NullCard


@pytest.fixture(scope="session")
def null_card() -> Iterator[NullCard]:
    python = os.environ.get(VARIABLE)
    if not python:
        pytest.skip(f"{VARIABLE} is not set: `python -m tests.null_card` makes what it needs and runs these tests")
    card = NullCard(python)
    yield card
    card.close()


@pytest.fixture(scope="session")
def few_rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of data with 24 rows of the demo to train on and 6 held out: operators go through Python here."""
    folder, demo = tmp_path_factory.mktemp("data") / "few", load.load("demo")
    folder.mkdir()
    for name, rows in (("train", demo.train[:24]), ("heldout", demo.held_out[:6])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"messages": row["messages"]}) + "\n" for row in rows))
    return str(folder)
