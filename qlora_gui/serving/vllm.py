"""vLLM's command for the same base and adapters, and what vLLM does not take. For traffic; the endpoint here is for judging.

What vLLM refuses or passes over is in its `lora/peft_helper.py`: trained biases, DoRA and replaced modules are refused, rank and
alpha patterns are not read, so that such an adapter would answer differently in silence.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_gui import plain_files
from qlora_gui.errors import UserError
from qlora_gui.serving.batching import Models

_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values that --max-lora-rank takes
_MERGE = "merge it (qlora-gui export --to merged) and serve that folder: vllm serve DIR"


@dataclass(frozen=True)
class Command:
    """A line for a shell, and what to know of it."""

    text: str
    remarks: Sequence[str]


def command(models: Models) -> Command:
    """Raises UserError where vLLM would refuse an adapter, or answer with another model than it is."""
    words = ["vllm", "serve", models.load.base_model]
    if models.load.revision:
        words += ["--revision", models.load.revision]
    remarks = []
    if models.load.adapters:
        configs = [_config(Path(folder)) for folder in models.load.adapters]
        rank = max(int(config.get("r", 8)) for config in configs)
        most = next((allowed for allowed in _RANKS if allowed >= rank), None)
        if most is None:
            raise UserError(f"vLLM takes ranks up to {_RANKS[-1]}, and one here is {rank}: {_MERGE}.")
        modules = [f"{name}={folder}" for name, folder in zip(models.names[1:], models.load.adapters, strict=True)]
        words += [
            "--enable-lora",
            "--max-loras",
            str(len(configs)),
            "--max-lora-rank",
            str(most),
            "--lora-modules",
            *modules,
        ]
        remarks.append(
            "vLLM serves the adapter on the base's 16-bit weights, not on the 4-bit ones that it was trained and evaluated on: "
            "qlora-gui export --to merged says how much that changes."
        )
    return Command(shlex.join(words), remarks)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(
            plain_files.read_text(folder / "adapter_config.json", plain_files.MOST_CONFIG)
        )
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"The adapter_config.json of '{folder}' cannot be read: {error}.") from None
    reasons = {
        "it has trained biases": config.get("bias", "none") != "none",
        "it uses DoRA": config.get("use_dora"),
        "it replaces whole modules (modules_to_save)": config.get("modules_to_save"),
        "it has ranks or alphas by module, which vLLM does not read": config.get("rank_pattern")
        or config.get("alpha_pattern"),
        "it puts LoRA on parameters (target_parameters)": config.get("target_parameters"),
        f"it is of the kind {config.get('peft_type')}": config.get("peft_type") != "LORA",
    }
    if reason := next((reason for reason, applies in reasons.items() if applies), None):
        raise UserError(f"vLLM cannot serve the adapter '{folder.name}' as it is: {reason}. Instead, {_MERGE}.")
    return config
