"""The 4-bit base, quantized once and cached: the same values for training and comparing, loaded in a fraction of the time.

Quantization starts from the numbers as the base stores them, whatever format is computed in, so one entry serves every
format; only then is what stays unquantized cast. A fresh base and a cached one go through the same `_assemble`.
"""

import hashlib
import json
import mmap
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
import xxhash
from bitsandbytes.nn import Params4bit
from filelock import BaseFileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, BitsAndBytesConfig, GenerationConfig

from qlora_gui import cache, plain_files
from qlora_gui.errors import UserError
from qlora_gui.formatting import amount
from qlora_gui.models import device as devices
from qlora_gui.models import text_part
from qlora_gui.system import files

Say = Callable[[str], None]
State = dict[str, torch.Tensor]
_WEIGHTS, _DIGEST = "model.safetensors", "model.xxh3"
_STORED = "stored_in_4_bits"  # the attribute of a model that says so
_LEFT_FREE = 2**30  # bytes that stay free on the disk, for what the run itself wants to save


@dataclass(frozen=True)
class Quantization:
    """The kind of a base's 4-bit values."""

    quant_type: str
    double_quant: bool

    def __str__(self) -> str:
        return f"{self.quant_type} {'with' if self.double_quant else 'without'} double quantization"


def quantization_of(model: torch.nn.Module) -> Quantization:
    """The quantization that a base's linears are in, of the first one; asked before any is unpacked."""
    state = next(part.weight.quant_state for part in model.modules() if isinstance(part, bnb.nn.Linear4bit))
    return Quantization(state.quant_type, state.nested)


def stored(model: torch.nn.Module) -> bool:
    """Whether the base's own files are in 4 bits, so that the quantization asked for is not applied."""
    return bool(getattr(model, _STORED, False))


def load(
    path: Path,
    fingerprint: str,
    quant_type: str,
    double_quant: bool,
    device: torch.device,
    dtype: torch.dtype,
    say: Say,
) -> Any:
    """The base in 4 bits on `device`, computing in `dtype`: from the cache, or quantized now and cached.

    Raises what transformers raises for a folder it cannot load, and UserError for a base without linears.
    """
    key = _key(path, fingerprint, quant_type, double_quant, device)
    name = _name(path, key)
    with _held(name, say):
        entry = _read(name, key, say)
        if entry is None:
            entry = _quantize(path, quant_type, double_quant, device)
            devices.release()  # the model that was quantized is a cycle, and would lie beside the one that is built now
            _keep(name, path, key, *entry, say)
    model = _assemble(path, *entry, device, dtype, say)
    _tell_what_is_stored(model, path, Quantization(quant_type, double_quant), say)
    return model


def _tell_what_is_stored(model: Any, path: Path, asked: Quantization, say: Say) -> None:
    """Mark a base whose files are in 4 bits, and say where those are of another kind than the one asked for."""
    config = json.loads(plain_files.read_text(path / "config.json", plain_files.MOST_CONFIG, follow=True))
    setattr(model, _STORED, bool(config.get("quantization_config")))  # others than 4-bit ones were refused
    have = quantization_of(model)
    if not stored(model) or have == asked:
        return
    ignored = [f"quant_type {asked.quant_type}"] * (have.quant_type != asked.quant_type)
    ignored += [f"double_quant {'on' if asked.double_quant else 'off'}"] * (have.double_quant != asked.double_quant)
    say(f"The base is stored in {have}; {' and '.join(ignored)} {'are' if len(ignored) > 1 else 'is'} not applied")


def _key(path: Path, fingerprint: str, quant_type: str, double_quant: bool, device: torch.device) -> dict[str, Any]:
    """All that the 4-bit values depend on. Kernels of another kind of device may round otherwise."""
    files = sorted(path.glob("*.safetensors"))
    return {
        "fingerprint": fingerprint,
        "revision": path.name if path.parent.name == "snapshots" else None,
        # The fingerprint samples: a weight that was changed in place shows in its file's time.
        "files": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
        "config": hashlib.sha256((path / "config.json").read_bytes()).hexdigest(),
        "quant_type": quant_type,
        "double_quant": double_quant,
        "device": device.type,
        "bitsandbytes": metadata.version("bitsandbytes"),
        "transformers": metadata.version("transformers"),
    }


def _name(path: Path, key: dict[str, Any]) -> str:
    """A folder name that people can read: base, quantization, device and 12 hex digits of the key."""
    base = path.parents[1].name.removeprefix("models--") if key["revision"] else path.resolve().name
    double = "-double" if key["double_quant"] else ""
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return f"{base[:80]}-{key['quant_type']}{double}-{key['device']}-{digest[:12]}"


