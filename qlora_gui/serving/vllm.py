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
from qlora_gui.files import json_object
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
        rank = max(config["r"] for config in configs)
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
        if own := [Path(folder).name for folder in models.load.adapters if _has_template(Path(folder))]:
            remarks.append(
                "vLLM renders every chat by one template, the base's unless --chat-template FILE names another; trained with one "
                f"that lies in the folder: {', '.join(own)}."
            )
    return Command(shlex.join(words), remarks)


def _has_template(folder: Path) -> bool:
    return (folder / "chat_template.jinja").is_file() or bool(
        json_object(folder / "tokenizer_config.json").get("chat_template")
    )


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
        "it trains single token embeddings (trainable_token_indices)": config.get("trainable_token_indices"),
        "its LoRA has biases (lora_bias)": config.get("lora_bias"),
        "it repeats layers (layer_replication)": config.get("layer_replication"),
        "it answers with LoRA from certain tokens on only (alora_invocation_tokens)": config.get(
            "alora_invocation_tokens"
        ),
        f"it is of the kind {config.get('peft_type')}": config.get("peft_type") != "LORA",
    }
    if reason := next((reason for reason, applies in reasons.items() if applies), None):
        raise UserError(f"vLLM cannot serve the adapter '{folder.name}' as it is: {reason}. Instead, {_MERGE}.")
    rank = config.setdefault("r", 8)
    if type(rank) is not int or rank < 1:
        raise UserError(f"The adapter_config.json of '{folder}' is damaged: its r is {rank!r:.100}.")
    return config
