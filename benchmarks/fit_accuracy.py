"""Will it fit: the closed form against the simulated step, over bases, sizes and knobs: `python benchmarks/fit_accuracy.py`.

Both say what torch's allocator is expected to report on a CUDA GPU, so no GPU is needed. Prints how far the closed form
is off, the worst cells first, and writes benchmarks/results/fit_accuracy.json. Few minutes: a simulation takes a second
or two, and one process does them all.
"""

import argparse
import itertools
import json
import logging
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from machine import hardware, versions  # noqa: E402

from qlora_gui.memory import budget, known  # noqa: E402
from qlora_gui.memory import plan as plans  # noqa: E402
from qlora_gui.memory import shape as shapes  # noqa: E402
from qlora_gui.runs.config import make  # noqa: E402
from qlora_gui.training import simulate  # noqa: E402

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
    """The grid; the usual way knows checkpointing none and all only."""
    found = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    return [cell for cell in found if cell["way"] == "ours" or cell["checkpointing"] != "every-2"]


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """One cell: both peaks in bytes, how far the closed form is off, and where each says the peak comes."""
    values = dict(known._entry(cell["base"]))
    run = make({"rank": cell["rank"], "bias": cell["bias"], "gradient_checkpointing": cell["checkpointing"]})
    size = {"rows": cell["rows"], "length": cell["length"], "way": cell["way"]}
    began = time.perf_counter()
    planned = plans.plan(run, shapes.read(values), budget.card(80), **size)
    half = time.perf_counter()
    simulated = simulate.simulate(values, run, checkpointing=cell["checkpointing"], **size)
    return cell | {
        "planned": planned.uncorrected,
        "simulated": simulated["peak"],
        "off": planned.uncorrected / simulated["peak"] - 1,
        "planned_peak": planned.moment,
        "simulated_peak": simulated["peak_in"],
        "seconds": {"planned": half - began, "simulated": time.perf_counter() - half},
    }


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="only every n-th cell of the grid (default: 1)")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    lines = [measure(cell) for cell in cells()[:: given.every]]
    show(lines)
    found = summary(lines)
    for way, told in found.items():
        print(f"{way}: {told['cells']} cells, off by {told['median']:.2%} (median), {told['worst']:.2%} (worst); "
              f"{told['beyond']} beyond {TARGET:.0%}")  # fmt: skip
    result = {"benchmark": "fit_accuracy", "target": TARGET, "summary": found, "lines": lines}
    result |= {"machine": hardware(), "versions": versions()}
    out = ROOT / "benchmarks" / "results" / "fit_accuracy.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
