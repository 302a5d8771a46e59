"""Runs of very few steps, and tokens without an embedding: real runs on a small model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from qlora_gui.config import make
from qlora_gui.data import load, tokenization
from qlora_gui.data.chat import Chat
from qlora_gui.errors import UserError
from qlora_gui.inference.columns import Columns
from qlora_gui.inference.sampling import Decoding
from qlora_gui.models import base as bases
from qlora_gui.models import vocabulary
from qlora_gui.runs import launch
from qlora_gui.runs.events import Silent
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.training import preview, setup
from tests.conftest import TINY, train, wait_until_ended


def rates(run: Run) -> list[float]:
    return [event["learning_rate"] for event in run.events()[0] if event["kind"] == "step"]


def moved(run: Run) -> float:
    """How far the adapter is from doing nothing: B begins at zero."""
    weights = load_file(run.path / "adapter_model.safetensors")
    return max(float(part.abs().max()) for name, part in weights.items() if "lora_B" in name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "scheduler", "warmup", "expected"),
    [
        (1, "cosine", 0.03, [1]),
        (1, "constant_with_warmup", 0.9, [1]),
        (2, "linear", 0.03, [0, 1]),
        (3, "cosine", 0.99, [0, 0.5, 1]),
    ],
)
def test_the_last_step_of_the_fewest_trains(
    llama: Path, store: RunStore, steps: int, scheduler: str, warmup: float, expected: list[float]
) -> None:
    run = train(store, base_model=str(llama), max_steps=steps, lr_scheduler=scheduler, warmup_ratio=warmup)
    assert rates(run) == pytest.approx([3e-3 * share for share in expected])
    assert moved(run) > 1e-3
    [note] = [event["text"] for event in run.events()[0] if event["kind"] == "note"]
    assert f"This run has {steps} optimizer step" in note and note in run.log_file.read_text()


@pytest.mark.slow
def test_one_step_by_epochs_trains_too_and_a_longer_run_is_warmed_up_as_ever(llama: Path, store: RunStore) -> None:
    run = train(store, base_model=str(llama), max_steps=0, epochs=0.01, gradient_accumulation=4)
    assert len(rates(run)) == 1 and moved(run) > 1e-3
    run = train(store, base_model=str(llama), max_steps=31, warmup_ratio=0.1, eval_steps=100)
    assert rates(run)[:5] == pytest.approx([0, 3e-3 / 4, 3e-3 / 2, 3e-3 * 3 / 4, 3e-3])
    assert not [event for event in run.events()[0] if event["kind"] == "note"]


def with_a_token_more(llama: Path, folder: Path, **tokens: Any) -> Path:
    """The small base with tokens added to its tokenizer and none to its embeddings, as many a recipe leaves it."""
    shutil.copytree(llama, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(tokens)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("which", ["pad", "data"])
def test_a_token_without_an_embedding_is_a_sentence(llama: Path, store: RunStore, tmp_path: Path, which: str) -> None:
    """Before the run by config.json, in the page and in the child; and by the weights, where that file says too much."""
    added: dict[str, Any] = {"pad_token": "[PAD]"} if which == "pad" else {"additional_special_tokens": ["<|new|>"]}
    base = with_a_token_more(llama, tmp_path / "base", **added)
    said = f"The tokenizer of '{base}' has the token '{'[PAD]' if which == 'pad' else '<|new|>'}' with id "
    mend = "set pad_token in its tokenizer_config.json" if which == "pad" else "take that token out of the text"
    config = make(TINY | {"base_model": str(base), "system_prompt": "<|new|>", "special_tokens": "control"})
    with pytest.raises(UserError) as error:
        preview.preview(config)
    assert str(error.value).startswith(said) and mend in str(error.value)
    run = store.create(config)
    launch.start(run, store)
    assert wait_until_ended(run) == "failed"
    end = run.events()[0][-1]
    assert end["message"] == str(error.value) and end["bug"] is False
    assert not [event for event in run.events()[0] if event["kind"] in ("base", "eval", "step")]

    found, tokenizer = bases.locate(str(base)), bases.load_tokenizer(base)
    rows, _ = tokenization.encode_all(load.load("demo", limit=3).train, Chat(tokenizer, control=True), 192, "<|new|>")
    with pytest.raises(UserError) as again:
        setup.prepare(config, found, tokenizer, rows, torch.device("cpu"), Silent(), print)
    assert str(again.value) == str(error.value)


@pytest.mark.parametrize("which", ["pad", "template"])
def test_a_token_without_an_embedding_is_a_sentence_in_compare(llama: Path, tmp_path: Path, which: str) -> None:
    added: dict[str, Any] = {"pad_token": "[PAD]"} if which == "pad" else {"additional_special_tokens": ["<|new|>"]}
    base = with_a_token_more(llama, tmp_path / "base", **added)
    if which == "template":
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.chat_template = "<|new|>" + str(tokenizer.chat_template)
        tokenizer.save_pretrained(base)
    columns = Columns()
    columns.load((str(base), "", "nf4", True), [], lambda text: None)
    question = [{"role": "user", "content": "Hello"}]
    mend = "set pad_token in its tokenizer_config.json" if which == "pad" else "take that token out of the text"
    with pytest.raises(UserError, match=mend):
        columns.answer([question], Decoding(greedy=True, max_new_tokens=4), lambda event: None, lambda: False)


def test_the_vocabulary_is_that_of_the_text_part(tmp_path: Path) -> None:
    assert vocabulary.size(tmp_path) is None
    for config, expected in (
        ({"vocab_size": 5}, 5),
        ({"text_config": {"vocab_size": 7}, "vocab_size": 5}, 7),
        ({"text_config": {}, "vocab_size": 5}, 5),
        ([], None),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert vocabulary.size(tmp_path) == expected


def test_rows_within_the_vocabulary_pass(llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    vocabulary.check([], tokenizer, len(tokenizer), "llama")
    vocabulary.check([], tokenizer, None, "llama")
