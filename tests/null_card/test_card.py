"""The null card itself: torch takes it for the card that it is said to be, and values on it are true."""

import pytest

from tests.null_card.cards import H100, T4, Card
from tests.null_card.host import NullCard

pytestmark = pytest.mark.null_card


@pytest.mark.parametrize("card", [T4, H100], ids=["t4", "h100"])
def test_torch_sees_the_card(null_card: NullCard, card: Card) -> None:
    seen = null_card.ask("attention:picked", card, fresh=True)
    assert seen["name"] == card.name
    # torch alone: cuDNN's attention on Hopper, and no flash attention on Turing
    assert (seen["masked"], seen["causal"]) == {T4: ("efficient", "efficient"), H100: ("cudnn", "cudnn")}[card]
