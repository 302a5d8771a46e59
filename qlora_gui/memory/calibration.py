"""What runs on a GPU really took against what was predicted, and the correction that follows for the next one."""

import json
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from qlora_gui import hub

_RUNS = 8  # the last ones count: drivers and libraries change
_BOUNDS = (0.8, 1.5)  # beyond these the run was not what was planned, and must not spoil the next prediction


@dataclass(frozen=True)
class Calibration:
    """`factor`: measured / predicted, median of the last `runs`; `error`: how far they were off before it, median."""

    gpu: str
    runs: int
    factor: float
    error: float


def path() -> Path:
    """The file of all measurements, one JSON object a line."""
    return hub.cache_dir() / "memory.jsonl"


def record(gpu: str, predicted: int, measured: int) -> None:
    """Keep one run: `predicted` is a plan's `uncorrected`, `measured` torch's max_memory_allocated, in bytes.

    A cache folder that cannot be written to is no reason to end a run: then nothing is kept.
    """
    line = {"t": round(time.time(), 1), "gpu": gpu, "predicted": predicted, "measured": measured}
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path(), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644), "w", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError:
        return


def of(gpu: str) -> Calibration:
    """What is known of a GPU by its name; a factor of 1.0 where nothing is."""
    ratios = [measured / predicted for predicted, measured in _pairs(gpu)][-_RUNS:]
    if not ratios:
        return Calibration(gpu, 0, 1.0, 0.0)
    factor = min(max(statistics.median(ratios), _BOUNDS[0]), _BOUNDS[1])
    return Calibration(gpu, len(ratios), factor, statistics.median(abs(ratio - 1) for ratio in ratios))


def correction(gpu: str) -> float:
    """The factor for the next prediction on this GPU, 0.8 to 1.5."""
    return of(gpu).factor


def _pairs(gpu: str) -> list[tuple[int, int]]:
    """Predicted and measured bytes, oldest first; lines that are not whole are passed over."""
    try:
        lines = path().read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            value = json.loads(line)
            if value["gpu"] == gpu and value["predicted"] > 0 and value["measured"] > 0:
                found.append((value["predicted"], value["measured"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found
