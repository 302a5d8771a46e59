"""A dense linear by oneDNN gives what it gives otherwise, and is taken only where it is faster."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from qlora_gui.inference import onednn


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 3), (7, 1), (1, 8), (3, 40), (2, 0)])
def test_it_gives_what_the_linear_gives(shape: tuple[int, int], bias: bool, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(48, 96, bias=bias)
    x = torch.randn(*shape, 48)
    expected = functional.linear(x, linear.weight, linear.bias)
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(onednn, "is_faster", lambda linear: True)
    assert onednn.install(torch.nn.Sequential(linear)) and "forward" in vars(linear)
    with torch.no_grad():
        found = linear(x)
        turned = linear(x.transpose(0, 1))
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(turned, expected.transpose(0, 1), atol=1e-6)


def test_it_is_taken_only_where_it_is_faster(monkeypatch: Any) -> None:
    linear = torch.nn.Linear(8, 8)
    monkeypatch.setattr(onednn, "is_faster", lambda linear: False)
    assert not onednn.install(torch.nn.Sequential(linear)) and "forward" not in vars(linear)
    monkeypatch.setattr(onednn, "is_faster", lambda linear: True)
    half = torch.nn.Linear(8, 8, dtype=torch.bfloat16)
    assert not onednn.install(torch.nn.Sequential(half)) and "forward" not in vars(half)


def test_the_largest_is_tried(monkeypatch: Any) -> None:
    """A small one stays in the cache, and said that the slow product was as fast: a comparison took 1.6 times as long."""
    small, large = torch.nn.Linear(8, 8), torch.nn.Linear(8, 64)
    tried = []
    monkeypatch.setattr(onednn, "is_faster", lambda linear: bool(tried.append(linear)) or linear is large)
    assert onednn.install(torch.nn.Sequential(small, large)) and tried == [large] and "forward" in vars(small)


def test_trying_leaves_the_linear_as_it_was() -> None:
    linear = torch.nn.Linear(64, 64)
    before = linear.weight.detach().clone()
    assert onednn.is_faster(linear) in (True, False)
    assert torch.equal(linear.weight, before) and linear.weight.grad is None
