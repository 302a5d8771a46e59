"""Fingerprints that distinguish bases, read from their folders without loading them."""

import hashlib
import json
from pathlib import Path
from typing import Any

from qlora_gui import plain_files
from qlora_gui.errors import UserError


def fingerprint(folder: Path) -> str:
    """16 hex digits over the shape of the config and samples of the weights; cheap even for 100 GB.

    Of every safetensors file: its size, its header and 4 kB at 64 even places.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with plain_files.open_to_read(file, follow=True) as body:
            for part in range(64):
                body.seek(size * part // 64)
                digest.update(body.read(4096))
    config = config_of(folder)
    shape = {
        key: config.get(key) for key in ("model_type", "hidden_size", "n_layer", "num_hidden_layers", "vocab_size")
    }
    digest.update(json.dumps(shape, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def config_of(folder: Path) -> dict[str, Any]:
    """The config.json of a base's folder; {} where that holds no object. Raises UserError where it cannot be read."""
    try:
        body = plain_files.read_text(folder / "config.json", plain_files.MOST_CONFIG, follow=True)
        value = json.loads(body)
        return value if isinstance(value, dict) else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"The base model folder '{folder}' has no readable config.json: {error}.") from None
