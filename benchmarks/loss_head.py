"""The loss over BLOOM's vocabulary, from hidden states to their gradient: `python benchmarks/loss_head.py`.

Three ways, all under the same frozen head: transformers' stock loss on all logits, TRL's as its SFTTrainer calls it
(`add_fused_lm_head`, with the metrics it asks for), and ours; with every label, and with half of them masked. They take
turns in one process of an environment that has TRL and otherwise these packages (600 KB, made where it is absent).
Timed are forward and backward. Extra memory is what a fresh process held resident at most during one of them above what
it held before (on a GPU: allocated). `off` is the largest error of the gradient against the stock one, relative to that.

Prints medians and ratios; writes benchmarks/results/loss_head.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from machine import hardware, versions  # noqa: E402
from rivals import venvs  # noqa: E402
from torch import nn  # noqa: E402
from transformers.loss.loss_utils import ForCausalLMLoss  # noqa: E402

from qlora_gui.data.tokenization import IGNORED  # noqa: E402
from qlora_gui.models import chunked_loss  # noqa: E402
from qlora_gui.models import device as devices  # noqa: E402

VOCABULARY = 250_880
WAYS = ("stock", "trl", "ours")
LABELS = ("all", "half")
TARGETS = {"all, of stock": 0.85, "all, of trl": 0.40, "half, of stock": 0.45, "memory, of stock": 0.10}
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # hidden [1, tokens, width], labels [1, tokens] -> mean


class _Head(nn.Module):
    """A causal LM that is nothing but its head: the decoder gives back the embeddings it is given."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head
        self.config = SimpleNamespace(get_text_config=SimpleNamespace)

    def base_model(self, inputs_embeds: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=inputs_embeds)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(inputs_embeds)
        return logits


def way_of(name: str, head: nn.Linear) -> Loss:
    model: Any = _Head(head)
    if name == "stock":
        return lambda hidden, labels: ForCausalLMLoss(model(hidden), labels, VOCABULARY)
    if name == "trl":
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        return lambda hidden, labels: model(inputs_embeds=hidden, labels=labels, fused_lm_head=True).loss
    return lambda hidden, labels: (
        chunked_loss.summed_loss(hidden, head.weight, head.bias, labels) / (labels[:, 1:] != IGNORED).sum()
    )


