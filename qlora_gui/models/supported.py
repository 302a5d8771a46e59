"""Bases and settings that cannot work, recognized from config.json before anything is loaded."""

from pathlib import Path
from typing import Any

from qlora_gui import families
from qlora_gui.errors import UserError, first_line
from qlora_gui.files import json_object
from qlora_gui.memory import unsupported


def check(folder: str | Path, attention: str = "auto") -> None:
    """Raise UserError for a base that cannot be trained in 4 bits, or that does not have this kind of attention."""
    from transformers import AutoConfig

    from qlora_gui.models import text_part

    folder = Path(folder)
    unsupported.check(json_object(folder / "config.json"), str(folder))  # a damaged one is for transformers to report
    try:
        config: Any = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # a config.json may hold anything, and its checks raise what they like
        raise UserError(f"The base model in '{folder}' cannot be loaded: {first_line(error)}") from error
    if config.is_encoder_decoder:
        raise UserError(
            f"The base model in '{folder}' is made of an encoder and a decoder, which is not trained here: choose a base "
            "that is a decoder alone."
        )
    unsupported.check_type(config.get_text_config().model_type, str(folder))
    check_attention(text_part.model_class(config)[0], attention)


def check_attention(model_class: type[Any], choice: str) -> None:
    """Raise UserError where sdpa is chosen and the base has none, neither transformers' nor this program's own."""
    own = families.find(model_class.config_class.model_type).own_attention
    if choice == "sdpa" and not model_class._supports_sdpa and not own:
        raise UserError(
            f"This base ({model_class.__name__}) has no attention through sdpa: set attention to auto or eager."
        )
