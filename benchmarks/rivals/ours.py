"""A run of this program, trained by its real child process, and measured from outside."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from qlora_gui.config import make
from qlora_gui.runs import launch
from qlora_gui.runs.store import Run, RunStore

_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def train(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train `job` in a fresh store in `folder`. Gives seconds, cores, peak_bytes, steps, dtype, and the adapter's folder.

    Seconds run from the stage "Training" to the last step's event. Raises SystemExit when the run fails or computes
    in another dtype than the one that was asked for.
    """
    run = RunStore(folder).create(make(knobs(job)))
    environment = launch.child_environment() | {"CUDA_VISIBLE_DEVICES": ""}
    if job["dtype"] in _DTYPES:
        environment["QLORA_GUI_COMPUTE_DTYPE"] = _DTYPES[job["dtype"]]
    with run.log_file.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", launch.MODULE, str(run.path)], stdout=log, stderr=log, env=environment
        )
    try:
        peak, cores = _watch(run, child)
    finally:
        child.kill()
        child.wait()
    events = {event["kind"]: event for event in run.events()[0]}
    if "finished" not in events:
        raise SystemExit(f"our own run did not finish:\n{run.log_tail()}")
    dtype = events["base"]["dtype"]
    if job["dtype"] in _DTYPES and dtype != _DTYPES[job["dtype"]]:
        raise SystemExit(f"our own run computed in {dtype}, not in the {_DTYPES[job['dtype']]} that was asked for")
    began = next(event["t"] for event in run.events()[0] if event.get("text") == "Training")
    last = events["step"]
    return {
        "seconds": last["t"] - began,
        "cores": cores,
        "peak_bytes": peak,
        "steps": last["step"],
        "dtype": dtype,
        "adapter": str(run.path),
    }


def knobs(job: dict[str, Any]) -> dict[str, Any]:
    """The settings of the run that trains a job."""
    return {
        "base_model": job["base"],
        "dataset": job["file"],
        "max_length": job["max_length"],
        "eval_fraction": 0,
        "rank": job["rank"],
        "alpha": job["alpha"],
        "dropout": 0,
        "epochs": 1,
        "learning_rate": job["learning_rate"],
        "lr_scheduler": "constant",
        "warmup_ratio": 0,
        "max_grad_norm": job["max_grad_norm"],
        "seed": job["seed"],
        "batch_size": job["batch"],
        "gradient_accumulation": 1,
        "gradient_checkpointing": "none",
        "packing": job["packed"],
        "logging_steps": 1,
    }


def _watch(run: Run, child: "subprocess.Popen[bytes]") -> tuple[int, float]:
    """Between the stage "Training" and the last step: the most bytes the child held resident, and the cores it kept busy."""
    process, peak, offset = psutil.Process(child.pid), 0, 0
    began = worked = 0.0
    while child.poll() is None:
        fresh, offset = run.events(offset)
        for event in fresh:
            if event["kind"] == "stage" and began:
                cores = (_processor_time(process) - worked) / (time.monotonic() - began)
                child.wait()  # what comes after the last step is no training
                return peak, cores
            if event.get("text") == "Training":
                Path(f"/proc/{child.pid}/clear_refs").write_text("5")  # the high-water mark starts again
                began, worked = time.monotonic(), _processor_time(process)
        if began:
            peak = max(peak, _high_water(child.pid))
        time.sleep(0.05)
    return peak, 0.0


def _processor_time(process: psutil.Process) -> float:
    used = process.cpu_times()
    return used.user + used.system


def _high_water(pid: int) -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
