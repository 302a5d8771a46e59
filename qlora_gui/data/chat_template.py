"""Which chat template is used: the base's own, one of several it brings, a file's, or one of this program's."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_gui import plain_files
from qlora_gui.errors import UserError

STOP = "\n### User:"
PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### User:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Assistant:\n' + message['content'] + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OWN = {"plain": PLAIN, "chatml": CHATML}  # the templates that this program brings
_DEFAULT, _WITH_TOOLS = "default", "tool_use"  # names that transformers gives to a base's own templates


def choose(own: Any, choice: str = "", with_tools: bool = False, or_first: bool = False) -> str:
    """The template to use, as Jinja text.

    `own` is what a tokenizer brings: a text, several by name, or nothing (then the plain one is used). `choice` is
    "" for the base's own, a name of one of them, `plain`, `chatml`, or a file. Data with tools take the base's
    template for tools where it has one. Raises UserError for a choice that is neither, and where there is none among
    several without a default, unless `or_first`.
    """
    named: Mapping[str, str] = own if isinstance(own, Mapping) else {}
    if choice in named:
        return named[choice]
    if choice in OWN:
        return OWN[choice]
    if choice:
        return _from_file(choice, named)
    if not own:
        return PLAIN
    if not named:
        return str(own)
    if with_tools and _WITH_TOOLS in named:
        return named[_WITH_TOOLS]
    if _DEFAULT in named:
        return named[_DEFAULT]
    if or_first:
        return next(iter(named.values()))
    raise UserError(f"This base brings several chat templates: set chat_template to one of {', '.join(named)}.")


def check(choice: str) -> None:
    """Raise UserError for a choice that can only be a file, and is none that can be read."""
    if choice not in OWN and ("/" in choice or "\\" in choice or Path(choice).suffix):
        _from_file(choice, {})


def _from_file(choice: str, named: Mapping[str, str]) -> str:
    path = Path(choice).expanduser()
    known = ", ".join([*named, *OWN])
    try:
        text = plain_files.read_text(path, plain_files.MOST_CONFIG, follow=True, encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"The chat template '{choice}' is not UTF-8 text: save it as UTF-8.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"The chat template '{choice}' is none of {known}, and cannot be read as a file ({reason}): check the name."
        ) from None
    if not text.strip():
        raise UserError(f"The chat template '{choice}' is empty: give a Jinja template.")
    return text


def digest(template: str) -> str:
    """The first 12 hex digits of the template's SHA-256: the same under training and chat, or something is wrong."""
    return hashlib.sha256(template.encode()).hexdigest()[:12]
