"""BLOOM's attention, forward and backward, transformers' eager against ours: `python benchmarks/bloom_attention.py`.

The same number of tokens a step at every length, as 16 rows of 128 down to one of 2048, in the shapes of BLOOM-560M and
7B1. `attention` is the attention alone, from query, key and value to the context and back: the layer with both of its
linears replaced by the identity. `block` is the whole layer with its linears and MLP, frozen. ALiBi and mask are there
before, as in a model, where they are made once a pass; so is our bias, and its making is added to ours divided by the
model's layers. `off` is the largest error of context and gradient, relative to the largest value, against the same
formula in fp64.

Prints medians and ratios; writes benchmarks/results/bloom_attention.json.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from machine import hardware, versions  # noqa: E402
from torch import nn  # noqa: E402
from transformers import BloomConfig, BloomForCausalLM  # noqa: E402
from transformers.models.bloom import modeling_bloom  # noqa: E402

from qlora_gui.models import attention  # noqa: E402
from qlora_gui.models import device as devices  # noqa: E402
from qlora_gui.models.families import bloom  # noqa: E402

SHAPES = {"560m": (1024, 16, 24), "7b1": (4096, 32, 30)}  # width, heads, layers of the whole model
WHOLE = ("560m",)  # a whole layer of 7B1 is all linears, and takes minutes on a CPU
WAYS = ("eager", "ours")
TARGET, TARGET_LENGTH = 0.6, 1024


class Layer:
    """One frozen layer of BLOOM with eager attention or ours, and what the decoder gives its layers in one pass."""

    def __init__(self, shape: str, dtype: torch.dtype, way: str) -> None:
        width, heads, _ = SHAPES[shape]
        config = BloomConfig(vocab_size=8, hidden_size=width, n_head=heads, n_layer=1, use_cache=False)
        with torch.device(devices.pick()):
            self.model = BloomForCausalLM(config).to(dtype).train().requires_grad_(False)
        attention.install(self.model, "sdpa" if way == "ours" else "eager")
        self.block: Any = self.model.transformer.h[0]
        self.linears = self.block.self_attention.query_key_value, self.block.self_attention.dense
        self.given: dict[str, torch.Tensor] = {}

    def prepare(self, rows: int, length: int) -> None:
        """Get ALiBi and mask for a batch without padding from the decoder."""
        self._use(*self.linears)
        hook = self.block.register_forward_pre_hook(self._keep, with_kwargs=True)
        with torch.no_grad():
            self.model.transformer(torch.zeros(rows, length, dtype=torch.long, device=self.model.device))
        hook.remove()

    def _keep(self, block: Any, args: Any, given: dict[str, Any]) -> None:
        self.given = {key: given[key] for key in ("alibi", "attention_mask")}

    def _use(self, query_key_value: nn.Module, dense: nn.Module) -> None:
        self.block.self_attention.query_key_value, self.block.self_attention.dense = query_key_value, dense

    def alone(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """query, key and value [rows, length, 3 * width] -> context [rows, length, width]."""
        self._use(nn.Identity(), nn.Identity())
        nothing = self.linears[1].weight.new_zeros(())
        return lambda fused: self.block.self_attention(fused, nothing, **self.given)[0]

    def whole(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """hidden states [rows, length, width] -> the same after the layer."""
        self._use(*self.linears)
        return lambda hidden: self.block(hidden, **self.given)[0]


def once(forward: Callable[[torch.Tensor], torch.Tensor], given: torch.Tensor) -> tuple[float, Any, Any]:
    """Seconds of forward and backward, what came out, and the gradient of what went in, for a loss that sums it up."""
    given = given.detach().requires_grad_()
    _wait(given)
    began = time.perf_counter()
    out = forward(given)
    out.sum().backward()
    _wait(given)
    return time.perf_counter() - began, out.detach(), given.grad


def _wait(tensor: torch.Tensor) -> None:
    if tensor.device.type != "cpu":
        torch.accelerator.synchronize()


def bias_seconds(shape: str, rows: int, length: int, dtype: torch.dtype, mask: torch.Tensor, repeats: int) -> float:
    """What our bias takes to make, once a pass."""
    width, heads, _ = SHAPES[shape]
    query = mask.new_empty(rows, heads, length, width // heads)
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        bloom.Bias(heads, "sdpa").for_query(query, length, mask)
        _wait(mask)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def exact(fused: torch.Tensor, heads: int) -> torch.Tensor:
    """Causal attention with ALiBi in fp64: eager makes its softmax in fp32 whatever it is given."""
    rows, length, width = fused.shape
    parts = fused.view(rows, length, heads, 3, width // 3 // heads)
    query, key, value = (parts[..., index, :].transpose(1, 2) for index in range(3))
    places = torch.arange(length, device=fused.device)
    distance = places[None, :] - places[:, None]
    slopes = modeling_bloom._get_alibi_slopes(heads, fused.device).double()
    bias = (slopes[:, None, None] * distance).masked_fill(distance > 0, -math.inf)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias
    return (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)


def errors(shape: str, length: int, layer: dict[str, Layer], dtype: torch.dtype) -> dict[str, list[float]]:
    """By way: the largest error of the context and of the gradient of query, key and value, in one row."""
    width, heads, _ = SHAPES[shape]
    torch.manual_seed(1)
    fused = torch.randn(1, length, 3 * width, dtype=dtype, device=devices.pick())
    _, *right = once(lambda given: exact(given, heads), fused.double())
    found = {}
    for way, one in layer.items():
        one.prepare(1, length)
        _, *mine = once(one.alone(), fused)
        pairs = zip(mine, right, strict=True)
        found[way] = [float((got.double() - true).abs().max() / true.abs().max()) for got, true in pairs]
    return found


def compare(
    shape: str, length: int, tokens: int, layer: dict[str, Layer], dtype: torch.dtype, repeats: int
) -> dict[str, Any]:
    """Median seconds by what and way, and their ratios."""
    rows, (width, _, layers) = max(1, tokens // length), SHAPES[shape]
    for one in layer.values():
        one.prepare(rows, length)
    mask = layer["ours"].given["attention_mask"]
    bias = bias_seconds(shape, rows, length, dtype, mask, repeats)
    found: dict[str, Any] = {"shape": shape, "length": length, "rows": rows, "bias_seconds": bias}
    for what in ("attention", "block") if shape in WHOLE else ("attention",):
        forward = {way: one.alone() if what == "attention" else one.whole() for way, one in layer.items()}
        wide = width if what == "block" else 3 * width
        given = torch.randn(rows, length, wide, dtype=dtype, device=mask.device)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for number in range(repeats + 1):
            for way in WAYS if number % 2 == 0 else WAYS[::-1]:
                took, _, _ = once(forward[way], given)
                if number:  # the first round warms up
                    seconds[way].append(took)
        median = {way: statistics.median(each) for way, each in seconds.items()}
        ratio = (median["ours"] + bias / layers) / median["eager"]
        found[what] = {"seconds": seconds, "median_seconds": median, "ratio": ratio}
    return found


def show(line: dict[str, Any]) -> None:
    told = f"{line['shape']:5} {line['rows']:2} x {line['length']:4}"
    for what in ("attention", "block"):
        if what in line:
            median = line[what]["median_seconds"]
            told += f" {1000 * median['eager']:9.0f} {1000 * median['ours']:6.0f} {line[what]['ratio']:6.2f}"
        else:
            told += f" {'':23}"
    off = " ".join(f"{max(line['off'][way]):8.1e}" for way in WAYS)
    print(f"{told} {1000 * line['bias_seconds']:8.1f} {off}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 256, 512, 1024, 2048], help="of a row")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens a step, as rows of each length")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: what the device computes")
    parser.add_argument("--repeats", type=int, default=5, help="measured passes of each (default: 5)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "bloom_attention.json")
    given = parser.parse_args()
    name = given.dtype or str(devices.compute_dtype(devices.pick())).removeprefix("torch.")
    dtype = getattr(torch, name)
    print(f"{name}, ms; {'attention: eager':>19} {'ours':>6} {'ratio':>6} {'block: eager':>9}", end=" ")
    print(f"{'ours':>3} {'ratio':>6} {'bias':>8} {'off: eager':>8} {'ours':>6}")
    lines = []
    for shape in given.shapes:
        layer = {way: Layer(shape, dtype, way) for way in WAYS}
        for length in given.lengths:
            line = compare(shape, length, given.tokens, layer, dtype, given.repeats)
            lines.append(line | {"off": errors(shape, length, layer, dtype)})
            show(lines[-1])
    print(f"to reach: {TARGET} at {TARGET_LENGTH} tokens, attention alone")
    told = {"benchmark": "bloom_attention", "target": {"length": TARGET_LENGTH, "ratio": TARGET}, "dtype": name}
    told |= {"tokens": given.tokens, "lines": lines, "machine": hardware(), "versions": versions()}
    given.out.parent.mkdir(exist_ok=True)
    given.out.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
