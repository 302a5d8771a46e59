"""Folders of many finished runs, for tests and benchmarks: everything that a run leaves, but for the size of its adapter."""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

from qlora_gui.config import make

LONG = "long-run"
_BASES = ("Qwen/Qwen3-8B", "google/gemma-3-4b-it", "bigscience/bloom-560m", "meta-llama/Llama-3.2-1B")


def step(number: int, of: int, dice: random.Random) -> dict[str, Any]:
    """A `step` event as the trainer writes it."""
    return {
        "t": round(1.79e9 + number, 3),
        "kind": "step",
        "step": number,
        "max_steps": of,
        "epoch": round(3 * number / of, 4),
        "loss": round(1.2 + 2 / (1 + number / of * 9) + dice.uniform(-0.1, 0.1), 4),
        "learning_rate": 2e-4 * (1 - number / of),
        "grad_norm": round(dice.uniform(0.2, 0.6), 4),
        "tokens_per_second": round(dice.uniform(900, 1100), 1),
        "memory": 7_000_000_000 + dice.randrange(10**6),
        "eta": round((of - number) * 0.9, 1),
    }


def make_run(folder: Path, name: str, events: int, dice: random.Random, age: float) -> None:
    """One finished run with everything that a folder has, but for the size of its adapter."""
    path = folder / name
    path.mkdir(parents=True)
    config = make({"name": name, "base_model": dice.choice(_BASES), "rank": dice.choice([8, 16, 64])})
    manifest = {"schema": 1, "config": config.model_dump(mode="json"), "versions": {}, "dataset": {"name": "demo"}}
    (path / "run.json").write_text(json.dumps(manifest, indent=2))
    with (path / "events.jsonl").open("w") as file:

        def write(kind: str, **fields: Any) -> None:
            file.write(json.dumps({"t": 1.79e9, "kind": kind} | fields) + "\n")

        write("started", pid=1, resumed=False)
        write("stage", text="Reading the data")
        told = {"used": 990, "held_out": 110, "truncated": 0, "dropped": 0, "dropped_rows": []}
        write("data", **told)
        write("base", name=config.base_model, device="cpu", dtype="bfloat16", trained=10**7, processes=1)
        write("eval", step=0, loss=2.9, tokens=5000)
        for number in range(1, events + 1):
            file.write(json.dumps(step(number, events, dice)) + "\n")
            if number % max(events // 10, 1) == 0:
                write("eval", step=number, loss=1.5 + dice.uniform(0, 0.3), tokens=5000)
        write("saved", step=events, sha256="ab", bytes=100)
        write("finished", step=events, seconds=1000.0, loss_before=2.9, loss_after=1.6)
    (path / "train.log").write_text("log\n" * 60)
    (path / "adapter_config.json").write_text("{}")
    (path / "adapter_model.safetensors").write_bytes(b"x" * 64)
    (path / ".lock").touch()
    (path / "checkpoints").mkdir()
    for file in (path / "run.json", path / "events.jsonl"):
        os.utime(file, (time.time() - age,) * 2)


def make_runs(folder: Path, count: int, events: int) -> None:
    """The folder of runs, the long one the newest."""
    dice = random.Random(0)
    for number in range(count - 1):
        make_run(folder, f"run-{number:04d}", 60, dice, 100.0 + count - number)
    make_run(folder, LONG, events, dice, 60.0)
