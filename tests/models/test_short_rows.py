"""Attention of short rows in fp32: torch's own function, more exactly, and only where it gains."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from qlora_gui.models import attention, short_rows
from qlora_gui.simulation.cuda_emulation import cuda_rules

ROWS, TOKENS, SIZE = 3, 37, 64


def parts(heads: int, dtype: torch.dtype) -> torch.Tensor:
    """[rows, heads, tokens, size], in the strides that a model's projections give them."""
    return torch.randn(ROWS, TOKENS, heads * SIZE).to(dtype).view(ROWS, TOKENS, heads, SIZE).transpose(1, 2)


def mask(kind: str, dtype: torch.dtype) -> torch.Tensor | None:
    """None where it is merely causal; else with padding, too."""
    if kind == "causal":
        return None
    seen = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril().expand(ROWS, 1, TOKENS, TOKENS).clone()
    seen[0, :, 20:, 20:] &= torch.eye(TOKENS - 20, dtype=torch.bool)
    return seen if kind == "bool" else torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)


@pytest.mark.parametrize("heads", [(9, 3), (4, 4)], ids=["grouped", "plain"])
@pytest.mark.parametrize("kind", ["causal", "bool", "additive"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_it_is_torchs_attention_and_nearer_to_the_exact_one(
    heads: tuple[int, int], kind: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    given = [parts(number, dtype) for number in (heads[0], heads[1], heads[1])]
    gradient = torch.randn(ROWS, heads[0], TOKENS, SIZE).to(dtype)

    def found(attend: Callable[..., torch.Tensor], computed_in: torch.dtype) -> list[torch.Tensor]:
        inputs = [part.detach().to(computed_in).requires_grad_() for part in given]
        own = mask(kind, dtype)
        own = own.to(computed_in) if own is not None and own.dtype != torch.bool else own
        out = attend(*inputs, attn_mask=own, is_causal=own is None, enable_gqa=heads[0] != heads[1])
        out.backward(gradient.to(computed_in))
        return [out.detach(), *(part.grad for part in inputs if part.grad is not None)]

    exact = found(functional.scaled_dot_product_attention, torch.float64)
    stock, ours = found(functional.scaled_dot_product_attention, dtype), found(short_rows._attend, dtype)
    for wanted, theirs, mine in zip(exact, stock, ours, strict=True):
        assert mine.dtype == dtype
        off, stock_off = (float((part.double() - wanted).norm() / wanted.norm()) for part in (mine, theirs))
        assert off <= stock_off


def trained(tokens: int, dtype: torch.dtype, gradient: bool = True, size: int = 16) -> int:
    """How often a small model's layers attended in fp32 in one pass over so many tokens."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": size,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_key_value_heads=2, **sizes)).to(dtype)
    attention.install(model, "sdpa")
    calls = 0

    def counted(*args: object, **kwargs: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return stock(*args, **kwargs)

    stock = short_rows._attend
    with pytest.MonkeyPatch.context() as patch, torch.set_grad_enabled(gradient):
        patch.setattr(short_rows, "_attend", counted)
        ids = torch.arange(tokens)[None] % 32
        loss = model(input_ids=ids, labels=ids).loss
        if gradient:
            loss.backward()
            assert all(bool(part.grad.isfinite().all()) for part in model.parameters())
    return calls


def test_only_short_rows_in_16_bits_that_are_trained() -> None:
    assert trained(40, torch.bfloat16) == trained(short_rows.UP_TO, torch.bfloat16) == 2
    assert trained(short_rows.UP_TO + 1, torch.bfloat16) == 0
    assert trained(short_rows.WIDE_UP_TO, torch.bfloat16, size=128) == 2
    assert trained(short_rows.WIDE_UP_TO + 1, torch.bfloat16, size=128) == 0
    assert trained(40, torch.float32) == 0
    assert trained(40, torch.bfloat16, gradient=False) == 0


def test_a_simulated_gpu_has_its_own_kernels() -> None:
    with cuda_rules():
        assert trained(40, torch.bfloat16) == 0
