"""Bases that cannot be trained in 4 bits, recognized from config.json alone: without torch, and before anything is fetched."""

from collections.abc import Mapping
from typing import Any

from qlora_gui import families
from qlora_gui.errors import UserError
from qlora_gui.families import config_sizes


def check(config: Mapping[str, Any], named: str) -> None:
    """Raise UserError for a config.json whose base cannot be trained; `named` is how it is called."""
    config_sizes.check_limits(config)
    inner = config.get("text_config")
    text = inner if isinstance(inner, Mapping) else config
    check_type(str(text.get("model_type")), named)
    if text.get("use_bidirectional_attention") in (True, "all"):
        raise UserError(
            f"The base model '{named}' reads in both directions, its prompts at least, which is not how it would be trained "
            "here: choose a base that reads from left to right."
        )
    stored = config.get("quantization_config")
    if not isinstance(stored, Mapping):
        return
    # 4-bit bitsandbytes weights are what training computes with; other quantized weights cannot become those.
    method = stored.get("quant_method", "bitsandbytes" if stored.get("load_in_4bit") else None)
    if not stored or (method == "bitsandbytes" and stored.get("load_in_4bit", stored.get("_load_in_4bit"))):
        return
    name = "8-bit bitsandbytes" if method == "bitsandbytes" else str(method or "by an unknown method").replace("_", "-")
    name = name if method in (None, "bitsandbytes") else name.upper()
    raise UserError(
        f"The base model '{named}' is stored quantized ({name}), and cannot be quantized again: choose the version of it "
        "in 16 bits, often named -bf16, or one whose name ends in -bnb-4bit."
    )


def check_type(kind: str, named: str) -> None:
    """Raise UserError for the type of a base's text part where it cannot be trained."""
    if reason := families.find(kind).unsupported:
        raise UserError(
            f"The base model '{named}' cannot be trained in 4 bits: it is of the type '{kind}', and {reason}. "
            "Choose another base."
        )
