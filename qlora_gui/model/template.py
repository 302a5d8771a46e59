"""Chat templates: a plain one for bases that bring none, and what ends an answer under a template."""

import hashlib
from typing import Any

STOP = "\n### User:"
PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ '### User:\n' + message['content'] + '\n\n' }}"
    "{% else %}{{ '### Assistant:\n' + message['content'] + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)


def ensure(tokenizer: Any) -> bool:
    """Give the tokenizer the plain template if it has none. Returns whether it did."""
    if tokenizer.chat_template:
        return False
    tokenizer.chat_template = PLAIN
    return True


def stop_strings(template: str) -> list[str]:
    """Texts that end an answer besides EOS: a base that never learned the plain template runs on into a user turn."""
    return [STOP] if template == PLAIN else []


def digest(template: str) -> str:
    """The first 12 hex digits of the template's SHA-256: the same under training and chat, or something is wrong."""
    return hashlib.sha256(template.encode()).hexdigest()[:12]
