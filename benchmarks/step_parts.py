"""What a training step is made of: `python benchmarks/step_parts.py [DATA]`.

Trains the rows of train_speed.py as it does, in this process, and looks at some of its steps with torch's profiler: each
operation's own time goes to the part of the step that it belongs to, by the autograd function or module around it; what no
operation accounts for is Python's. Looking takes time itself, the more the smaller an operation is: `slower` says how much.

Prints a table; writes benchmarks/results/step_parts.json.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from machine import hardware, versions  # noqa: E402
from rivals import ours  # noqa: E402
from train_speed import EXAMPLES_A_STEP, MEASURED_ROWS, SETTINGS, TRAINED_ROWS, prepare  # noqa: E402
from transformers import TrainerCallback  # noqa: E402

from qlora_gui.config import make  # noqa: E402
from qlora_gui.runs.events import EventLog  # noqa: E402
from qlora_gui.runs.store import RunStore  # noqa: E402
from qlora_gui.training import run as runs  # noqa: E402

FIRST, STEPS = 4, 8  # the steps that are looked at, after as many as warm everything up
# The nearest of these around an operation says where it belongs.
AROUND = [
    ("LoRA", re.compile(r"_LoraProduct")),
    ("attention", re.compile(r"_Attention|scaled_dot_product|ScaledDotProduct")),
    ("norms", re.compile(r"_RMSNorm|_LayerNorm")),
    ("loss over the vocabulary", re.compile(r"_SummedLoss")),
    ("optimizer and clipping", re.compile(r"Optimizer\.|_fused_adamw|_foreach_|vector_norm|clip")),
    ("reading rows", re.compile(r"DataLoader")),
]
PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::linear", "mkldnn::_linear_pointwise"}
CASTS = {"aten::copy_", "aten::_to_copy", "aten::to", "aten::clone", "aten::contiguous", "aten::fill_", "aten::zero_"}


def part_of(event: Any) -> str:
    """The part of the step that an operation's own time belongs to."""
    around = event
    while around is not None:
        for part, pattern in AROUND:
            if pattern.search(around.name):
                return _of_a_linear(event) if part == "LoRA" else part
        around = around.cpu_parent
    if not event.name.startswith("aten::"):
        return "Python between"
    return "casts and copies" if event.name in CASTS else "activations, positions, residuals"


def _of_a_linear(event: Any) -> str:
    """A product with a side as short as the rank is LoRA's; the cast to another dtype before it, too."""
    if event.name not in PRODUCTS:
        return "LoRA's casts, sums and Python"
    sides = [side for shape in event.input_shapes if len(shape) == 2 for side in shape]
    return "LoRA's products" if int(SETTINGS["rank"]) in sides else "the base's products"


class _Looked(TrainerCallback):
    """STEPS steps from FIRST on: the `seconds` they took, and what the profiler saw of them, if there is one."""

    def __init__(self, profiler: Any = None):
        self.profiler, self.seconds = profiler, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == FIRST:
            if self.profiler:
                self.profiler.start()
            self.seconds = -time.perf_counter()
        elif state.global_step == FIRST + STEPS:
            self.seconds += time.perf_counter()
            if self.profiler:
                self.profiler.stop()
            control.should_training_stop = True


def look(job: dict[str, Any], folder: Path, profiler: Any = None) -> _Looked:
    """Train `job` in this process."""
    run, looked, steps = RunStore(folder).create(make(ours.knobs(job))), _Looked(profiler), runs._steps

    def profiled(trainer: Any, *rest: Any) -> bool:
        trainer.add_callback(looked)
        return steps(trainer, *rest)

    runs._steps = profiled
    try:
        runs.train(run, EventLog(run.events_file), resume=False)
    finally:
        runs._steps = steps
    return looked


def shares(looked: _Looked) -> tuple[dict[str, float], float]:
    """Seconds a step of each part, largest first, and those of a whole step."""
    found: Counter[str] = Counter()
    for event in looked.profiler.events():
        found[part_of(event)] += event.self_cpu_time_total / 1e6 / STEPS
    whole = looked.seconds / STEPS
    found["Python between"] = whole - sum(seconds for part, seconds in found.items() if part != "Python between")
    return dict(found.most_common()), whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=ROOT.parent / "shared" / "data" / "instructions.json")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "step_parts.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        job, _ = prepare(given.data, TRAINED_ROWS, MEASURED_ROWS, Path(temporary))
        job |= {"batch": EXAMPLES_A_STEP, "packed": False}
        plain = look(job, Path(temporary)).seconds / STEPS
        activities = [torch.profiler.ProfilerActivity.CPU]
        looked = look(job, Path(temporary), torch.profiler.profile(activities=activities, record_shapes=True))
    parts, whole = shares(looked)
    print(f"\n{'part of a step':36} {'ms':>7} {'share':>6}")
    for part, seconds in parts.items():
        print(f"{part:36} {1000 * seconds:7.1f} {seconds / whole:6.1%}")
    print(f"{'a step':36} {1000 * whole:7.1f}; {whole / plain:.2f} times as long as without the profiler")
    result = {
        "benchmark": "step_parts",
        "seconds_a_step": whole,
        "slower": whole / plain,
        "parts": parts,
        "settings": SETTINGS | {"examples_a_step": EXAMPLES_A_STEP, "steps": [FIRST, FIRST + STEPS]},
        "machine": hardware(),
        "versions": versions(),
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