@contextmanager
def _held(name: str, say: Say) -> Iterator[BaseFileLock | None]:
    """Hold an entry's lock; where there can be none (a read-only disk), go on without."""
    lock = None
    try:
        lock = cache.lock(name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say("Waiting for another process that is preparing this base")
            lock.acquire()
    except (OSError, NotImplementedError):
        lock = None
    try:
        yield lock
    finally:
        if lock is not None:
            lock.release()


def _read(name: str, key: dict[str, Any], say: Say) -> tuple[State, dict[str, Any]] | None:
    """The cached tensors, mapped from disk and not read yet, and their settings; None when absent or damaged."""
    entry = cache.folder() / name
    if not entry.is_dir():
        return None
    try:
        if (entry / _DIGEST).read_text(encoding="ascii") == _digest(entry / _WEIGHTS):
            with safe_open(str(entry / _WEIGHTS), framework="pt") as file:
                header = json.loads(file.metadata()["qlora_gui"])
                if header["key"] == key:
                    names = file.keys()
                    return {name: file.get_tensor(name) for name in names}, header["settings"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        pass  # a file is missing, or no longer what was written
    say("The kept 4-bit base is damaged: quantizing again")
    shutil.rmtree(entry, ignore_errors=True)
    return None


def _digest(file: Path) -> str:
    """XXH3 of the whole file: 10 GB/s from memory, so every byte can be checked at every load."""
    with file.open("rb") as body, mmap.mmap(body.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return xxhash.xxh3_128_hexdigest(mapped)


def _quantize(path: Path, quant_type: str, double_quant: bool, device: torch.device) -> tuple[State, dict[str, Any]]:
    """Quantize on load, in the number format that the base is stored in: its tensors on the CPU, and its settings."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=double_quant
    )
    auto = text_part.auto_class(AutoConfig.from_pretrained(str(path), trust_remote_code=False))
    model = auto.from_pretrained(
        str(path),
        quantization_config=quantization,
        dtype="auto",
        device_map={"": device},
        trust_remote_code=False,
        use_safetensors=True,
    )
    if not any(isinstance(module, bnb.nn.Linear4bit) for module in model.modules()):
        raise UserError(f"The base model in '{path}' has no linear layers that bitsandbytes can quantize.")
    tied = model.all_tied_weights_keys
    state = {name: part.cpu() for name, part in model.state_dict().items() if name not in tied}
    return state, {"dtype": _word(model.dtype), "quantization": model.config.quantization_config.to_dict()}


def _keep(name: str, path: Path, key: dict[str, Any], state: State, settings: dict[str, Any], say: Say) -> None:
    """Write an entry aside and move it into place; if that fails nothing stays behind, and a message says so."""
    size = sum(part.nbytes for part in state.values())
    aside = cache.aside(name)
    header = {"source": str(path), "key": key, "settings": settings}
    try:
        _drop_outdated(path, key)
        if shutil.disk_usage(cache.folder()).free < size + _LEFT_FREE:
            raise OSError("the disk is nearly full")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        save_file(state, aside / _WEIGHTS, {"qlora_gui": json.dumps(header)})
        (aside / _DIGEST).write_text(_digest(aside / _WEIGHTS), encoding="ascii")
        files.replace(aside, cache.folder() / name)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        say(f"The 4-bit base ({amount(size)}) cannot be kept in '{cache.folder()}', so it is made each time: {reason}")


def _drop_outdated(path: Path, key: dict[str, Any]) -> None:
    """Delete entries of bases that are gone, and of this one as it was before it changed, or from other versions."""
    settings = ("quant_type", "double_quant", "device")
    for entry in cache.entries():
        try:
            with safe_open(str(entry.path / _WEIGHTS), framework="pt") as file:
                header = json.loads(file.metadata()["qlora_gui"])
            same = header["source"] == str(path) and all(header["key"][part] == key[part] for part in settings)
            outdated = same or not Path(header["source"]).is_dir()
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            continue  # who loads it will notice
        if outdated:
            cache.remove(entry.name)


def _assemble(
    path: Path, state: State, settings: dict[str, Any], device: torch.device, dtype: torch.dtype, say: Say
) -> Any:
    """A model around quantized tensors; on a CPU it shares their memory, which may be the mapped file.

    transformers builds the model and gets every tensor but the statistics of quantization: five more per linear, on
    each of which it spends more time than on the weight. `Params4bit` takes those itself.
    """
    kind, config = text_part.model_class(AutoConfig.from_pretrained(str(path), trust_remote_code=False))
    stored = getattr(torch, settings["dtype"])
    config.quantization_config = settings["quantization"] | {"bnb_4bit_compute_dtype": _word(dtype)}
    statistics: dict[str, State] = {}
    for name in list(state):
        module, _, statistic = name.partition(".weight.")
        if statistic:
            statistics.setdefault(module, {})[f"weight.{statistic}"] = state.pop(name)
    model = kind.from_pretrained(None, config=config, state_dict=state, dtype=stored, device_map={"": device})
    saved = set(state)
    state.clear()
    for name, tensors in statistics.items():
        linear = model.get_submodule(name)
        linear.weight = Params4bit.from_prequantized(
            linear.weight.data, tensors, requires_grad=False, device=device, module=linear
        )
        linear.weight.quant_state.dtype = dtype
    if dropped := text_part.drop_the_rest(model):
        say(f"Text only: {', '.join(dropped)} of this base is not kept in memory, and not trained")
    _cast(model, saved, stored, dtype)
    model.name_or_path = model.config.name_or_path = str(path)
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(path))
    return model


def _cast(model: Any, saved: set[str], stored: torch.dtype, dtype: torch.dtype) -> None:
    """What is not quantized becomes `dtype`, as when transformers loads in it.

    But for what the architecture wants in fp32, and what is not in the `stored` format either. Buffers that are not
    among the `saved` tensors are computed and keep theirs.
    """
    exact = set(model._keep_in_fp32_modules_strict or ())
    if dtype == torch.float16:
        exact |= set(model._keep_in_fp32_modules or ())
    buffers = [(name, part) for name, part in model.named_buffers() if name in saved]
    for name, part in [*model.named_parameters(), *buffers]:
        if part.dtype == stored:
            wanted = torch.float32 if any(f".{module}." in f".{name}" for module in exact) else dtype
            part.data = part.data.to(wanted)
    for module in model.modules():
        if hasattr(module, "scalar_embed_scale"):  # Gemma's: made from this number in the format that is computed in
            module.embed_scale = torch.tensor(module.scalar_embed_scale, dtype=dtype, device=module.weight.device)
    model.config.dtype = dtype


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
