"""Will it fit: the closed form against the simulated step, over bases, sizes and knobs: `python benchmarks/fit_accuracy.py`.

Both say what torch's allocator is expected to report on a CUDA GPU, so no GPU is needed. Prints how far the closed form
is off, the worst cells first; also whether the simulation of tiny models equals their really allocated storages to the
byte. Writes benchmarks/results/fit_accuracy.json. Some minutes: a simulation takes a second or two on one core.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from machine import hardware, versions  # noqa: E402
from transformers.utils import logging as chatter  # noqa: E402

from qlora_gui.config import make  # noqa: E402
from qlora_gui.memory import budget, known_models  # noqa: E402
from qlora_gui.memory import estimate as plans  # noqa: E402
from qlora_gui.memory import model_shape as shapes  # noqa: E402
from qlora_gui.models import base as bases  # noqa: E402
from qlora_gui.simulation import __main__, fake_model  # noqa: E402
from qlora_gui.simulation.cuda_emulation import cuda_rules  # noqa: E402
from qlora_gui.simulation.step import peak_of_step  # noqa: E402
from tests import models  # noqa: E402

TARGET = 0.08
BASES = ("bigscience/bloom-560m", "bigscience/bloom-7b1", "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B")
GRID: dict[str, tuple[Any, ...]] = {
    "base": BASES,
    "length": (256, 1024, 2048),
    "rows": (1, 4),
    "checkpointing": ("none", "all", "every-2"),
    "rank": (8, 64),
    "bias": ("none", "all"),
    "way": ("ours", "stock"),
}


def cells() -> list[dict[str, Any]]:
    """The grid; of the usual way, which is there to compare with, rank 8 without biases, and no every-2: it has none."""
    found = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    usual = {"rank": 8, "bias": "none"}
    return [
        cell for cell in found if cell["way"] == "ours" or (cell | usual == cell and cell["checkpointing"] != "every-2")
    ]


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """One cell: both peaks in bytes, how far the closed form is off, and where each says the peak comes."""
    values = dict(known_models._entry(cell["base"]))
    run = make({"rank": cell["rank"], "bias": cell["bias"], "gradient_checkpointing": cell["checkpointing"]})
    size = {"rows": cell["rows"], "length": cell["length"], "way": cell["way"]}
    began = time.perf_counter()
    planned = plans.plan(run, shapes.read(values), budget.card(80), **size)
    half = time.perf_counter()
    simulated = __main__.simulate(values, run, checkpointing=cell["checkpointing"], **size)
    return cell | {
        "planned": planned.uncorrected,
        "simulated": simulated["peak"],
        "off": planned.uncorrected / simulated["peak"] - 1,
        "planned_peak": planned.moment,
        "simulated_peak": simulated["peak_in"],
        "seconds": {"planned": round(half - began, 4), "simulated": round(time.perf_counter() - half, 2)},
    }


def tiny() -> list[dict[str, Any]]:
    """Peaks of tiny real models, everything really allocated on the CPU, against their simulation, in bytes."""
    found = []
    for make_base, checkpointing in itertools.product((models.make_bloom, models.make_llama), GRID["checkpointing"]):
        run = make({"rank": 4, "bias": "all", "gradient_checkpointing": checkpointing})
        with tempfile.TemporaryDirectory() as folder:
            config = fake_model.read_config(json.loads((make_base(Path(folder)) / "config.json").read_text()))
            simulated = __main__.peaks(config, config.num_hidden_layers, run, 2, 96, "ours")
            base = bases.load_model(
                folder, run.quant_type, run.double_quant, torch.device("cpu"), torch.bfloat16, lambda text: None
            )
        ids = torch.arange(2 * 96).view(2, 96)
        with cuda_rules():
            real = peak_of_step(__main__.prepared(base, run), {"input_ids": ids, "labels": ids.clone()}, run)
        peaks = {"simulated": max(simulated.places.values()), "allocated": max(real.places.values())}
        found.append({"base": make_base.__name__, "checkpointing": checkpointing, "equal": simulated == real} | peaks)
    return found


def quiet() -> None:
    warnings.simplefilter("ignore")
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()


def show(lines: list[dict[str, Any]]) -> None:
    print(f"{'base':26} {'way':5} {'rows':>4} {'length':>6} {'checkp.':8} {'rank':>4} {'bias':4} "
          f"{'planned':>9} {'simulated':>9} {'off':>7}  peak")  # fmt: skip
    for line in sorted(lines, key=lambda line: -abs(line["off"]))[:20]:
        print(f"{line['base']:26} {line['way']:5} {line['rows']:4} {line['length']:6} {line['checkpointing']:8} "
              f"{line['rank']:4} {line['bias']:4} {line['planned'] / 2**20:9,.0f} {line['simulated'] / 2**20:9,.0f} "
              f"{line['off']:+7.2%}  {line['planned_peak']} / {line['simulated_peak']}")  # fmt: skip


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each way: cells, median and worst error, and cells beyond the target."""
    found = {}
    for way in GRID["way"]:
        errors = [abs(line["off"]) for line in lines if line["way"] == way]
        if errors:
            beyond = sum(error > TARGET for error in errors)
            found[way] = {
                "cells": len(errors),
                "median": statistics.median(errors),
                "worst": max(errors),
                "beyond": beyond,
            }
    return found


def written(result: dict[str, Any], lines: list[dict[str, Any]]) -> str:
    """JSON with one cell a line."""
    head = json.dumps(result, indent=2).removesuffix("\n}")
    return head + ',\n  "lines": [\n    ' + ",\n    ".join(map(json.dumps, lines)) + "\n  ]\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every n-th cell of the grid (default: 1)")
    given = parser.parse_args()
    quiet()
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn"), quiet) as pool:
        lines = list(pool.map(measure, cells()[:: given.every]))
    small = tiny()
    show(lines)
    found = summary(lines)
    for way, told in found.items():
        print(f"{way}: {told['cells']} cells, off by {told['median']:.2%} (median), {told['worst']:.2%} (worst); "
              f"{told['beyond']} beyond {TARGET:.0%}")  # fmt: skip
    equal = sum(line["equal"] for line in small)
    print(f"tiny models: simulated equals allocated to the byte in {equal} of {len(small)}")
    result = {"benchmark": "fit_accuracy", "target": TARGET, "summary": found, "tiny": small}
    result |= {"machine": hardware(), "versions": versions()}
    out = ROOT / "benchmarks" / "results" / "fit_accuracy.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(written(result, lines))


if __name__ == "__main__":
    main()
