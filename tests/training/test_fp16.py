"""fp16 under loss scaling, as GPUs without bf16 train, with the CPU's GradScaler: gradients, skipped steps, recovery."""

from pathlib import Path
from typing import Any

import pytest
import torch

from qlora_gui.data import collate as batches
from qlora_gui.models import base as bases
from qlora_gui.training import overflow
from tests.steps import config_of, rows_of, trainable

USUAL = 2.0**16  # what torch's GradScaler begins with
SETTINGS = [
    ("llama", {}),
    ("llama", {"packing": True, "bias": "all"}),
    ("bloom", {"gradient_checkpointing": "all", "bias": "all"}),
]


def batch_of(base: Path, packed: bool) -> dict[str, torch.Tensor]:
    collate = batches.Collate(bases.load_tokenizer(base).pad_token_id, 192 if packed else 0, 8)
    return {name: value for name, value in collate(rows_of(base, 4)).items() if name != "tokens"}


def ready(base: Path, dtype: torch.dtype, knobs: dict[str, Any]) -> Any:
    return trainable(base, config_of(base_model=str(base), attention="sdpa", **knobs), dtype).train()


def gradients(model: Any, batch: dict[str, torch.Tensor], scale: float) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss, and the gradients of the loss times `scale`, unscaled again."""
    model.zero_grad()
    loss = model(**batch).loss
    (loss.float() * scale).backward()
    return loss.item(), {
        name: part.grad.float() / scale for name, part in model.named_parameters() if part.grad is not None
    }


@pytest.mark.parametrize("family,knobs", SETTINGS, ids=["llama", "llama-packed", "bloom"])
def test_gradients_are_those_of_fp32(request: pytest.FixtureRequest, family: str, knobs: dict[str, Any]) -> None:
    base = request.getfixturevalue(family)
    batch = batch_of(base, bool(knobs.get("packing")))
    loss, expected = gradients(ready(base, torch.float32, knobs), batch, 1.0)
    half, found = gradients(ready(base, torch.float16, knobs), batch, USUAL)
    assert half == pytest.approx(loss, rel=0.01) and found.keys() == expected.keys()
    whole = torch.cat([part.flatten() for part in expected.values()])
    other = torch.cat([found[name].flatten() for name in expected])
    assert other.isfinite().all()
    assert float((other - whole).norm() / whole.norm()) < 0.05  # random layers exaggerate: 0.6% on the demo base


def test_an_overflow_skips_the_step_and_halves_the_scale_until_it_trains(llama: Path) -> None:
    model, batch = ready(llama, torch.float16, {}), batch_of(llama, False)
    trained = [part for part in model.parameters() if part.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = [part.detach().clone() for part in trained]
    skipped, first = 0, 0.0
    for _ in range(40):
        loss = model(**batch).loss
        first = first or loss.item()
        scaler.scale(loss.float()).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if scaler.get_scale() == scale:
            break
        skipped += 1
        assert scaler.get_scale() == scale / 2
        assert all(torch.equal(one, other) for one, other in zip(trained, before, strict=True))
    assert 0 < skipped < 39 and scaler.get_scale() == 2.0 ** (40 - skipped)
    assert any(not torch.equal(one, other) for one, other in zip(trained, before, strict=True))
    assert all(part.isfinite().all() for part in trained) and model(**batch).loss.item() < first


def test_the_largest_number_of_the_layers_is_seen_in_fp16_alone(llama: Path) -> None:
    model, batch = ready(llama, torch.float16, {}), batch_of(llama, False)
    with overflow.watched(model, torch.bfloat16) as nothing, overflow.watched(model, torch.float16) as largest:
        hidden = model.base_model.model.model(batch["input_ids"], output_hidden_states=True).hidden_states
    seen = max(float(part.abs().max()) for part in hidden[1:-1])  # the last one is behind the final norm
    assert nothing.value is None and largest.value is not None and largest.value >= seen > 0
    left = [
        hook for part in model.modules() for hook in part._forward_hooks.values()
    ]  # transformers keeps some of its own
    assert not any(hook.__module__ == overflow.__name__ for hook in left if hasattr(hook, "__module__"))
