"""An adapter folder, read and checked: LoRA pairs, trained biases, and what it was trained on. Safetensors only."""

import hashlib
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file

from qlora_gui.errors import UserError
from qlora_gui.runs import events
from qlora_gui.runs.store import Run

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LEAVES_THE_BASE_ALONE = ("true", "false", "none", "gaussian", "eva", "orthogonal")  # kinds of initialization
# aLoRA, KaSA and other kinds that compute something else than x @ a.T @ b.T; PEFT marks them in its config.
_VARIANTS = [field.name for field in fields(LoraConfig) if field.metadata.get("is_lora_variant")]


@dataclass(frozen=True)
class Lora:
    """One linear's update: `x @ a.T @ b.T * scaling` with a [rank, in] and b [out, rank], in fp32."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float


@dataclass(frozen=True)
class Adapter:
    """What one adapter adds to its base, by module name, and what its folder says of the base."""

    folder: Path
    config: dict[str, Any]
    sha256: str
    loras: dict[str, Lora]
    biases: dict[str, torch.Tensor]
    template: str | None
    trained_on: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name


def read(folder: Path) -> Adapter:
    """Read an adapter. Raises UserError when it is missing, damaged, or more than plain LoRA on linears."""
    config = _config(folder)
    _refuse_what_is_not_plain_lora(folder, config)
    if not (folder / _WEIGHTS).is_file():
        raise UserError(f"The adapter '{folder}' has no {_WEIGHTS}: other formats can run code and are not loaded.")
    try:
        tensors = load_file(folder / _WEIGHTS)
        digest = hashlib.sha256((folder / _WEIGHTS).read_bytes()).hexdigest()
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"The weights of the adapter '{folder}' are damaged ({error}): train or copy it again."
        ) from None
    _refuse_damage(folder, tensors, digest)
    loras, biases = _sort(folder, config, tensors)
    return Adapter(folder, config, digest, loras, biases, _template(folder), _trained_on(folder))


def _refuse_damage(folder: Path, tensors: dict[str, torch.Tensor], digest: str) -> None:
    """Raise UserError for weights that are not what training saved, or no numbers."""
    saved = events.last(Run(folder).events()[0], "saved")
    if saved and saved.get("sha256") not in (None, digest):
        raise UserError(
            f"The weights of the adapter '{folder}' are not those that were saved (their checksum differs): train or "
            "copy it again."
        )
    if broken := next((name for name, part in tensors.items() if not part.isfinite().all()), None):
        raise UserError(
            f"The weights of the adapter '{folder}' hold what is no number ({broken}): train again with a lower "
            "learning rate."
        )


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"The adapter folder '{folder}' does not exist: check the path.")
    try:
        value = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is no object")
        return value
    except FileNotFoundError:
        raise UserError(f"The folder '{folder}' holds no adapter: it has no adapter_config.json.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"The adapter_config.json of '{folder}' is damaged: {error}.") from None


def _refuse_what_is_not_plain_lora(folder: Path, config: dict[str, Any]) -> None:
    init = str(config.get("init_lora_weights", True))
    reasons = {
        f"it is of the kind {config.get('peft_type')}": config.get("peft_type") != "LORA",
        "it uses DoRA": config.get("use_dora"),
        "it replaces whole modules (modules_to_save)": config.get("modules_to_save"),
        "it trains single token embeddings": config.get("trainable_token_indices"),
        "it repeats layers": config.get("layer_replication"),
        "it puts LoRA on bare parameters (target_parameters)": config.get("target_parameters"),
        "it uses QALoRA": config.get("use_qalora"),
        f"its initialization '{init}' rewrote the base's weights, or may have": init.lower()
        not in _LEAVES_THE_BASE_ALONE,
    } | {f"it uses {name}": config.get(name) for name in _VARIANTS if name != "use_dora"}
    for reason, applies in reasons.items():
        if applies:
            raise UserError(
                f"The adapter '{folder.name}' cannot be compared: {reason}, and only plain LoRA is supported."
            )


def _sort(
    folder: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]
) -> tuple[dict[str, Lora], dict[str, torch.Tensor]]:
    """Tensors by module: LoRA pairs with their scaling, and biases."""
    parts: dict[str, dict[str, torch.Tensor]] = {"lora_A": {}, "lora_B": {}, "bias": {}}
    for name, tensor in tensors.items():
        module, _, leaf = name.removeprefix(_PREFIX).rpartition(".")
        outer, _, kind = module.rpartition(".")
        if leaf == "weight" and kind in ("lora_A", "lora_B") and tensor.ndim == 2:
            parts[kind][outer] = tensor.float()
        elif leaf == "bias" and kind not in ("lora_A", "lora_B") and tensor.ndim == 1:
            parts["bias"][module.removesuffix(".base_layer")] = tensor.float()
        else:
            raise UserError(
                f"The adapter '{folder.name}' cannot be compared: it holds '{name}', which is no plain LoRA."
            )
    if parts["lora_A"].keys() != parts["lora_B"].keys():
        raise UserError(f"The adapter '{folder.name}' is damaged: some of its LoRA pairs are not whole.")
    try:
        loras = {
            module: Lora(a, parts["lora_B"][module], _scaling(config, module, a.shape[0]))
            for module, a in parts["lora_A"].items()
        }
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, re.error) as error:
        raise UserError(f"The adapter_config.json of '{folder}' is damaged: its alpha or rank is none.") from error
    return loras, parts["bias"]


def _scaling(config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with rsLoRA (2312.03732); alpha by module where a pattern says so."""
    pattern = config.get("alpha_pattern") or {}
    alpha = pattern.get(get_pattern_key(pattern.keys(), module), config.get("lora_alpha", 8))  # 8 is PEFT's default
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _template(folder: Path) -> str | None:
    """The chat template that lies beside the adapter, if one does."""
    try:
        if (folder / "chat_template.jinja").is_file():
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        found = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
        return found if isinstance(found, str) else None
    except (OSError, ValueError, AttributeError):
        return None


def _trained_on(folder: Path) -> dict[str, Any]:
    """The `base` event of the run that made it (name, revision, fingerprint) and the quantization that its run.json
    asked for (quant_type, double_quant); empty for adapters from elsewhere.
    """
    told = events.last(events.read(folder / "events.jsonl")[0], "base") or {}
    try:
        config = Run(folder).config()
    except UserError:
        return told
    return told | {"quant_type": config.quant_type, "double_quant": config.double_quant}
