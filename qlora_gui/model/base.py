"""A base model: where it lies, its tokenizer, and its weights in 4 bits."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_gui import hub
from qlora_gui.errors import UserError, first_line
from qlora_gui.model import demo, template

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on a CPU it alarms about a kernel nobody needs


@dataclass(frozen=True)
class Base:
    """A base model on disk. `path` is a folder or a hub id, `fingerprint` tells two bases apart."""

    name: str
    path: str
    revision: str | None
    fingerprint: str


def locate(name: str, revision: str = "", say: Callable[[str], None] = print) -> Base:
    """Find a base, fetching what is missing. Raises UserError when it cannot be had."""
    if name == "demo":
        path = demo.ensure(say)
        return Base(name, str(path), None, fingerprint(path))
    local = hub.local(name)
    if local is not None and local.is_dir():
        _refuse_pickles(local)
        return Base(name, str(local.resolve()), None, fingerprint(local))
    hub.require("models", name, revision)
    hub.go_offline_if_unreachable()
    return _on_hub(name, revision, say)


def _refuse_pickles(folder: Path) -> None:
    """Weights that are no safetensors are pickles, which run code when they are read."""
    pickles = [path.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in sorted(folder.glob(kind))]
    if pickles and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"The base model folder '{folder}' has its weights in {pickles[0]}, which can run code and is not loaded: "
            "convert it to safetensors."
        )


def _on_hub(name: str, revision: str, say: Callable[[str], None]) -> Base:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    say(f"Fetching {name}")
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise UserError(f"The base model '{name}' cannot be fetched: {reason}") from error
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"The base model '{name}' has no safetensors weights: choose one that has, or convert it.")
    return Base(name, str(folder), folder.name, fingerprint(folder))


def fingerprint(folder: Path) -> str:
    """16 hex digits over the shape of the config and samples of the weights; cheap even for 100 GB.

    Of every safetensors file: its size, its header and 4 kB at 64 even places.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as body:
            for part in range(64):
                body.seek(size * part // 64)
                digest.update(body.read(4096))
    config = _config(folder)
    shape = {
        key: config.get(key) for key in ("model_type", "hidden_size", "n_layer", "num_hidden_layers", "vocab_size")
    }
    digest.update(json.dumps(shape, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _config(folder: Path) -> dict[str, Any]:
    try:
        value = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    except (OSError, ValueError) as error:
        raise UserError(f"The base model folder '{folder}' has no readable config.json: {error}.") from None


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a base or of an adapter folder, with a chat template and a pad token.

    Raises UserError when there is none, or when it is a slow one (the loss mask needs offsets).
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"No tokenizer can be loaded from '{path}': {first_line(error)}") from error
    if not tokenizer("word", add_special_tokens=False)["input_ids"]:  # from a folder without its files: an empty one
        raise UserError(f"No tokenizer can be loaded from '{path}': its files are missing.")
    if not tokenizer.is_fast:
        raise UserError(
            f"The tokenizer of '{path}' has no fast version, which the loss mask needs: choose another base."
        )
    if tokenizer.eos_token is None:
        raise UserError(f"The tokenizer of '{path}' has no end-of-sequence token: set eos_token in its config.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked by position, never by this id
    template.ensure(tokenizer)
    return tokenizer


def load_model(
    path: str, quant_type: str, double_quant: bool, device: Any, dtype: Any, say: Callable[[str], None] = print
) -> Any:
    """The base in 4 bits on `device`, computing in `dtype`; embeddings, norms and head stay in `dtype`.

    Quantized at the first load and kept (`model.quantized`). Raises UserError when the folder holds no causal LM that
    can be loaded, or memory does not suffice.
    """
    import bitsandbytes as bnb
    import torch
    from transformers.utils import logging as chatter

    from qlora_gui.model import quantized

    chatter.disable_progress_bar()
    folder = Path(path)
    try:
        model = quantized.load(folder, fingerprint(folder), quant_type, double_quant, device, dtype, say)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"The base model in '{path}' cannot be loaded: {first_line(error)}") from error
    except torch.OutOfMemoryError as error:
        raise UserError(
            "The base model does not fit into the GPU's memory: choose a smaller one, or free memory."
        ) from error
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # An eval-mode forward on a CPU with AVX512-BF16 repacks the weights in place, and later training steps
            # silently get wrong gradients from them.
            module.support_avx512bf16_for_cpu = False
    return model.eval()
