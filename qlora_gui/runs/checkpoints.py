"""Checkpoints of a run: which of them are as they were written, by the sizes and checksums of their files.

Sizes are looked at often, checksums (xxHash, gigabytes per second) where a run is to go on from one: a disk that flips
bits does not report it, and a run that goes on from such weights is ruined.
"""

import json
import struct
import zipfile
from pathlib import Path

import xxhash

from qlora_gui import plain_files
from qlora_gui.files import write_whole

MARK = "whole.json"
_LAST_OF_OLD = "trainer_state.json"  # the last file the Trainer writes; checkpoints of older versions end with it
_BLOCK = 1 << 20


def mark_whole(checkpoint: Path) -> None:
    """Write down what a checkpoint consists of, last of all."""
    files = [file for file in sorted(checkpoint.iterdir()) if file.is_file() and file.name != MARK]
    manifest = {file.name: {"bytes": file.stat().st_size, "xxh3": _checksum(file)} for file in files}
    write_whole(checkpoint / MARK, json.dumps(manifest))


def fault(checkpoint: Path, thorough: bool = True) -> str:
    """What is wrong with a checkpoint, in a few words; "" where all its files are as they were written.

    Without `thorough` only sizes are compared with what was recorded. Checkpoints of older versions have no checksums,
    the oldest no sizes either: their files are read as far as damage can be detected that way.
    """
    try:
        if not (checkpoint / MARK).exists():
            return _of_old(checkpoint, thorough)
        manifest = json.loads(plain_files.read_text(checkpoint / MARK))
        for name, written in manifest.items():
            file = checkpoint / Path(name).name
            size = written["bytes"] if isinstance(written, dict) else written
            if not file.is_file():
                return f"{file.name} is missing"
            if file.stat().st_size != size:
                return f"{file.name} has {file.stat().st_size:,} bytes and not {size:,}"
            if thorough and isinstance(written, dict) and _checksum(file) != written["xxh3"]:
                return f"{file.name} does not match its checksum"
            if thorough and not isinstance(written, dict) and (wrong := _unreadable(file)):
                return wrong
        return "" if manifest else "it holds nothing"
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return f"its {MARK} cannot be read"


def is_whole(checkpoint: Path) -> bool:
    """Whether all its files are there with the sizes they were written with."""
    return not fault(checkpoint, thorough=False)


def newest_first(folder: Path) -> list[Path]:
    """All checkpoints of a folder, by their steps. Links lead elsewhere, and hold none."""
    if folder.is_symlink():
        return []
    named = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    real = [path for path in named if not path.is_symlink()]
    return sorted(real, key=lambda path: -int(path.name.rpartition("-")[2]))


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a folder that is whole by its sizes, or None."""
    return next((path for path in newest_first(folder) if is_whole(path)), None)


def sound(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is as it was written, or None; and what is wrong with those that are newer."""
    wrong: list[str] = []
    for path in newest_first(folder):
        reason = fault(path)
        if not reason:
            return path, wrong
        wrong.append(f"{path.name} is damaged ({reason})")
    return None, wrong


def _of_old(checkpoint: Path, thorough: bool) -> str:
    if not isinstance(json.loads(plain_files.read_text(checkpoint / _LAST_OF_OLD)), dict):
        return f"{_LAST_OF_OLD} cannot be read"
    files = [file for file in sorted(checkpoint.iterdir()) if file.is_file()] if thorough else []
    return next(filter(None, map(_unreadable, files)), "")


def _unreadable(file: Path) -> str:
    """Damage that a file without a recorded checksum reveals by itself: torch's are zip archives with their own, safetensors have a
    header that says how long they are."""
    wrong = False
    if file.suffix in (".pt", ".pth"):
        try:
            with plain_files.open_to_read(file) as body, zipfile.ZipFile(body) as archive:
                wrong = archive.testzip() is not None
        except zipfile.BadZipFile:
            wrong = True
    elif file.suffix == ".safetensors":
        with plain_files.open_to_read(file) as body:
            (length,) = struct.unpack("<Q", body.read(8).ljust(8, b"\xff"))
            header = json.loads(body.read(length)) if length < file.stat().st_size else {}
        ends = [part["data_offsets"][1] for name, part in header.items() if name != "__metadata__"]
        wrong = not ends or 8 + length + max(ends) != file.stat().st_size
    elif file.suffix == ".json":
        json.loads(plain_files.read_text(file))
    return f"{file.name} is damaged" if wrong else ""


def _checksum(file: Path) -> str:
    digest = xxhash.xxh3_64()
    with plain_files.open_to_read(file) as body:
        while block := body.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
