"""The language model inside a base that also sees or hears: it alone is trained, asked and kept in memory."""

from typing import Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
)

from qlora_gui.errors import UserError


def model_class(config: Any) -> tuple[type[Any], Any]:
    """(the class that people load such a base with, the config that it takes).

    AutoModelForCausalLM's class: for some bases the text part alone (Qwen3.5), for others the whole model
    (Gemma 3). For bases that it does not know (Qwen3-VL, LLaVA) it is AutoModelForImageTextToText's. An adapter
    has the module names of this class. Raises UserError for a config that has none.
    """
    kind = type(config)
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING:
        result = MODEL_FOR_CAUSAL_LM_MAPPING[kind]
        result = result[0] if isinstance(result, tuple) else result
        text = config.get_text_config()
        return result, (text if text is not config and result.config_class is type(text) else config)
    if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[kind], config
    raise UserError(
        f"A base of the type '{config.model_type}' is no language model that writes on from a text: choose another one."
    )


def auto_class(config: Any) -> Any:
    """The class of transformers that loads such a base for everybody: `model_class` by its public name."""
    return AutoModelForCausalLM if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else AutoModelForImageTextToText


def prefix(model: Any) -> str:
    """What the names of the text part's modules begin with; "" for a model of nothing but text."""
    if model.config.get_text_config() is model.config:
        return ""
    decoder = model.get_decoder()
    return next(f"{name}." for name, part in model.named_modules() if part is decoder)


def left_off(model: Any) -> tuple[str, ...]:
    """The name prefixes of the modules that `drop_the_rest` removed, in the model as people load it."""
    if not prefix(model):
        return ()
    outer = model.base_model
    inside = next(f"{name}." if name else "" for name, part in model.named_modules() if part is outer)
    return tuple(f"{inside}{name}." for name, part in outer._modules.items() if part is None)


def drop_the_rest(model: Any) -> list[str]:
    """Remove everything from a model that text does not pass: the vision part. Returns the names of what was removed."""
    if not prefix(model):
        return []
    outer, decoder = model.base_model, model.get_decoder()
    dropped = [
        name
        for name, part in outer.named_children()
        if all(module is not decoder for module in part.modules()) and any(True for _ in part.parameters())
    ]
    for name in dropped:
        setattr(outer, name, None)
    return dropped
