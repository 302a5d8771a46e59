"""How often the card is asked and waited for, at the shapes of Llama-3.2-1B: no more than the stock way, measured here.

A small base on a fast GPU takes as long as its launches do, and every wait leaves the GPU without work.
"""

from pathlib import Path

import pytest

from tests.null_card.cards import RTX_4060_TI, T4, Card
from tests.null_card.host import NullCard

pytestmark = pytest.mark.null_card

LLAMA_1B = "meta-llama/Llama-3.2-1B"
SECONDS = 600


@pytest.mark.parametrize("card", [T4, RTX_4060_TI], ids=["t4", "4060-ti"])
def test_a_micro_batch_takes_fewer_launches_and_waits_than_the_stock_way(
    null_card: NullCard, tmp_path: Path, card: Card
) -> None:
    """With dropout and everything kept, in the Trainer's own loop: 2,048 tokens."""
    ours, stock = (
        null_card.ask(
            "budget:micro_batch",
            card,
            native=True,
            seconds=SECONDS,
            folder=str(tmp_path / way),
            base=LLAMA_1B,
            way=way,
            knobs={"dropout": 0.05, "optimizer": "adamw_torch_fused"},
        )
        for way in ("ours", "stock")
    )
    assert ours["launches"] < 0.95 * stock["launches"], (ours, stock)
    assert ours["waits"] <= min(1, stock["waits"]), (ours, stock)  # how many tokens are learned from


def test_dropout_costs_three_launches_a_linear(null_card: NullCard, tmp_path: Path) -> None:
    """One to drop the input, one to drop it again for its gradient, one to add what goes to the input."""
    plain, dropped = (
        null_card.ask(
            "budget:micro_batch",
            RTX_4060_TI,
            native=True,
            seconds=SECONDS,
            folder=str(tmp_path / str(dropout)),
            base=LLAMA_1B,
            way="ours",
            knobs={"dropout": dropout},
        )
        for dropout in (0.0, 0.05)
    )
    assert dropped["launches"] - plain["launches"] <= 3 * 16 * 7


def test_a_token_of_base_and_two_adapters_takes_fewer_than_the_stock_ways(null_card: NullCard) -> None:
    """Against PEFT's batch of mixed rows, and against one after the other; a probe's three rows are cheaper still."""
    found = {
        way: null_card.ask(
            "budget:token", RTX_4060_TI, native=True, seconds=SECONDS, base=LLAMA_1B, adapters=2, way=way
        )
        for way in ("ours", "mixed", "apart", "probe")
    }
    least = min(found[way]["launches"] for way in ("mixed", "apart"))
    assert found["probe"]["launches"] <= found["ours"]["launches"] < least, found
    assert found["ours"]["waits"] <= 2 and found["probe"]["waits"] <= 2, found  # is a row padded; have all rows ended


def test_what_torch_keeps_counts_as_free(null_card: NullCard) -> None:
    """Else batches of an evaluation shrink after the first."""
    size = 4 * 2**30
    found = null_card.ask("budget:free_memory", T4, native=True, size=size)
    assert found["after"] == found["before"] == found["between"] + size
