"""What runs on a GPU really took against what was predicted, and the correction that follows for the next one."""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from qlora_gui import hub
from qlora_gui.files import append_line

_RUNS = 8  # the last runs count: drivers and libraries change
_BOUNDS = (0.8, 1.5)  # beyond these the run was not what was planned, and must not spoil the next prediction
# Runs count whose prediction is between half and twice the new one. A prediction is off by what grows with it and by
# what does not (workspaces of libraries, blocks of the allocator): 12% of a 135M run are 0.2 GB, of a 7B run 1.6 GB.
_LIKE = 2.0


@dataclass(frozen=True)
class Calibration:
    """`factor`: measured / predicted, median of the last `runs` of like size; `error`: how far they were off, median."""

    runs: int = 0
    factor: float = 1.0
    error: float = 0.0


@dataclass(frozen=True)
class Correction:
    """(predicted, measured) bytes of the runs on a GPU, oldest first."""

    pairs: tuple[tuple[int, int], ...] = ()

    def at(self, predicted: int) -> Calibration:
        """What they say of a prediction: a factor of 0.8 to 1.5, and 1.0 where no run was of like size."""
        like = [pair for pair in self.pairs if predicted / _LIKE <= pair[0] <= predicted * _LIKE]
        ratios = [measured / expected for expected, measured in like][-_RUNS:]
        if not ratios:
            return Calibration()
        factor = min(max(statistics.median(ratios), _BOUNDS[0]), _BOUNDS[1])
        return Calibration(len(ratios), factor, statistics.median(abs(ratio - 1) for ratio in ratios))


NO_RUNS, UNCORRECTED = Correction(), Calibration()


def path() -> Path:
    """The file of all measurements, one JSON object per line."""
    return hub.cache_dir() / "memory.jsonl"


def record(gpu: str, predicted: int, measured: int) -> str:
    """Keep one run: `predicted` is a plan's `uncorrected`, `measured` torch's max_memory_allocated, in bytes.

    A cache folder that cannot be written to is no reason to end a run: then nothing is kept, and a sentence says so.
    """
    line = {"t": round(time.time(), 1), "gpu": gpu, "predicted": predicted, "measured": measured}
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        append_line(path(), (json.dumps(line) + "\n").encode())
    except OSError as error:
        return f"The measured memory could not be saved for the next prediction ('{path()}': {error.strerror or error})"
    return ""


def correction(gpu: str) -> Correction:
    """What is known of a GPU by its name."""
    return Correction(tuple(_pairs(gpu)))


def _pairs(gpu: str) -> list[tuple[int, int]]:
    """Predicted and measured bytes, oldest first; lines that are not whole are passed over."""
    try:
        lines = path().read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    pairs = []
    for line in lines:
        try:
            value = json.loads(line)
            if value["gpu"] == gpu and value["predicted"] > 0 and value["measured"] > 0:
                pairs.append((value["predicted"], value["measured"]))
        except (ValueError, KeyError, TypeError):
            continue
    return pairs
