"""How long a base takes to load once it is kept in 4 bits: `python benchmarks/load.py [--billion]`.

Three ways, each in a process of its own, in alternating order, with the files in the disk's cache: transformers
quantizing on load; our first load, which also keeps what it quantized; our second. Timed is the load itself, after all
imports, and the whole process. On the 135M demo base, with `--billion` also on a Llama-3.2-1B with random weights.
Prints medians and ratios; writes benchmarks/results/load.json.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from machine import hardware, versions  # noqa: E402

WAYS = ("quantize on load", "first", "second")
TARGET = 0.15


def child(way: str, path: str) -> float:
    """Seconds of one load in this process, in fp32 on the CPU, where comparing computes."""
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    from qlora_gui.models import base as bases
    from qlora_gui.models import quantized_cache  # noqa: F401  # an import, and not part of the load

    _ = MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.from_pretrained(path))]  # the architecture's module
    device, dtype = torch.device("cpu"), torch.float32
    began = time.perf_counter()
    if way == "quantize on load":
        settings = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        AutoModelForCausalLM.from_pretrained(
            path, quantization_config=settings, dtype=dtype, device_map={"": device}
        ).eval()
    else:
        bases.load_model(path, "nf4", True, device, dtype)
    return time.perf_counter() - began


def measure(way: str, path: str, cache: Path) -> tuple[float, float]:
    """Seconds of the load and of its whole process."""
    if way == "first":
        shutil.rmtree(cache / "quantized", ignore_errors=True)
    command = [sys.executable, __file__, "--child", way, path]
    env = os.environ | {"QLORA_GUI_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    told = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    return float(told.splitlines()[-1]), time.perf_counter() - began


def billion(folder: Path) -> str:
    """A model in the shape of Llama-3.2-1B with random weights in bf16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def compare(path: str, runs: int) -> dict[str, Any]:
    """Loads and processes in seconds, by way; their medians; ratios to quantizing on load."""
    loads: dict[str, list[float]] = {way: [] for way in WAYS}
    processes: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        # `second` finds what the `first` before it kept, or the one of the round before.
        for number in range(runs + 1):
            for way in WAYS if number % 2 == 0 else (WAYS[2], WAYS[0], WAYS[1]):
                load, process = measure(way, path, Path(folder))
                if number:  # the first round warms the disk's cache
                    loads[way].append(load)
                    processes[way].append(process)
        kept = sum(file.stat().st_size for file in Path(folder, "quantized").rglob("*"))
    medians = {way: statistics.median(loads[way]) for way in WAYS}
    whole = {way: statistics.median(processes[way]) for way in WAYS}
    return {
        "load_seconds": loads,
        "process_seconds": processes,
        "median_load_seconds": medians,
        "median_process_seconds": whole,
        "ratio_load": {way: medians[way] / medians[WAYS[0]] for way in WAYS},
        "ratio_process": {way: whole[way] / whole[WAYS[0]] for way in WAYS},
        "kept_bytes": kept,
    }


def show(name: str, found: dict[str, Any]) -> None:
    print(f"{name}, {found['kept_bytes'] / 1e6:.0f} MB kept")
    print(f"{'way':18} {'load s':>8} {'ratio':>6} {'process s':>10} {'ratio':>6}")
    for way in WAYS:
        print(
            f"{way:18} {found['median_load_seconds'][way]:8.2f} {found['ratio_load'][way]:6.3f} "
            f"{found['median_process_seconds'][way]:10.2f} {found['ratio_process'][way]:6.3f}"
        )
    print(f"to reach: second <= {TARGET} of the load\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="measured loads of each (default: 5)")
    parser.add_argument("--billion", action="store_true", help="also a random model of 1.2 billion parameters, 3 loads")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(child(*arguments.child))
        return
    from qlora_gui.models import demo

    results = {"demo": compare(str(demo.ensure()), arguments.runs)}
    show("demo base, 135M", results["demo"])
    if arguments.billion:
        with tempfile.TemporaryDirectory() as folder:
            results["billion"] = compare(billion(Path(folder)), 3)
        show("random Llama, 1.2B", results["billion"])
    out = ROOT / "benchmarks" / "results" / "load.json"
    out.parent.mkdir(exist_ok=True)
    told = {"benchmark": "load", "target": TARGET, "bases": results, "machine": hardware(), "versions": versions()}
    out.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
