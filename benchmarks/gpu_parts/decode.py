"""Tokens a second in answering: the base alone, one adapter alone, and base and two adapters in one batch.

Beside what memory allows: a token of a batch reads every packed weight, its statistics and the head once, and no faster
than the device copies.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from transformers import GenerationConfig

from gpu_parts import bases, steps
from qlora_gui.config import make
from qlora_gui.inference.adapter_file import Adapter, Lora
from qlora_gui.inference.multi_lora import BASE, MultiLora
from qlora_gui.models import attention

COLUMNS = {"base": [BASE], "one adapter": [0], "base and two adapters": [BASE, 0, 1]}


def run(dry: bool) -> Iterator[dict[str, Any]]:
    """A line for every base and set of columns: the median of the repeats."""
    prompt, new = (8, 4) if dry else (128, 64)
    bandwidth = _bandwidth(2**24 if dry else 2**30)
    names = [bases.LLAMA_1B] if dry else [bases.BLOOM_560M, bases.BLOOM_7B1, bases.LLAMA_1B]
    for name in names:
        config, raw = make({"base_model": name}), bases.shape_of(name, dry)
        steps.clear()
        model = bases.random_base(raw, config, steps.device()).eval()
        if model.device.type != "cpu":
            attention.install(model, "auto")  # as `compare.clean_base` does
        multi_lora = MultiLora(model, [_adapter(model, config.rank, seed) for seed in (1, 2)])
        read = _read_for_a_token(model)
        ids = torch.randint(10, raw["vocab_size"], (1, prompt), device=model.device)
        for repeat in range(1 if dry else 4):
            for columns, rows in list(COLUMNS.items())[:: 1 if repeat % 2 == 0 else -1]:
                with multi_lora.activate(rows):
                    seconds = _answer(model, ids.expand(len(rows), -1), new)
                yield {"base": name, "columns": columns, "rows": len(rows), "repeat": repeat} | {
                    "tokens_per_second": new / seconds,
                    "tokens": new,
                    "prompt": prompt,
                    "bandwidth": bandwidth,
                    "bytes_a_token": read,
                    "of_limit": new / seconds / (bandwidth / read),
                }


def _adapter(model: Any, rank: int, seed: int) -> Adapter:
    """Random LoRA on every 4-bit linear."""
    torch.manual_seed(seed)
    loras = {
        name: Lora(torch.randn(rank, part.in_features) * 0.01, torch.randn(part.out_features, rank) * 0.01, 2.0)
        for name, part in model.named_modules()
        if isinstance(part, bnb.nn.Linear4bit)
    }
    return Adapter(Path(f"random-{seed}"), {}, "", loras, {}, None, {})


@torch.no_grad()
def _answer(model: Any, ids: torch.Tensor, new: int) -> float:
    """Seconds for exactly `new` greedy tokens a row, the prompt's pass included."""
    config = GenerationConfig(do_sample=False, max_new_tokens=new, min_new_tokens=new, use_cache=True, pad_token_id=0)
    _wait()
    began = time.perf_counter()
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    _wait()
    return time.perf_counter() - began


def _read_for_a_token(model: Any) -> int:
    """Bytes: packed weights with their statistics, and the head in 16 bits; the embedding gives a row only."""
    head = model.get_output_embeddings().weight
    size = head.nbytes
    for part in model.modules():
        if isinstance(part, bnb.nn.Linear4bit):
            state = part.weight.quant_state
            size += part.weight.nbytes + state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
    return int(size)


def _bandwidth(size: int) -> float:
    """Bytes a second that a copy of `size` bytes reads and writes, the best of 5."""
    source = torch.zeros(size, dtype=torch.uint8, device=steps.device())
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(6):  # the first one warms up
        _wait()
        began = time.perf_counter()
        target.copy_(source)
        _wait()
        best = min(best, time.perf_counter() - began)
    return 2 * size / best


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
