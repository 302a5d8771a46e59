"""An adapter folder, read and checked: LoRA pairs, trained biases, and what it was trained on. Safetensors only."""

import hashlib
import json
import math
import os
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, BinaryIO

import psutil
import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file

from qlora_gui import plain_files
from qlora_gui.errors import UserError
from qlora_gui.formatting import gigabytes
from qlora_gui.inference import beyond_lora, regex_limits
from qlora_gui.inference.beyond_lora import Beyond
from qlora_gui.models import chats
from qlora_gui.runs import elsewhere
from qlora_gui.runs.events import Base, Saved
from qlora_gui.runs.store import Run

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_OF_BASE = ("name", "revision", "fingerprint", "vocabulary", "quant_type", "double_quant")
_MOST_HEADER = 16 << 20  # bytes; some hundred per tensor
_COPIES = 3  # of the weights at a time: as stored, in fp32, and stacked for the rows or in PEFT's modules
_LEAVES_THE_BASE_ALONE = ("true", "false", "none", "gaussian", "eva", "orthogonal")  # kinds of initialization
# aLoRA, KaSA and other kinds that compute something else; PEFT marks them in its config.
_VARIANTS = [field.name for field in fields(LoraConfig) if field.metadata.get("is_lora_variant")]
_SAYS_NOTHING: tuple[Any, ...] = (None, False, "", [], {}, 0)
_KNOWN = {field.name for field in fields(LoraConfig)}