def made(given: argparse.Namespace) -> tuple[nn.Linear, torch.Tensor, dict[str, torch.Tensor]]:
    """A frozen head, hidden states [1, tokens, width], and the labels: all of them, and with the first half masked."""
    torch.manual_seed(0)
    device, dtype = devices.pick(), getattr(torch, given.dtype)
    with torch.device(device):
        head = nn.Linear(given.hidden, VOCABULARY, bias=False, dtype=dtype).requires_grad_(False)
        hidden = torch.randn(1, given.tokens, given.hidden, dtype=dtype)
        labels = torch.randint(0, VOCABULARY, (1, given.tokens))
    half = labels.clone()
    half[:, : given.tokens // 2] = IGNORED
    return head, hidden, {"all": labels, "half": half}


def once(way: Loss, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[float, torch.Tensor]:
    """Seconds of forward and backward, and the gradient of the hidden states."""
    hidden = hidden.detach().requires_grad_()
    _wait(hidden)
    began = time.perf_counter()
    way(hidden, labels).backward()
    _wait(hidden)
    assert hidden.grad is not None
    return time.perf_counter() - began, hidden.grad


def _wait(tensor: torch.Tensor) -> None:
    if tensor.device.type != "cpu":
        torch.accelerator.synchronize()


def timed(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds by labels and way, and how far the gradients are off the stock ones."""
    head, hidden, labels = made(given)
    ways = {name: way_of(name, head) for name in WAYS}
    for way in ways.values():
        once(way, hidden[:, :64], labels["all"][:, :64])
    seconds: dict[str, dict[str, list[float]]] = {which: {name: [] for name in WAYS} for which in LABELS}
    off: dict[str, dict[str, float]] = {which: {} for which in LABELS}
    for number in range(given.repeats):
        for which in LABELS:
            gradients = {}
            for name in WAYS if number % 2 == 0 else WAYS[::-1]:
                took, gradients[name] = once(ways[name], hidden, labels[which])
                seconds[which][name].append(took)
            stock = gradients["stock"].float()
            for name in WAYS[1:]:
                off[which][name] = float((gradients[name].float() - stock).abs().max() / stock.abs().max())
    return {"seconds": seconds, "off": off}


def extra_memory(given: argparse.Namespace, name: str) -> int:
    """Bytes at the peak of one forward and backward with every label, above those before it."""
    head, hidden, labels = made(given)
    way = way_of(name, head)
    once(way, hidden[:, :64], labels["all"][:, :64])
    if hidden.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        once(way, hidden, labels["all"])
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew at what is held now
    before = _status("VmRSS")
    once(way, hidden, labels["all"])
    return _status("VmHWM") - before


def _status(key: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) * 1024


def child(given: argparse.Namespace, *words: str) -> Any:
    """Measure in a process of its own, in the environment that has TRL."""
    command = [str(venvs.trl()), __file__, "--tokens", str(given.tokens), "--hidden", str(given.hidden)]
    command += ["--dtype", given.dtype, "--repeats", str(given.repeats), "--child", *words]
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    told = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(told.splitlines()[-1])


def compare(given: argparse.Namespace) -> dict[str, Any]:
    found = child(given, "time")
    median = {
        which: {name: statistics.median(each) for name, each in by_way.items()}
        for which, by_way in found["seconds"].items()
    }
    memory = {name: child(given, name) for name in WAYS}
    reached = {
        "all, of stock": median["all"]["ours"] / median["all"]["stock"],
        "all, of trl": median["all"]["ours"] / median["all"]["trl"],
        "half, of stock": median["half"]["ours"] / median["half"]["stock"],
        "memory, of stock": memory["ours"] / memory["stock"],
    }
    return {"median_seconds": median, "extra_bytes": memory, "reached": reached} | found


def show(found: dict[str, Any]) -> None:
    print(f"{'labels':6} {'way':6} {'s':>7} {'ratio':>6} {'off':>8} {'extra MiB':>10} {'ratio':>6}")
    for which in LABELS:
        median, memory = found["median_seconds"][which], found["extra_bytes"]
        for name in WAYS:
            off = found["off"][which].get(name, 0)
            line = f"{which:6} {name:6} {median[name]:7.2f} {median[name] / median['stock']:6.3f} {off:8.1e}"
            extra = f" {memory[name] / 2**20:10.0f} {memory[name] / memory['stock']:6.3f}" if which == "all" else ""
            print(line + extra)
    for name, most in TARGETS.items():
        print(f"{name}: {found['reached'][name]:.3f} (to reach: {most})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048, help="hidden states in the batch (default: 2048)")
    parser.add_argument("--hidden", type=int, default=1024, help="their width (default: 1024, BLOOM-560M's)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="default: what the device computes")
    parser.add_argument("--repeats", type=int, default=3, help="measured passes of each (default: 3)")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.dtype = given.dtype or str(devices.compute_dtype(devices.pick())).removeprefix("torch.")
    if given.child:
        print(json.dumps(timed(given) if given.child == ["time"] else extra_memory(given, *given.child)))
        return
    found = compare(given)
    show(found)
    settings = {"vocabulary": VOCABULARY, "tokens": given.tokens, "hidden": given.hidden, "dtype": given.dtype}
    told = {"benchmark": "loss_head", "settings": settings, "targets": TARGETS} | found
    told |= {"machine": hardware(), "versions": versions() | {"rivals": [venvs.TRL]}}
    out = ROOT / "benchmarks" / "results" / "loss_head.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
