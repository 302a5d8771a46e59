"""fp16 with loss scaling, as a T4 trains: the run itself, on the null card."""

from pathlib import Path
from typing import Any

import pytest

from tests.null_card.host import NullCard
from tests.null_card.runs import events_of, losses

pytestmark = pytest.mark.null_card
FOUR = {"max_steps": 4, "save_steps": 2, "eval_steps": 4}


def norms(told: dict[str, Any]) -> list[float | None]:
    """Gradient norms of the steps; None where they were infinite, and the step was skipped."""
    return [event["grad_norm"] for event in events_of(told, "step")]


@pytest.mark.parametrize("family,knobs", [
    ("llama", {}),
    ("llama", {"packing": True, "bias": "all", "gradient_checkpointing": "all"}),
    ("bloom", {"bias": "lora_only"}),
    ("bloom", {"max_grad_norm": 0}),
], ids=["llama", "llama-packed", "bloom", "bloom-unclipped"])  # fmt: skip
def test_fp16_learns_what_fp32_learns(
    null_card: NullCard,
    request: pytest.FixtureRequest,
    few_rows: str,
    tmp_path: Path,
    family: str,
    knobs: dict[str, Any],
) -> None:
    """At the usual first scale of 65,536: training losses, gradient norms and held-out losses within 1%."""
    knobs = {"base_model": str(request.getfixturevalue(family)), "dataset": few_rows} | knobs
    half, full = (
        null_card.ask("training:train", folder=str(tmp_path), name=dtype or "own", knobs=knobs, dtype=dtype)
        for dtype in ("", "float32")
    )
    assert [events_of(told, "base")[0]["dtype"] for told in (half, full)] == ["float16", "float32"]
    assert losses(half) == pytest.approx(losses(full), rel=0.01)
    assert norms(half) == pytest.approx(norms(full), rel=0.02)
    held_out = [[event["loss"] for event in events_of(told, "eval")] for told in (half, full)]
    assert held_out[0] == pytest.approx(held_out[1], rel=0.01) and held_out[0][-1] < held_out[0][0]


def test_overflowing_steps_are_skipped_until_the_scale_suits(
    null_card: NullCard, llama: Path, few_rows: str, tmp_path: Path
) -> None:
    """Each halves the scale; a run that is resumed goes on with the scale of its checkpoint, not with 65,536."""
    knobs = {"base_model": str(llama), "dataset": few_rows, "warmup_ratio": 0.0} | FOUR
    told = null_card.ask("training:train", folder=str(tmp_path), name="run", knobs=knobs, first_scale=2.0**40)
    assert losses(told, 4) and norms(told) == [None] * 4
    before, *_, after = (event["loss"] for event in events_of(told, "eval"))
    assert after == before  # nothing was learned, and nothing broken
    assert null_card.ask("training:scale_of", folder=str(tmp_path), name="run", step=2) == 2.0**38
    resumed = null_card.ask("training:resume", folder=str(tmp_path), name="run", step=2)
    assert resumed["code"] == 0 and norms(resumed) == [None, None]
    assert null_card.ask("training:scale_of", folder=str(tmp_path), name="run", step=4) == 2.0**36


def test_a_run_recovers_from_one_overflow_and_resumes_alike(
    null_card: NullCard, llama: Path, few_rows: str, tmp_path: Path
) -> None:
    """From how large a scale on fp16 overflows is not the same with every processor's kernels: seven halvings are room."""
    knobs = {"base_model": str(llama), "dataset": few_rows, "warmup_ratio": 0.0}
    knobs |= {"max_steps": 8, "save_steps": 6, "eval_steps": 8}
    told = null_card.ask("training:train", folder=str(tmp_path), name="run", knobs=knobs, first_scale=2.0**27)
    assert losses(told, 8) and None in norms(told) and norms(told)[-1] is not None
    resumed = null_card.ask("training:resume", folder=str(tmp_path), name="run", step=6)
    assert losses(resumed, 2) == pytest.approx(losses(told, 8)[6:], rel=1e-5)
