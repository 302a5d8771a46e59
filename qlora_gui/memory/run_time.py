"""How long a run takes, from the speed of a layer that `--headless-check` measured on this device: an estimate."""

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from qlora_gui import hub
from qlora_gui.config import RunConfig
from qlora_gui.data import load
from qlora_gui.errors import UserError
from qlora_gui.files import write_whole
from qlora_gui.memory.estimate import MemoryPlan
from qlora_gui.memory.model_shape import Shape
from qlora_gui.references import DEMO, DataRef
from qlora_gui.step_rules import checkpoint_interval

CHARACTERS_PER_TOKEN = 3.6  # of English under the vocabularies of today's bases; other languages have fewer
_MOST_BYTES = 20 << 20  # of a data file that is read only to be counted


@dataclass(frozen=True)
class LayerSpeed:
    """One layer of width `hidden` with so many 4-bit `weights`, forward and backward: a pass takes `seconds_a_pass` and
    then its tokens at `tokens_per_second`."""

    hidden: int
    weights: int
    tokens_per_second: float
    seconds_a_pass: float

    def at(self, tokens: float) -> float:
        """Tokens per second in passes of so many tokens."""
        return tokens / (self.seconds_a_pass + tokens / self.tokens_per_second)


@dataclass(frozen=True)
class Speed:
    """What was measured on a device, by torch's name for it, from the narrowest layer to the widest."""

    device: str
    dtype: str
    torch: str
    layers: tuple[LayerSpeed, ...]


@dataclass(frozen=True)
class Estimate:
    """`tokens_per_second` of the whole base; `tokens` of the whole run and its `seconds`, None where the rows are not known.

    `step_tokens` are those of an optimizer step of full rows, which takes `step_seconds` at most.
    """

    tokens_per_second: float
    step_tokens: int
    step_seconds: float
    tokens: int | None
    seconds: float | None

    def __str__(self) -> str:
        speed = f"about {_rounded(self.tokens_per_second)} tokens/s"
        if self.seconds is not None:
            return f"Time: about {clock(self.seconds)} for {_rounded(self.tokens or 0)} tokens, {speed}"
        return f"Time: about {clock(self.step_seconds)} per step of full rows, {speed}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def path() -> Path:
    """The file of all speeds: JSON, by device."""
    return hub.cache_dir() / "speed.json"


def keep(speed: Speed, cache: Path | None = None) -> None:
    """Save what was measured in the cache folder, or in another; nothing where that cannot be written to."""
    file = (cache / path().name) if cache else path()
    speeds = _all(file) | {speed.device: asdict(speed)}
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(speeds, indent=1))


def known(device: str) -> Speed | None:
    """What was measured on a device, None where nothing was."""
    try:
        entry = _all(path())[device]
        layers = tuple(LayerSpeed(**layer) for layer in entry["layers"])
        good = layers and all(layer.tokens_per_second > 0 and layer.weights > 0 for layer in layers)
        return Speed(entry["device"], entry["dtype"], entry["torch"], layers) if good else None
    except (KeyError, TypeError):
        return None


def estimate(config: RunConfig, shape: Shape, plan: MemoryPlan, count: bool = True) -> Estimate | None:
    """How long the run takes on this machine, None where nothing was measured on its device.

    Products with weights take the time, so a token costs what they cost in the layer that was measured, in proportion
    to the weights, in a micro-batch of these rows; the cost of one weight is interpolated between the widths measured. Recomputed
    layers pass forward once more. Attention, the optimizer and held-out measurements are not counted. `count` allows reading a data file.
    """
    speed = known(plan.budget.gpu or "cpu") if plan.budget.is_here else None
    if speed is None or shape.rough:
        return None
    passes = 1 + 0.5 * _recomputed(plan.checkpointing)
    mean = _mean_tokens(config) if count else None
    weights = shape.linear_weights * passes + shape.vocab * shape.hidden
    seconds = weights * _seconds_per_weight(speed, shape.hidden, config.batch_size * (mean or config.max_length))
    step_tokens = config.batch_size * config.gradient_accumulation * config.num_processes * config.max_length
    tokens = None if mean is None else round(mean * _rows(config))
    whole = None if tokens is None else tokens * seconds / config.num_processes
    return Estimate(1 / seconds, step_tokens, step_tokens * seconds / config.num_processes, tokens, whole)


def _seconds_per_weight(speed: Speed, hidden: int, tokens: float) -> float:
    """Seconds that one weight takes per token in a micro-batch of so many, between the widths measured (linear on log scales)."""
    points = [(layer.hidden, 1 / layer.at(tokens) / layer.weights) for layer in speed.layers]
    if hidden <= points[0][0] or len(points) == 1:
        return points[0][1]
    for (low, first), (high, second) in pairwise(points):
        if hidden <= high:
            share = math.log(hidden / low) / math.log(high / low)
            return math.exp(math.log(first) * (1 - share) + math.log(second) * share)
    return points[-1][1]


def _recomputed(checkpointing: str) -> float:
    """The share of layers that pass forward twice."""
    every = 0 if checkpointing == "auto" else checkpoint_interval(checkpointing)
    return 1 / every if every else 0.0


def _mean_tokens(config: RunConfig) -> float | None:
    """Mean tokens per row, from its characters; None where the rows would have to be fetched."""
    lengths = _lengths(config)
    if not lengths:
        return None
    return sum(min(length / CHARACTERS_PER_TOKEN, config.max_length) for length in lengths) / len(lengths)


def _rows(config: RunConfig) -> float:
    """The rows of all steps."""
    if config.max_steps:
        return config.max_steps * config.batch_size * config.gradient_accumulation * config.num_processes
    return len(_lengths(config)) * (1 - config.eval_fraction) * config.epochs


def _lengths(config: RunConfig) -> tuple[int, ...]:
    return _characters(config.dataset, config.dataset_format, config.skip_bad_rows, _stamp(config.dataset))


def _stamp(dataset: str) -> tuple[int, int]:
    """What changes when a data file does."""
    file = DataRef.find(dataset).path
    if file is None or not file.is_file():
        return 0, 0
    status = file.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8)
def _characters(dataset: str, kind: Any, skip_bad_rows: bool, stamp: tuple[int, int]) -> tuple[int, ...]:
    """The characters of each row of the demo or of a file of bounded size; () for others, and for what cannot be read."""
    if dataset != DEMO and not 0 < stamp[1] <= _MOST_BYTES:
        return ()
    try:
        rows = load.load(dataset, kind, skip_bad_rows=skip_bad_rows).train
    except UserError:
        return ()
    return tuple(len(json.dumps(row.get("messages") or row.get("text") or "", ensure_ascii=False)) for row in rows)


def clock(seconds: float) -> str:
    """ "40 s", "12 min", "3.5 h", "4 days", as precisely as an estimate can be."""
    if seconds < 90:
        return f"{max(seconds, 0.1):.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} days"


def _rounded(number: float) -> str:
    """Two figures, which is more than an estimate knows."""
    digits = max(int(math.log10(number)) - 1, 0) if number >= 1 else -1
    return f"{round(number, -digits):,.0f}" if number >= 10 else f"{number:.1f}"


def _all(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}
