"""Checkpoints of a run: which of them were written to their end, by the sizes of their files."""

import json
from pathlib import Path

MARK = "whole.json"
_LAST_OF_OLD = "trainer_state.json"  # the last file the Trainer writes; checkpoints of older versions end with it


def mark_whole(checkpoint: Path) -> None:
    """Write down what a checkpoint consists of, last of all."""
    sizes = {file.name: file.stat().st_size for file in sorted(checkpoint.iterdir()) if file.is_file()}
    (checkpoint / MARK).write_text(json.dumps(sizes), encoding="utf-8")


def is_whole(checkpoint: Path) -> bool:
    """Whether all its files are there with the sizes they were written with."""
    try:
        if not (checkpoint / MARK).exists():
            return isinstance(json.loads((checkpoint / _LAST_OF_OLD).read_text(encoding="utf-8")), dict)
        sizes = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a folder, or None."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    newest_first = sorted(found, key=lambda path: -int(path.name.rpartition("-")[2]))
    return next((path for path in newest_first if is_whole(path)), None)
