"""A base model: where it lies, its tokenizer, and its weights in 4 bits."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_gui import hub, plain_files
from qlora_gui.data import chat_template
from qlora_gui.errors import UserError, first_line
from qlora_gui.families import config_sizes
from qlora_gui.models import demo
from qlora_gui.references import ModelRef
from qlora_gui.runs.fingerprints import config_of, fingerprint

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json")
_MOST_INDEX = 64 << 20  # bytes
MOST_TOKENIZER = 128 << 20  # bytes; Gemma 3's has 33 million

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on a CPU it alarms about a kernel nobody needs


__all__ = ["Base", "fingerprint", "load_model", "load_tokenizer", "locate", "settled"]


@dataclass(frozen=True)
class Base:
    """A base model on disk. `path` is a folder or a hub id, `fingerprint` distinguishes two bases."""

    name: str
    path: str
    revision: str | None
    fingerprint: str


def locate(name: str, revision: str = "", say: Callable[[str], None] = print) -> Base:
    """Find a base, fetching what is missing. Raises UserError when it cannot be had."""
    ref = ModelRef.find(name, revision)
    if ref.is_demo:
        path = demo.ensure(say)
        return Base(name, str(path), None, fingerprint(path))
    if ref.folder is not None:
        _refuse_strange_files(ref.folder)
        _refuse_pickles(ref.folder)
        _check_folder(ref.folder)
        return Base(name, str(ref.folder.resolve()), None, fingerprint(ref.folder))
    hub.require("models", name, revision)
    hub.go_offline_if_unreachable()
    return _on_hub(name, revision, say)


def _refuse_strange_files(folder: Path) -> None:
    """Raise UserError for pipes and devices under the names that libraries will open; links to files are usual here."""
    try:
        plain_files.check_readable(folder, follow=True)
    except OSError as error:
        raise UserError(f"The base model folder '{folder}' cannot be read: {error.strerror or error}.") from None


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
    _check_folder(folder)
    return Base(name, str(folder), folder.name, fingerprint(folder))


def _check_folder(folder: Path) -> None:
    """Raise UserError for what libraries would follow or put on without a word: an adapter in the base's folder, weights
    that lie elsewhere or are no safetensors, numbers beyond all measure."""
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"The base model folder '{folder}' holds an adapter (adapter_config.json), which would be put on the base: "
            "move its files into a folder of their own."
        )
    config = config_of(folder)
    config_sizes.check_limits(config)
    named = [str(config.get("transformers_weights") or "")]
    if not (folder / "model.safetensors").is_file():  # which goes before an index, that may be left from something else
        named += _listed_weights(folder / "model.safetensors.index.json")
    for name in dict.fromkeys(filter(None, named)):
        if Path(name).name != name or not name.endswith(".safetensors") or not (folder / name).is_file():
            raise UserError(
                f"The base model folder '{folder}' says that weights are in '{name[:200]}', which is no safetensors file in "
                "it: take a whole copy of the base."
            )


def _listed_weights(index: Path) -> list[str]:
    """The files that an index of weights names. Raises UserError for one that cannot be read."""
    try:
        content = json.loads(plain_files.read_text(index, _MOST_INDEX, follow=True))
        return sorted(set(map(str, content["weight_map"].values())))
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"The file '{index}' cannot be read ({first_line(error)}): take a whole copy of the base."
        ) from None


def check_tokenizer_size(folder: str | Path) -> None:
    """Raise UserError for a tokenizer's file that is beyond all measure; what reads it takes ten times its size."""
    for file in map(Path(folder).joinpath, _TOKENIZER_FILES):
        if file.is_file() and file.stat().st_size > MOST_TOKENIZER:
            raise UserError(
                f"The file '{file}' has {file.stat().st_size:,} bytes, and at most {MOST_TOKENIZER:,} are read of a "
                "tokenizer: choose another one."
            )


def load_tokenizer(path: str | Path, template: str = "", with_tools: bool = False, or_first: bool = False) -> Any:
    """The tokenizer of a base or of an adapter folder, with one chat template (see `chat_template.choose`) and a pad token.

    Raises UserError when there is none, or when it is a slow one (the loss mask needs offsets).
    """
    from transformers import AutoTokenizer

    check_tokenizer_size(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except Exception as error:  # the library raises plain Exceptions for a file that it cannot read
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
    tokenizer.chat_template = chat_template.choose(tokenizer.chat_template, template, with_tools, or_first)
    return tokenizer


def load_model(
    path: str, quant_type: str, double_quant: bool, device: Any, dtype: Any, say: Callable[[str], None] = print
) -> Any:
    """The base in 4 bits on `device`, computing in `dtype`; embeddings, norms and head stay in `dtype`.

    Quantized at the first load and cached (`models.quantized_cache`). Raises UserError when the folder holds no causal LM that
    can be loaded, or memory does not suffice.
    """
    import bitsandbytes as bnb
    from safetensors import SafetensorError
    from transformers.utils import logging as chatter

    from qlora_gui.models import attention, quantized_cache, supported
    from qlora_gui.models import device as devices

    chatter.disable_progress_bar()
    folder = Path(path)
    supported.check(folder)
    attention.choose_kernels()
    try:
        model = quantized_cache.load(folder, fingerprint(folder), quant_type, double_quant, device, dtype, say)
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError, SafetensorError) as error:
        if devices.ran_out(error):
            where = "this machine's" if device.type == "cpu" else "the GPU's"
            raise UserError(
                f"The base model does not fit into {where} memory: choose a smaller one, or free memory."
            ) from error
        if isinstance(error, RuntimeError):
            raise
        raise UserError(f"The base model in '{path}' cannot be loaded: {first_line(error)}") from error
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            # An eval-mode forward on a CPU with AVX512-BF16 repacks the weights in place, and later training steps
            # silently get wrong gradients from them.
            module.support_avx512bf16_for_cpu = False
    return settled(model)


def settled(model: Any) -> Any:
    """A model as all that reads rows with it expects it, in whatever way it was loaded: its text part alone, in eval mode."""
    from qlora_gui.models import rope, text_part

    text_part.drop_the_rest(model)
    if model.base_model is model and hasattr(model, "model"):  # Mllama's prefix names nothing
        model.base_model_prefix = "model"
    rope.forget_rows(model)
    return model.eval()
