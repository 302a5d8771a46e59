"""What several columns cost in comparing: `python benchmarks/compare_speed.py`.

On the demo base in NF4 with two random LoRA adapters (rank 16, all linears), greedy, exactly 32 new tokens: base and
two adapters in one batch against one adapter column alone, against PEFT's mixed batch (`adapter_names`, on a 4-bit
PEFT model), and against the three one after the other. Ours goes the way of the Compare tab, streamed text included.
Everything in one process, in alternating order. Prints medians, times to the first token and ratios; writes
benchmarks/results/compare_speed.json.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from machine import hardware, versions  # noqa: E402
from peft import LoraConfig, PeftModel, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessor, LogitsProcessorList  # noqa: E402
from transformers.utils import logging as chatter  # noqa: E402

from qlora_gui.data.special_tokens import Text  # noqa: E402
from qlora_gui.inference import generate, protocol  # noqa: E402
from qlora_gui.inference.columns import Columns  # noqa: E402
from qlora_gui.inference.multi_lora import BASE  # noqa: E402
from qlora_gui.inference.sampling import Decoding  # noqa: E402
from qlora_gui.models import base as bases  # noqa: E402
from qlora_gui.models import demo  # noqa: E402
from qlora_gui.models import device as devices  # noqa: E402

NEW_TOKENS = 32
QUESTION = "My kettle came late and the box was open. What can I do now, and who pays for sending it back?"
TARGETS = {"one adapter": 1.35, "PEFT's mixed batch": 0.65, "one after the other": 0.5}
Timed = Callable[[], tuple[float, float]]  # seconds to the end, and to the first token


def make_adapter(base: Path, folder: Path, seed: int) -> Path:
    """A PEFT folder with random weights, small enough that the answers stay sentences."""
    torch.manual_seed(seed)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, part in model.named_parameters():
        if "lora_B" in name:
            part.data.mul_(0.02)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


def ours(columns: Columns, rows: list[int], prompt: str) -> Timed:
    """Rows of one batch, as the Compare tab asks for them."""
    assert columns.base and columns.multi_lora
    multi_lora = columns.multi_lora
    base = replace(columns.base, eos=frozenset({columns.base.model.config.vocab_size - 1}))
    decoding = Decoding(greedy=True, max_new_tokens=NEW_TOKENS)

    def run() -> tuple[float, float]:
        first, ends = [], []

        def emit(event: protocol.Event) -> None:
            if isinstance(event, protocol.Ended):
                ends.append(event)
            else:
                first.append(time.perf_counter())

        began = time.perf_counter()
        with multi_lora.activate(rows):
            generate.answer(base, [Text(prompt)] * len(rows), [[]] * len(rows), decoding, emit)
        seconds = time.perf_counter() - began
        assert [end.tokens for end in ends] == [NEW_TOKENS] * len(rows), "a row ended early"
        return seconds, first[0] - began

    return run


class Clock(LogitsProcessor):
    """Notes when the first logits are there."""

    def __init__(self) -> None:
        self.first = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.first = self.first or time.perf_counter()
        return scores


def peft_mixed(base: Path, adapters: list[Path], tokenizer: Any, prompt: str, dtype: torch.dtype) -> Timed:
    """PEFT's own way: all adapters in a 4-bit model, one name a row."""
    model = bases.load_model(str(base), "nf4", True, devices.pick(), dtype)
    wrapped = PeftModel.from_pretrained(model, str(adapters[0]), adapter_name="ad0")
    wrapped.load_adapter(str(adapters[1]), adapter_name="ad1")
    wrapped.eval()
    batch = tokenizer([prompt] * 3, add_special_tokens=False, return_tensors="pt").to(model.device)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, eos_token_id=2, pad_token_id=2
    )

    @torch.no_grad()
    def run() -> tuple[float, float]:
        clock = Clock()
        began = time.perf_counter()
        wrapped.generate(
            **batch,
            generation_config=config,
            adapter_names=["__base__", "ad0", "ad1"],
            logits_processor=LogitsProcessorList([clock]),
        )
        return time.perf_counter() - began, clock.first - began

    return run


def contestants(folder: Path) -> dict[str, Timed]:
    base = demo.ensure()
    adapters = [make_adapter(base, folder / f"ad{seed}", seed) for seed in range(2)]
    columns = Columns()
    columns.load(("demo", "", "nf4", True), adapters, lambda text: None)
    assert columns.base
    tokenizer = columns.base.tokenizer
    messages = [{"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    found = {
        "base": ours(columns, [BASE], prompt),
        "adapter 1": ours(columns, [0], prompt),
        "adapter 2": ours(columns, [1], prompt),
        "base + 2 adapters": ours(columns, [BASE, 0, 1], prompt),
    }
    # A row of the mixed batch has to compute in some format; PEFT is held to the faster of both.
    for dtype in (torch.float32, torch.bfloat16):
        name = f"PEFT mixed, {str(dtype).removeprefix('torch.')}"
        found[name] = peft_mixed(base, adapters, tokenizer, prompt, dtype)
    return found


def measure(found: dict[str, Timed], runs: int) -> dict[str, dict[str, list[float]]]:
    times: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "first_token": []} for name in found}
    for number in range(runs + 1):
        for name in sorted(found, reverse=number % 2 == 1):
            seconds, first = found[name]()
            if number:  # the first of each warms up
                times[name]["seconds"].append(seconds)
                times[name]["first_token"].append(first)
    return times


def ratios(medians: dict[str, float]) -> dict[str, float]:
    three = medians["base + 2 adapters"]
    alone = [medians["adapter 1"], medians["adapter 2"]]
    return {
        "one adapter": three / statistics.mean(alone),
        "PEFT's mixed batch": three / min(value for name, value in medians.items() if name.startswith("PEFT")),
        "one after the other": three / (medians["base"] + sum(alone)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="measured answers of each (default: 7)")
    runs = parser.parse_args().runs
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        times = measure(contestants(Path(folder)), runs)
    medians = {name: statistics.median(found["seconds"]) for name, found in times.items()}
    first = {name: statistics.median(found["first_token"]) for name, found in times.items()}
    print(
        f"{'answers of ' + str(NEW_TOKENS) + ' tokens':22} {'median s':>9} {'min s':>7} {'max s':>7} {'first token s':>14}"
    )
    for name, found in times.items():
        low, high = min(found["seconds"]), max(found["seconds"])
        print(f"{name:22} {medians[name]:9.2f} {low:7.2f} {high:7.2f} {first[name]:14.3f}")
    reached = ratios(medians)
    print("\nbase + 2 adapters in one batch, against")
    for name, ratio in reached.items():
        print(f"{name:22} {ratio:9.2f}   to reach: <= {TARGETS[name]}")
    result = {
        "benchmark": "compare_speed",
        "new_tokens": NEW_TOKENS,
        "times": times,
        "median_seconds": medians,
        "median_first_token": first,
        "ratios": reached,
        "targets": TARGETS,
        "device": str(devices.pick()),
        "machine": hardware(),
        "versions": versions(),
    }
    out = ROOT / "benchmarks" / "results" / "compare_speed.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
