"""The rows of a data set, read for the page: what may unpack to gigabytes is read in a child with a limit of memory.

`python -m qlora_gui.runs.bounded_reading` is that child. It is asked with one JSON object on stdin and answers with one on stdout.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from qlora_gui.config import RunConfig, make
from qlora_gui.data import load, prompts
from qlora_gui.data.bad_rows import Fault, FaultyRows
from qlora_gui.data.formats import Example
from qlora_gui.errors import UserError
from qlora_gui.formatting import gigabytes
from qlora_gui.runs import training_rows
from qlora_gui.system import processes

_MODULE = "qlora_gui.runs.bounded_reading"
_SMALL = 4 << 20  # bytes of a text file that cannot become more than some hundred megabytes of values
_LEAST_MEMORY = 1 << 30  # bytes
_PATIENCE_SECONDS = 900.0
_LONGEST = 20_000  # characters of a turn that are shown


def check(config: RunConfig) -> None:
    """Raise UserError for data that cannot be read, FaultyRows for rows that cannot be used and are not left out."""
    _asked("check", config)


def first(config: RunConfig, count: int) -> list[Example]:
    """The first rows, with what is very long in them cut. Raises UserError."""
    return _asked("first", config, count)


def held_out(config: RunConfig) -> list[tuple[str, str]]:
    """(question, the data's own answer) of the rows that a run does not learn from. Raises UserError."""
    return [(question, answer) for question, answer in _asked("held_out", config)]


def _asked(what: str, config: RunConfig, count: int = 0) -> Any:
    source = load.find(config.dataset)
    if source.is_hub or _is_small(source):
        return _WAYS[what](config, count)
    free = psutil.virtual_memory().available
    most = max(free // 2, _LEAST_MEMORY)
    question = {"what": what, "config": config.model_dump(mode="json"), "count": count, "most": most}
    try:
        child = subprocess.run(
            [sys.executable, "-m", _MODULE],
            input=json.dumps(question),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=processes.environment(),
            timeout=_PATIENCE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"The data '{config.dataset}' was not read to its end within {_PATIENCE_SECONDS:g} s: split it up."
        ) from None
    return _answer(child.stdout, config, most)


def _answer(output: str, config: RunConfig, most: int) -> Any:
    """What the child found. Raises what it raised."""
    try:
        answer = json.loads(output)
    except ValueError:  # it was ended, most likely for its memory
        answer = {"memory": True}
    if "memory" in answer:
        raise UserError(too_large(config.dataset, most))
    if "faulty" in answer:
        faulty = answer["faulty"]
        named = [Fault(**fault) for fault in faulty["named"]]
        raise FaultyRows(named, faulty["count"], faulty["rows"], faulty["some_left"])
    if "error" in answer:
        raise UserError(answer["error"])
    return answer["found"]


def too_large(dataset: str, most: int) -> str:
    """The sentence for data that takes more than `most` bytes of memory to read."""
    return (
        f"The data '{dataset}' takes more than {gigabytes(most)} of memory to read, half of what is free: it unpacks to "
        "far more than its size on the disk, or is too large for this machine."
    )


def _is_small(source: load.Source) -> bool:
    files = [file for file in (source.train, source.held_out) if file is not None]
    return all(file.suffix.lower() != ".parquet" and _size(file) <= _SMALL for file in files)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0  # whoever reads it says so


def _check(config: RunConfig, count: int) -> None:
    load.check(config.dataset, config.dataset_format, config.dataset_split, config.skip_bad_rows)


def _first(config: RunConfig, count: int) -> list[Example]:
    dataset = load.load(config.dataset, config.dataset_format, config.dataset_split, limit=count, skip_bad_rows=True)
    return [_cut(row) for row in dataset.train[:count]]


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else value[:_LONGEST] + "…"
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items()}
    return [_cut(item) for item in value] if isinstance(value, list) else value


def _held_out(config: RunConfig, count: int) -> list[tuple[str, str]]:
    exchanges = map(prompts.first_exchange, training_rows.rows_of(config).held_out)
    return [exchange for exchange in exchanges if exchange is not None]


_WAYS = {"check": _check, "first": _first, "held_out": _held_out}


def main() -> None:
    asked = json.load(sys.stdin)
    processes.limit_memory(asked["most"])
    try:
        answer: dict[str, Any] = {"found": _WAYS[asked["what"]](make(asked["config"]), asked["count"])}
        body = json.dumps(answer, default=str)
    except MemoryError:
        body = json.dumps({"memory": True})
    except FaultyRows as error:
        named = [asdict(fault) for fault in error.named]
        faulty = {"named": named, "count": error.count, "rows": error.rows, "some_left": error.some_left}
        body = json.dumps({"faulty": faulty})
    except UserError as error:
        body = json.dumps({"error": str(error)})
    print(body)


if __name__ == "__main__":
    main()
