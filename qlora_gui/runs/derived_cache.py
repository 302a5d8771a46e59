"""What can be recomputed from the folders of runs, cached to save time. It is never the source of truth.

A file that is gone, damaged, or of another version counts as missing; one that cannot be written only costs time.
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import xxhash

from qlora_gui import hub
from qlora_gui.files import write_whole

_VERSION = "2"


def folder() -> Path:
    """Where it is stored; readable by its owner alone, for it quotes data."""
    return hub.private("index")


def name_of(what: str, path: Path) -> str:
    """The file's name for something made of a path."""
    return f"{what}-{hashlib.sha256(str(path).encode('utf-8', 'surrogateescape')).hexdigest()[:24]}.json"


def load(name: str) -> Any:
    """The value cached under a name, None where there is none that can be trusted."""
    try:
        head, _, body = (folder() / name).read_bytes().partition(b"\n")
        if head.decode() != f"{_VERSION} {xxhash.xxh3_128_hexdigest(body)}":
            return None
        return json.loads(body)
    except (OSError, ValueError, RecursionError):
        return None


def keep(name: str, value: Any) -> None:
    """Cache a JSON value, if there is room for it."""
    body = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    digest = xxhash.xxh3_128_hexdigest(body.encode())
    with contextlib.suppress(OSError):
        write_whole(folder() / name, f"{_VERSION} {digest}\n{body}")
