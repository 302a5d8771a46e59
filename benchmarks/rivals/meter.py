"""What every rival's child shares: its job, its training arguments, and one way to measure time and memory.

Imports only what transformers brings, for it runs in each rival's own environment.
"""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


def read_job() -> dict[str, Any]:
    """The job that `train_speed.py` wrote: base, data, settings and the folder for the adapter."""
    return json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


def training_arguments(job: dict[str, Any]) -> dict[str, Any]:
    """The settings that are the same for all, by their names in transformers' TrainingArguments."""
    return {
        "output_dir": job["out"],
        "num_train_epochs": 1,
        "per_device_train_batch_size": job["batch"],
        "gradient_accumulation_steps": 1,
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": job["max_grad_norm"],
        "optim": "adamw_torch_fused",
        "seed": job["seed"],
        "bf16": job["dtype"] == "bf16",
        "use_cpu": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class Meter(TrainerCallback):
    """Seconds of the training loop alone, and the most memory this process held resident during it.

    `cores` is processor time / seconds: below the machine's cores something else was running, or nothing was to do.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from here
        self.began, self.worked = time.perf_counter(), time.process_time()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        seconds, worked = time.perf_counter() - self.began, time.process_time() - self.worked
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        assert peak
        self.measured = {
            "seconds": seconds,
            "cores": worked / seconds,
            "peak_bytes": int(peak[1]) * 1024,
            "steps": state.global_step,
        }

    def write(self, job: dict[str, Any]) -> None:
        (Path(job["out"]) / "measured.json").write_text(json.dumps(self.measured))