@dataclass(frozen=True)
class Lora:
    """One linear's update: `x @ a.T @ b.T * scaling` with a [rank, in] and b [out, rank], in fp32."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float


@dataclass(frozen=True)
class Adapter:
    """What one adapter adds to its base, by module name, and what its folder says of the base.

    `beyond` is what it has besides LoRA and biases on linears, which PEFT alone computes; with DoRA the pairs are not the whole
    update. `unasked` are the modules of which something was left out, as text does not pass them.
    """

    folder: Path
    config: dict[str, Any]
    sha256: str
    loras: dict[str, Lora]
    biases: dict[str, torch.Tensor]
    template: str | None
    trained_on: dict[str, Any]
    beyond: Beyond = field(default_factory=Beyond)
    thinking: bool | None = None
    unasked: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.folder.name


def unknown_settings(config: dict[str, Any]) -> list[str]:
    """The settings in an adapter_config.json that say something and that this PEFT does not know, and so leaves out."""
    return sorted(name for name, value in config.items() if name not in _KNOWN and value not in _SAYS_NOTHING)


def for_text(adapter: Adapter, left_off: tuple[str, ...]) -> Adapter:
    """The adapter without what it has on modules that a base for text and images has left off, by their names' beginnings.

    Raises UserError where nothing is left of it.
    """
    loras = {name: lora for name, lora in adapter.loras.items() if not name.startswith(left_off)}
    biases = {name: bias for name, bias in adapter.biases.items() if not name.startswith(left_off)}
    beyond, others = adapter.beyond.without(left_off)
    unasked = (adapter.loras.keys() | adapter.biases.keys()) - loras.keys() - biases.keys() | others
    if unasked and not (loras or biases or beyond.parameters or beyond.replaced or beyond.tokens):
        raise UserError(
            f"The adapter '{adapter.name}' cannot be compared: it was trained on the vision part of its base alone, and "
            "text does not pass that: choose one that was trained on the language model."
        )
    return replace(adapter, loras=loras, biases=biases, beyond=beyond, unasked=tuple(sorted(unasked)))


def read(folder: Path) -> Adapter:
    """Read an adapter. Raises UserError when it is missing, damaged, or of a kind that is not supported."""
    config = _config(folder)
    _refuse_other_kinds(folder, config)
    _refuse_strange_files(folder)
    if why := elsewhere.why_no_weights(folder):
        raise UserError(why)
    try:
        _refuse_too_large(folder)
        tensors = load_file(folder / _WEIGHTS)
        with plain_files.open_to_read(folder / _WEIGHTS) as file:
            digest = _sha256(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The weights of the adapter '{folder}' are damaged ({error}): train or copy it again."
        ) from None
    _refuse_damage(folder, tensors, digest)
    regex_limits.check(folder.name, config, {_module(name) for name in tensors})
    loras, biases, beyond = _sort(folder, config, tensors)
    template, thinking = chats.template_beside(folder), chats.thinking_beside(folder)
    return Adapter(folder, config, digest, loras, biases, template, _trained_on(folder), beyond, thinking)


def _refuse_strange_files(folder: Path) -> None:
    """Raise UserError for links to elsewhere, pipes and devices under the names that libraries will open."""
    try:
        plain_files.check_readable(folder)
    except OSError as error:
        raise UserError(f"The adapter '{folder.name}' cannot be read: {error.strerror or error}.") from None


def _refuse_too_large(folder: Path) -> None:
    """Raise UserError for weights with a header beyond all measure, or that take more memory than there is."""
    with plain_files.open_to_read(folder / _WEIGHTS) as file:
        header, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
    if _MOST_HEADER < header <= size:  # what says that it is longer than the file is damaged, as the library says
        raise UserError(
            f"The adapter '{folder.name}' cannot be compared: the list of its tensors has {header:,} bytes, and at most "
            f"{_MOST_HEADER:,} are read."
        )
    free = psutil.virtual_memory().available
    if _COPIES * size > free:
        raise UserError(
            f"The adapter '{folder.name}' cannot be compared: its weights have {gigabytes(size)}, and only "
            f"{gigabytes(free)} of memory are free, of which they need {_COPIES} times their size."
        )


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _refuse_damage(folder: Path, tensors: dict[str, torch.Tensor], digest: str) -> None:
    """Raise UserError for weights that are not what training saved, or no numbers."""
    saved = Run(folder).history().latest(Saved)
    if saved and saved.sha256 not in (None, digest):
        raise UserError(
            f"The weights of the adapter '{folder}' are not those that were saved (their checksum differs): train or "
            "copy it again."
        )
    if broken := next((name for name, part in tensors.items() if not part.isfinite().all()), None):
        raise UserError(
            f"The weights of the adapter '{folder}' contain NaN or infinite values ({broken}): train again with a lower "
            "learning rate."
        )


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"The adapter folder '{folder}' does not exist: check the path.")
    try:
        value = json.loads(plain_files.read_text(folder / "adapter_config.json", plain_files.MOST_CONFIG))
        if not isinstance(value, dict):
            raise ValueError("it is no object")
        return value
    except FileNotFoundError:
        raise UserError(elsewhere.why_no_adapter(folder)) from None
    except RecursionError:
        raise UserError(f"The adapter_config.json of '{folder}' is damaged: it is nested too deeply.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"The adapter_config.json of '{folder}' is damaged: {error}.") from None


def _refuse_other_kinds(folder: Path, config: dict[str, Any]) -> None:
    init = str(config.get("init_lora_weights", True))
    reasons = {
        f"it is of the kind {config.get('peft_type')}": config.get("peft_type") != "LORA",
        "it repeats layers": config.get("layer_replication"),
        "it uses QALoRA": config.get("use_qalora"),
        f"its initialization '{init}' rewrote the base's weights, or may have": init.lower()
        not in _LEAVES_THE_BASE_ALONE,
    } | {f"it uses {name}": config.get(name) for name in _VARIANTS if name != "use_dora"}
    for reason, applies in reasons.items():
        if applies:
            raise UserError(
                f"The adapter '{folder.name}' cannot be compared: {reason}, and only LoRA, DoRA and replaced modules are "
                "supported."
            )


def _sort(
    folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> tuple[dict[str, Lora], dict[str, torch.Tensor], Beyond]:
    """Tensors by module: LoRA pairs with their scaling, and biases; and what there is beyond these."""
    parts: dict[str, dict[str, torch.Tensor]] = {"lora_A": {}, "lora_B": {}, "bias": {}}
    on_parameters, of_parameters = bool(config.get("target_parameters")), 0
    targets, more = _targets(folder, config), beyond_lora.Sorter(folder.name, config)
    for name, tensor in tensors.items():
        if more.takes(name.removeprefix(_PREFIX), tuple(tensor.shape)):
            continue
        module, _, leaf = name.removeprefix(_PREFIX).rpartition(".")
        outer, _, kind = module.rpartition(".")
        # PEFT writes the LoRA of a parameter under the module that holds it, which is none of the target modules.
        if kind in ("lora_A", "lora_B") and on_parameters and not check_target_module_exists(targets, _unnested(outer)):
            of_parameters += 1
            continue
        if leaf == "weight" and kind in ("lora_A", "lora_B") and tensor.ndim == 2:
            parts[kind][outer] = tensor.float()
        elif leaf == "bias" and kind not in ("lora_A", "lora_B") and tensor.ndim == 1:
            parts["bias"][module.removesuffix(".base_layer")] = tensor.float()
        else:
            raise UserError(
                f"The adapter '{folder.name}' cannot be compared: it holds '{name}', which is no plain LoRA."
            )
    if parts["lora_A"].keys() != parts["lora_B"].keys() or of_parameters % 2:
        raise UserError(f"The adapter '{folder.name}' is damaged: some of its LoRA pairs are not whole.")
    if on_parameters and not of_parameters:
        raise UserError(
            f"The adapter '{folder.name}' is damaged: its config puts LoRA on parameters (target_parameters), and its "
            "weights have none for them."
        )
    try:
        loras = {
            module: Lora(a, parts["lora_B"][module], _scaling(config, module, a.shape[0]))
            for module, a in parts["lora_A"].items()
        }
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError, re.error) as error:
        raise UserError(
            f"The adapter_config.json of '{folder}' is damaged: its lora_alpha or r is no number."
        ) from error
    return loras, parts["bias"], more.found()


def _targets(folder: Path, config: dict[str, Any]) -> LoraConfig:
    """What an adapter_config.json says of the modules that have LoRA. Raises UserError where that is damaged."""
    kinds = {"target_modules": str, "exclude_modules": str, "layers_pattern": str, "layers_to_transform": int}
    settings = {name: config[name] for name in (*kinds, "target_parameters") if config.get(name) is not None}
    for name, value in settings.items():
        listed = value if isinstance(value, list) or name == "target_parameters" else [value]
        if not isinstance(listed, list) or not all(isinstance(item, kinds.get(name, str)) for item in listed):
            raise UserError(f"The adapter_config.json of '{folder}' is damaged: its {name} is {value!r}.")
    try:
        re.compile(pattern if isinstance(pattern := settings.get("target_modules"), str) else "")
    except re.error as error:
        raise UserError(f"The adapter_config.json of '{folder}' is damaged: its target_modules, {error}.") from None
    return LoraConfig(**settings)


def _module(name: str) -> str:
    """The module that a tensor of an adapter belongs to, by its name in the base."""
    module = name.removeprefix(_PREFIX).rpartition(".")[0]
    outer, _, kind = module.rpartition(".")
    return _unnested(outer if kind in ("lora_A", "lora_B") else module)


def _unnested(module: str) -> str:
    """The base's name of a module that PEFT has wrapped, once for each of its parameters."""
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
    return module


def _scaling(config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with rsLoRA (2312.03732); alpha by module where a pattern says so."""
    pattern = config.get("alpha_pattern") or {}
    alpha = pattern.get(get_pattern_key(pattern.keys(), module), config.get("lora_alpha", 8))  # 8 is PEFT's default
    scaling = float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
    if not math.isfinite(scaling):
        raise ValueError("not finite")
    return scaling


def _trained_on(folder: Path) -> dict[str, Any]:
    """The base of the run that made it (name, revision, fingerprint, vocabulary) and its quantization (quant_type,
    double_quant): what the base was stored in, else what the run.json asked for; empty for adapters from elsewhere.
    """
    base = Run(folder).history().latest(Base)
    values = {name: getattr(base, name) for name in _OF_BASE} if base else {}
    known = {name: value for name, value in values.items() if value is not None}
    try:
        config = Run(folder).config()
    except UserError:
        return known
    return {"quant_type": config.quant_type, "double_quant": config.double_quant} | known
