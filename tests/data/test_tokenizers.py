"""The fetched tokenizers are the families' own: fast, with their template, and they cut text as their file says."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests import tokenizers

TEXT = "Die Größe der Kiste:\n\n  12 345,67 m³ — naïve\tcafé 東京 🚚\n<|im_end|> don't.  "
TURNS = [
    {"role": "user", "content": "Where is my parcel?"},
    {"role": "assistant", "content": "At the depot."},
    {"role": "user", "content": "Since when?"},
]
# What the template writes before an answer, and the tokenizer's own end of text.
BEGINS = {
    "qwen3": ("<|im_start|>assistant\n", "<|im_end|>"),
    "gemma3": ("<start_of_turn>model\n", "<end_of_turn>"),
    "llama3": ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|end_of_text|>"),
    "llama3_1": ("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
}


@pytest.mark.parametrize("family", tokenizers.CHECKSUMS)
def test_it_cuts_text_as_its_file_says(family: str) -> None:
    folder = tokenizers.fetch(family)
    own = AutoTokenizer.from_pretrained(folder)
    assert own.is_fast
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    assert own(TEXT, add_special_tokens=False)["input_ids"] == ids
    assert own.decode(ids, clean_up_tokenization_spaces=False).strip() == TEXT.strip()


@pytest.mark.parametrize("family", BEGINS)
def test_it_has_its_template_and_end_of_text(family: str) -> None:
    begins, end = BEGINS[family]
    own = AutoTokenizer.from_pretrained(tokenizers.fetch(family))
    text = own.apply_chat_template(TURNS, tokenize=False, add_generation_prompt=True)
    assert text.endswith(begins)
    assert text.count(begins) == 2
    assert own.eos_token == end


def test_llama2_carries_no_template() -> None:
    assert AutoTokenizer.from_pretrained(tokenizers.fetch("llama2")).chat_template is None


def test_a_changed_archive_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLORA_GUI_CACHE", str(tmp_path))
    monkeypatch.setattr(tokenizers, "_download", lambda address: b"something else")
    with pytest.raises(AssertionError, match="another checksum"):
        tokenizers.fetch.__wrapped__("qwen3")
    assert not (tmp_path / "tokenizers" / "qwen3-3.7.2").exists()


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_without_the_registry_it_is_skipped_but_not_in_ci(
    ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("QLORA_GUI_CACHE", str(tmp_path))
    monkeypatch.setattr(tokenizers, "registry", lambda: "http://127.0.0.1:9")
    with pytest.raises(outcome, match="npm's registry does not give it"):
        tokenizers.fetch.__wrapped__("qwen3")
