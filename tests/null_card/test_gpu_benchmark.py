"""`benchmarks/gpu.py --dry-run` on cards: what a person with a GPU is asked to run comes to its end there."""

import pytest

from tests.null_card.cards import H100, T4, Card
from tests.null_card.host import NullCard

pytestmark = pytest.mark.null_card


@pytest.mark.parametrize("card", [T4, H100], ids=["t4", "h100"])
def test_every_part_runs_dry_in_the_cards_own_format(null_card: NullCard, card: Card) -> None:
    told = {
        name: null_card.ask("gpu:part", card, seconds=900, name=name)
        for name in ("needs", "experiments", "fit", "speed", "decode")
    }
    assert told["needs"][-1] == {"product_in_4_bits": "float16" if card is T4 else "bfloat16"}
    refused = {(line["experiment"], line["way"]) for line in told["experiments"] if "refused" in line}
    assert refused == (
        {(number, "stock") for number in (1, 2, 3)} if card is T4 else set()
    )  # biases in fp16, which no scaler trains
    ran = [line for line in told["experiments"] if "refused" not in line]
    assert ran and all(not line["ran_out"] and line["allocated"] > 0 for line in ran)
    assert all(line["planned"] > 0 and line["allocated"] > 0 for line in told["fit"])
    assert {line["way"] for line in told["speed"] if line.get("allocated")} == {"ours", "ours, auto", "trainer"}
    assert {line["rows"] for line in told["decode"]} == {1, 3}
