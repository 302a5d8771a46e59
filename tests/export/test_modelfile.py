"""Ollama's template gives the text that the trained template gives, for conversations that nobody took it apart with."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from qlora_gui.data.chat import Chat
from qlora_gui.data.chat_template import PLAIN
from qlora_gui.export import modelfile
from tests import tokenizers
from tests.matrix.templates import TEMPLATES

TALKS = [
    [{"role": "user", "content": "Is it broken?"}],
    [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three\nlines"},
        {"role": "assistant", "content": "Four"},
        {"role": "user", "content": "Five"},
    ],
]


def same(chat: Chat) -> bool:
    """Whether it could be taken apart; then it is held against the template on other conversations."""
    taken = modelfile.pieces(chat)
    if taken is None:
        return False
    text = chat.probe.render(TALKS[0], None, True)
    bos = "" if taken.bos or not modelfile._adds_bos(chat.tokenizer) else modelfile._leading(chat.tokenizer, text)
    for talk in TALKS:
        assert bos + taken.render(talk, True) == chat.probe.render(talk, None, True)
        if taken.system:
            asked = [{"role": "system", "content": "Be brief."}, *talk]
            assert bos + taken.render(asked, True) == chat.probe.render(asked, None, True)
    return True


@pytest.mark.parametrize("name", ["chatml", "llama3", "phi3"])
def test_templates_are_taken_apart(name: str, llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    assert same(Chat(tokenizer, TEMPLATES[name].text))


@pytest.mark.parametrize(("family", "plain"), [("llama3", True), ("gemma3", False)])
def test_real_templates(family: str, plain: bool) -> None:
    """Gemma writes a system message into the question: Ollama's language would lose it, so there is no template then."""
    assert same(Chat(AutoTokenizer.from_pretrained(tokenizers.fetch(family)))) == plain


def test_the_plain_template_and_its_stop(bloom: Path) -> None:
    chat = Chat(AutoTokenizer.from_pretrained(bloom), PLAIN)
    assert same(chat)
    text = modelfile.of_model("x.gguf", chat)
    assert text.startswith('FROM ./x.gguf\nTEMPLATE """') and "{{ range .Messages }}" in text
    assert 'PARAMETER stop "</s>"' in text and "PARAMETER temperature" in text


def test_a_template_that_does_more_is_left_out_and_said(llama: Path) -> None:
    counting = "{% for m in messages %}{{ loop.index }}:{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    chat = Chat(AutoTokenizer.from_pretrained(llama), counting)
    assert modelfile.pieces(chat) is None and "does more than Ollama's language" in modelfile.of_model("x.gguf", chat)
