"""A dense linear on a few rows gives what it gives otherwise, and the faster form is taken only where it is faster."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from qlora_gui.compare import few_rows


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 3), (7, 1), (1, 8), (3, 40)])
def test_it_gives_what_the_linear_gives(shape: tuple[int, int], bias: bool, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(48, 96, bias=bias)
    x = torch.randn(*shape, 48)
    expected = functional.linear(x, linear.weight, linear.bias)
    calls: list[int] = []
    product = few_rows.product

    def counted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return product(x, weight)

    monkeypatch.setattr(few_rows, "is_faster", lambda linear: True)
    assert few_rows.install(torch.nn.Sequential(linear))
    monkeypatch.setattr(few_rows, "product", counted)
    with torch.no_grad():
        found = linear(x)
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-6)
    rows = shape[0] * shape[1]
    assert calls == ([rows] if rows <= few_rows.FEW else [])


def test_it_is_taken_only_where_it_is_faster(monkeypatch: Any) -> None:
    linear = torch.nn.Linear(8, 8)
    monkeypatch.setattr(few_rows, "is_faster", lambda linear: False)
    assert not few_rows.install(torch.nn.Sequential(linear)) and "forward" not in vars(linear)
    monkeypatch.setattr(few_rows, "is_faster", lambda linear: True)
    half = torch.nn.Linear(8, 8, dtype=torch.bfloat16)
    assert not few_rows.install(torch.nn.Sequential(half)) and "forward" not in vars(half)


def test_trying_leaves_the_linear_as_it_was() -> None:
    linear = torch.nn.Linear(64, 64)
    before = linear.weight.detach().clone()
    assert few_rows.is_faster(linear) in (True, False)
    assert torch.equal(linear.weight, before) and linear.weight.grad is None
