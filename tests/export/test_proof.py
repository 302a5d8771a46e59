"""What is said of two models' readings: better, as good, measurably worse, and worse than is allowed."""

from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from qlora_gui.data.chat import Chat
from qlora_gui.data.tokenization import Encoded
from qlora_gui.export import proof
from qlora_gui.export.proof import Asked, Kept, Read

WIDTH = 40


@pytest.fixture
def asked(llama: Any) -> Asked:
    rows = [Encoded(number, [1, 2, 3, 4], [-100, -100, 3, 4], False) for number in range(1, 21)]
    return Asked(rows, Chat(AutoTokenizer.from_pretrained(llama)))


def readings(losses: list[float]) -> dict[int, Read]:
    """One per row, of losses in nats per token; every fourth answer is another one where losses are not 1."""
    return {place: Read(2 * loss, (7, place % 4 if loss != 1 else 0), "x") for place, loss in enumerate(losses)}


@pytest.mark.parametrize(
    ("shift", "allowed", "worse", "told"),
    [
        (0.0, None, False, "20 of 20 answers identical."),
        (-0.2, 0.01, False, "Held-out loss 0.800 as exported, 1.000 as trained"),
        (0.2, 0.5, False, "measurably higher than as trained (+0.200 [+0.200, +0.200])"),
        (0.2, 0.1, True, "worse than the evaluation's interval allows (loss +0.200, allowed +0.100)"),
        (0.2, None, True, "It is worse than as trained (loss +0.200 [+0.200, +0.200])"),
        (float("nan"), None, True, "computes no finite loss: do not use it"),
    ],
)
def test_what_is_said(shift: float, allowed: float | None, worse: bool, told: str, asked: Asked, tmp_path: Any) -> None:
    kept = Kept(tmp_path / "kept", 20, WIDTH)
    one, two = readings([1.0] * 20), readings([1.0 + shift] * 20)
    found = proof.compared(asked, one, two, 0.0, kept, allowed, "float32 on cpu")
    assert bool(found.worse) == worse and told in found.sentence("as exported"), found.sentence("as exported")


def test_kl_is_that_of_the_distributions(tmp_path: Any) -> None:
    """Against torch's own, within what fp16 keeps; of the first tokens alone."""
    torch.manual_seed(0)
    one, two = (3 * torch.randn(50, WIDTH)).log_softmax(-1), (3 * torch.randn(50, WIDTH)).log_softmax(-1)
    kept = Kept(tmp_path / "kept", 2, WIDTH)
    kept.keep(1, one)
    first = proof.score.FIRST
    want = torch.nn.functional.kl_div(two[:first], one[:first], log_target=True, reduction="sum")
    assert kept.counts == [0, first] and kept.kl(1, two[:first]) == pytest.approx(float(want), rel=2e-3)
    assert abs(kept.kl(1, one[:first])) < 1e-2
