"""Runs on the null card: what it is said to be with and without nvidia-smi, and the check on it against the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.null_card.cards import H100, T4, Card
from tests.null_card.host import NullCard

pytestmark = pytest.mark.null_card


@pytest.mark.parametrize("smi", [True, False], ids=["with nvidia-smi", "without"])
def test_the_budget_is_of_the_card_with_nvidia_smi_and_without(null_card: NullCard, tmp_path: Path, smi: bool) -> None:
    settings = {"QLORA_GUI_CACHE": str(tmp_path)}
    found = null_card.ask("device:seen", T4, native=True, smi=smi, settings=settings)
    assert found["trouble"] == "" and found["given"] == {}
    assert (found["budget"]["kind"], found["budget"]["gpu"]) == ("cuda", "Tesla T4")
    assert (
        found["budget"]["total"] == T4.mebibytes << 20 and 0.95 < found["budget"]["free"] / found["budget"]["total"] < 1
    )


def test_of_two_cards_a_child_is_given_one(null_card: NullCard, tmp_path: Path) -> None:
    settings = {"QLORA_GUI_CACHE": str(tmp_path)}
    found = null_card.ask("device:seen", T4, native=True, devices=2, settings=settings, gpu="1")
    assert [device["number"] for device in found["devices"]] == [0, 1]
    assert found["given"]["CUDA_VISIBLE_DEVICES"] == "1" and "On GPU 1 (Tesla T4" in found["given"]["QLORA_GUI_CARD"]


@pytest.mark.parametrize("card", [T4, H100], ids=["T4", "H100"])
def test_the_check_passes_on_the_card(null_card: NullCard, tmp_path: Path, card: Card) -> None:
    """fp16 on a T4, bf16 on an H100: trained, saved, reloaded, out of memory by the allocator's own limit, then held
    against the CPU in fp32."""
    lines = null_card.ask(
        "device:checked", card, folder=str(tmp_path / "check"), settings={"QLORA_GUI_CACHE": str(tmp_path)}
    )
    on_cpu = {"ACCELERATE_USE_CPU": "true", "QLORA_GUI_COMPUTE_DTYPE": "float32", "QLORA_GUI_CHECKED": "gpu"}
    command = [sys.executable, "-m", "qlora_gui.check.worker", str(tmp_path / "check"), "cpu"]
    done = subprocess.run(command, env=os.environ | on_cpu, capture_output=True, text=True, timeout=400)
    lines += map(json.loads, done.stdout.splitlines())
    found = {line["key"]: line for line in lines}
    assert not [line for line in lines if line["state"] == "failed"], done.stderr[-3000:]
    assert f"answers in {'float16' if card is T4 else 'bfloat16'}" in found["llama-trained"]["text"]
    assert "GPU's limit" in found["out-of-memory"]["text"] and found["spilling"]["state"] == "ok"
    assert "to the bit" in found["quantized"]["text"] and "bloom-gradients" in found
    assert ("fp16" in found) == (card is T4)
