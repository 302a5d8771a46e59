"""Torch parts of model families that transformers' own do not serve: a module each, named by its Family's `code`.

Such a module has `prepare(model)`, called on a base about to be trained, and `install_attention(model, choice)`.
"""

from importlib import import_module
from typing import Any

from qlora_gui import families


def code_of(model: Any) -> Any:
    """The module of a causal LM's family; None where transformers' own parts serve."""
    name = families.find(model.config.get_text_config().model_type).code
    return import_module(f"{__name__}.{name}") if name else None
