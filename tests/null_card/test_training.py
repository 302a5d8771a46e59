"""Runs on the null card: the trainer's own entry point, with true values."""

from pathlib import Path

import pytest

from tests.null_card.cards import T4
from tests.null_card.host import NullCard
from tests.null_card.runs import events_of, losses

pytestmark = pytest.mark.null_card


def test_one_process_trains_on_one_card_wherever_more_are_seen(
    null_card: NullCard, llama: Path, few_rows: str, tmp_path: Path
) -> None:
    """The Trainer takes all cards it sees for data parallelism: twice the rows a step, twice the loss it shows."""
    knobs = {"base_model": str(llama), "dataset": few_rows}
    one, two = (
        null_card.ask("training:train", T4, devices=devices, folder=str(tmp_path), name=f"on-{devices}", knobs=knobs)
        for devices in (1, 2)
    )
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
    for before, after in zip(events_of(one, "step"), events_of(two, "step"), strict=True):
        assert after["epoch"] == before["epoch"]
        assert after["memory"] == pytest.approx(before["memory"], rel=0.02)  # twice the rows were 58% more
