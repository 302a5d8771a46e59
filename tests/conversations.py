"""Conversations under the families' real templates: what is learned of them."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AddedToken, AutoTokenizer

from qlora_gui.data import chat_template, tokenization
from qlora_gui.data.chat import Chat
from qlora_gui.models.base import load_tokenizer
from tests import tokenizers

ALTERNATING = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
)


# Traits: the end of the newest turn differs from that of earlier ones, and EOS follows it.
PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


# Traits: the generation prompt opens a thought, and reasoning is dropped from every answer.
R1 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% elif m['role'] == 'system' %}{{ m['content'] }}"
    "{% else %}{{ '<|Assistant|>' + m['content'].split('</think>')[-1].strip() + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)


# Traits: the system turn stands in the last user turn, and only while that is the newest; roles have to alternate.
NEMO = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set messages = messages[1:] %}"
    "{% endif %}" + ALTERNATING + "{% if m['role'] == 'user' %}{% if loop.last and system is defined %}"
    "{{ '[INST]' + system + '\n\n' + m['content'] + '[/INST]' }}{% else %}{{ '[INST]' + m['content'] + '[/INST]' }}"
    "{% endif %}{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)


# Traits: no system turns, and a space between the marks and the words.
GEMMA2 = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + ALTERNATING
    + "{{ '<start_of_turn>' + m['role'] + '\n' + m['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>assistant\n' }}{% endif %}"
)


# Traits: nothing ends a turn but the next one.
GLM = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


# Traits: marks of a channel between prompt and answer, another end for the newest turn.
HARMONY = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% if m.thinking is defined and loop.last %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}"
    "{% endif %}{{ '<|start|>assistant<|channel|>final<|message|>' + m['content'] }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{% else %}{{ '<|start|>' + m['role'] + '<|message|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)


# Traits: the generation prompt ends in a space.
SPACED = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


HARD = {
    "phi": (PHI, ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")),
    "r1": (R1, ("<|User|>", "<|Assistant|>")),
    "nemo": (NEMO, ("[INST]", "[/INST]")),
    "gemma2": (GEMMA2, ("<start_of_turn>", "<end_of_turn>")),
    "harmony": (HARMONY, ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")),
    "spaced": (SPACED, ()),
    "glm": (GLM, ("<|user|>", "<|assistant|>", "<|system|>")),
}


def real(family: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tokenizers.fetch(family))
    tokenizer.chat_template = chat_template.choose(tokenizer.chat_template)
    return tokenizer


@pytest.fixture(scope="module")
def hard(llama: Path) -> dict[str, Chat]:
    """A chat for each template of HARD, with its marks as special tokens."""
    found = {}
    for name, (template, marks) in HARD.items():
        tokenizer = load_tokenizer(llama)
        tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(mark, special=True) for mark in marks]})
        ends = [tokenizer.convert_tokens_to_ids("<|user|>")] if name == "glm" else []
        thinking = False if name == "r1" else None
        found[name] = Chat(tokenizer, template, thinking, ends)
    return found


def learned(rows: list[tokenization.Encoded], tokenizer: Any) -> list[str]:
    """What is learned, one text for each unbroken stretch."""
    stretches: list[list[int]] = [[]]
    for row in rows:
        for label in [*row.labels, tokenization.IGNORED]:
            if label == tokenization.IGNORED:
                stretches.append([])
            else:
                stretches[-1].append(label)
    return [tokenizer.decode(stretch) for stretch in stretches if stretch]


TOOLS = [{"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": {}}}]
