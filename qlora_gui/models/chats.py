"""The chat of a base: its tokenizer, the template and thinking that a run asked for, and where its answers end."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from qlora_gui import plain_files
from qlora_gui.config import RunConfig
from qlora_gui.data import chat_template, reasoning
from qlora_gui.data.chat import Chat
from qlora_gui.data.formats import Example
from qlora_gui.errors import UserError
from qlora_gui.files import json_object
from qlora_gui.models import base as bases

SETTINGS = "chat_template_settings.json"  # beside an adapter: the settings of its template, as transformers takes them
_MOST_TOKENS = 2**31
Thinking = Literal["auto", "on", "off"]


def for_run(path: str | Path, config: RunConfig, examples: Sequence[Example]) -> Chat:
    """The chat that a run is trained with on these examples. Raises UserError for a template that cannot be had."""
    with_tools = 2 * sum(bool(example.get("tools")) for example in examples) > len(examples)
    tokenizer = bases.load_tokenizer(path, config.chat_template, with_tools)
    ends = base_ends(path)
    chat = Chat(tokenizer, ends=ends, control=config.control)
    thinking = _resolved(config.thinking, chat, examples)
    return chat if thinking is None else Chat(tokenizer, thinking=thinking, ends=ends, control=config.control)


def _resolved(asked: Thinking, chat: Chat, examples: Sequence[Example]) -> bool | None:
    """On or off, or None where the template knows no such setting. `auto` is on if most answers carry reasoning.

    Raises UserError where it is asked for and the template does not know it.
    """
    if not chat.probe.knows_thinking:
        if asked == "on":
            raise UserError("The chat template of this base has no setting for thinking: leave thinking at auto.")
        return None
    if asked != "auto":
        return asked == "on"
    return reasoning.share_with_reasoning(example["messages"] for example in examples if "messages" in example) > 0.5


def base_ends(path: str | Path) -> frozenset[int]:
    """The tokens that a base's generation_config.json, or else its config.json, says that generation ends at."""
    generation = json_object(Path(path) / "generation_config.json")
    config = json_object(Path(path) / "config.json")
    inner = config.get("text_config")
    for values in (generation, config, inner if isinstance(inner, dict) else {}):
        named = values.get("eos_token_id")
        listed = [named] if isinstance(named, int) else named if isinstance(named, list) else []
        if ids := frozenset(number for number in listed if type(number) is int and 0 <= number < _MOST_TOKENS):
            return ids
    return frozenset()


def settings_of(chat: Chat) -> dict[str, Any]:
    """What an adapter's folder keeps of its chat besides the template; {} where thinking cannot be set."""
    if chat.thinking is None:
        return {}
    return {"thinking": chat.thinking, **dict.fromkeys(chat.probe.switches, chat.thinking)}


def thinking_beside(folder: Path) -> bool | None:
    """The thinking that an adapter was trained with, where its folder says so."""
    settings = json_object(folder / SETTINGS)
    value = settings.get("thinking", settings.get("enable_thinking"))
    return value if isinstance(value, bool) else None


def template_beside(folder: Path) -> str | None:
    """The chat template that lies beside an adapter, the default one of several; None where there is none.

    Raises UserError for one that is no plain file, or beyond all measure.
    """
    try:
        if (folder / "chat_template.jinja").is_file():
            return plain_files.read_text(folder / "chat_template.jinja", plain_files.MOST_CONFIG)
    except plain_files.StrangeFile as error:
        raise UserError(f"The chat template of '{folder.name}' cannot be read: {error}.") from None
    except (OSError, ValueError):
        return None
    template = json_object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):  # as a tokenizer_config.json lists several
        template = {str(entry.get("name")): str(entry.get("template")) for entry in template if isinstance(entry, dict)}
    try:
        return chat_template.choose(template) if template else None
    except UserError:
        return None
