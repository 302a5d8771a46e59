"""What an evaluation of several adapters costs beside that of the base alone: `python benchmarks/evaluate_speed.py [DATA]`.

Two real adapters of the demo base are trained first (one epoch over 128 rows, ranks 16 and 8). Then the whole
evaluation as the page asks for it, in one process and in alternating order: losses, drift and greedy answers on the next
rows of the data, answers after foreign prompts, and the general text, for the base alone and for base and both adapters.
Prints medians and the ratio; writes benchmarks/results/evaluate_speed.json.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

from machine import hardware, versions  # noqa: E402
from transformers.utils import logging as chatter  # noqa: E402

from qlora_gui.config import make  # noqa: E402
from qlora_gui.data import load  # noqa: E402
from qlora_gui.evaluation import job  # noqa: E402
from qlora_gui.evaluation import run as evaluate  # noqa: E402
from qlora_gui.inference import evidence, protocol  # noqa: E402
from qlora_gui.inference.columns import Columns  # noqa: E402
from qlora_gui.runs import launch  # noqa: E402
from qlora_gui.runs.store import RunStore  # noqa: E402

TARGET = 2.0
TRAINED_ROWS = 128
RANKS = (16, 8)


def train(examples: list[Any], folder: Path) -> list[Path]:
    """Two adapters of the demo base, in the real child process."""
    file, store = folder / "rows.jsonl", RunStore(folder / "adapters")
    file.write_text("".join(json.dumps({"messages": one["messages"]}) + "\n" for one in examples), encoding="utf-8")
    made = []
    for rank in RANKS:
        knobs = {"dataset": str(file), "rank": rank, "alpha": 2 * rank, "epochs": 1, "batch_size": 8}
        knobs |= {"gradient_accumulation": 1, "eval_fraction": 0, "dropout": 0, "name": f"rank-{rank}"}
        run = store.create(make(knobs))
        launch.start(run, store)
        while run.is_live():
            time.sleep(0.5)
        if run.state() != "finished":
            raise SystemExit(f"training rank {rank} failed:\n{run.log_tail()}")
        made.append(run.path)
    return made


def measure(columns: Columns, request: protocol.Evaluate) -> tuple[float, dict[str, Any]]:
    """Seconds of one evaluation, and how long its answers were, in tokens by column."""
    lengths: list[list[int]] = []

    def emit(event: protocol.Event) -> None:
        if isinstance(event, protocol.Measured) and event.tokens is not None:
            lengths.append(event.tokens)

    began = time.perf_counter()
    evidence.evaluate(columns, request, emit, lambda: False)
    seconds = time.perf_counter() - began
    return seconds, {"tokens": [statistics.fmean(column) for column in zip(*lengths, strict=True)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=ROOT.parent / "shared" / "data" / "instructions.json")
    parser.add_argument("--rows", type=int, default=100, help="rows measured on (default: 100)")
    parser.add_argument("--repeats", type=int, default=3, help="evaluations of each (default: 3)")
    given = parser.parse_args()
    chatter.set_verbosity_error()
    chatter.disable_progress_bar()
    rows = load.load(str(given.data)).train
    settings = job.Settings(rows=given.rows)
    examples = rows[TRAINED_ROWS : TRAINED_ROWS + given.rows]
    general = evaluate._GENERAL.read_text(encoding="utf-8")
    request = protocol.Evaluate(examples, evaluate.foreign(examples), general, 512, settings.max_new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        adapters = train(rows[:TRAINED_ROWS], Path(folder))
        contestants: dict[str, Columns] = {"base": Columns(), "base + 2 adapters": Columns()}
        for name, columns in contestants.items():
            columns.load(("demo", "", "nf4", True), adapters if "+" in name else [], lambda text: None)
        times: dict[str, list[float]] = {name: [] for name in contestants}
        lengths: dict[str, Any] = {}
        for repeat in range(given.repeats):
            for name in sorted(contestants, reverse=repeat % 2 == 1):
                seconds, lengths[name] = measure(contestants[name], request)
                times[name].append(seconds)
                print(f"{name:20} {seconds:7.1f} s   mean answer {lengths[name]['tokens']}", flush=True)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["base + 2 adapters"] / medians["base"]
    print(f"\nbase + 2 adapters / base: {ratio:.2f}   to reach: <= {TARGET}")
    result = {
        "benchmark": "evaluate_speed",
        "rows": given.rows,
        "max_new_tokens": settings.max_new_tokens,
        "target": TARGET,
        "ratio": ratio,
        "median_seconds": medians,
        "seconds": times,
        "answers": lengths,
        "machine": hardware(),
        "versions": versions(),
    }
    out = ROOT / "benchmarks" / "results" / "evaluate_speed.json"
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
