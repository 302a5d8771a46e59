"""A column that is a whole model: merged or plain, it answers as transformers does, and takes turns where memory is short."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from qlora_gui.cli.main import main
from qlora_gui.data.formats import Example
from qlora_gui.errors import UserError
from qlora_gui.inference import evidence, protocol
from qlora_gui.inference.columns import Columns
from qlora_gui.inference.sampling import Decoding
from qlora_gui.inference.whole_model import WholeModel
from qlora_gui.runs.store import Run

GREEDY = Decoding(greedy=True, max_new_tokens=12)
PROMPT = [{"role": "user", "content": "Where is order A-17? I have waited for two weeks now!"}]


@pytest.fixture(scope="module")
def merged(bloom: Path, bloom_runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base with the biases and LoRA of one run in it, by PEFT."""
    folder = tmp_path_factory.mktemp("merged") / "bloom-merged"
    base = AutoModelForCausalLM.from_pretrained(bloom, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(bloom_runs["all"].path)).merge_and_unload()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(bloom_runs["all"].path).save_pretrained(folder)
    return folder


def answers(columns: Columns) -> list[str]:
    events: list[protocol.Event] = []
    count = len(columns.adapters) + len(columns.wholes) + 1
    columns.answer([PROMPT] * count, GREEDY, events.append, lambda: False)
    return [answer.text for answer in protocol.collect(events, count)]


@torch.no_grad()
def by_transformers(folder: Path) -> str:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(PROMPT, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    config = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=1)
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).split("\n### User:")[0]


def test_it_answers_beside_base_and_adapters_in_any_order(
    bloom: Path, bloom_runs: dict[str, Run], merged: Path
) -> None:
    columns = Columns()
    key = (str(bloom), "", "nf4", True)
    adapter = bloom_runs["none"].path
    proofs = columns.load(key, [adapter], lambda text: None)
    base, alone = answers(columns)
    for folders in ([adapter, merged], [merged, adapter]):
        proofs = columns.load(key, folders, lambda text: None)
        assert [proof["name"] for proof in proofs] == ["base", *(folder.name for folder in folders)]
        found = dict(zip((proof["name"] for proof in proofs), answers(columns), strict=True))
        assert found == {"base": base, adapter.name: alone, merged.name: by_transformers(merged)}
        assert columns.base is not None
    whole = next(proof for proof in proofs if proof["name"] == merged.name)
    assert "whole model" in whole["weights"] and "memory" not in whole
    request = protocol.Evaluate([dict(Example(messages=[*PROMPT, {"role": "assistant", "content": "x"}], row=0))])
    with pytest.raises(UserError, match="only adapters are evaluated"):
        evidence.evaluate(columns, request, lambda event: None, lambda: False)


def test_it_takes_turns_with_a_base_that_leaves_no_memory(
    bloom: Path, bloom_runs: dict[str, Run], merged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = Columns()
    monkeypatch.setattr(WholeModel, "fits", lambda whole: columns.base is None)
    proofs = columns.load((str(bloom), "", "nf4", True), [bloom_runs["none"].path, merged], lambda text: None)
    assert "takes turns" in proofs[2]["memory"]
    first = answers(columns)
    assert columns.base is None, "the base has left"
    assert columns.wholes[2].model is not None
    assert answers(columns) == first, "and it comes back"


def test_compare_on_the_command_line(
    bloom: Path, bloom_runs: dict[str, Run], merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text(PROMPT[0]["content"] + "\n")
    words = ["compare", "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "out.json")]
    words += ["--max-new-tokens", "12", "--adapters", str(merged)]
    assert main([*words, str(bloom_runs["none"].path)]) == 0
    out: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    assert [column["name"] for column in out["columns"]] == ["base", "bloom-merged", "bloom-none"]
    assert out["prompts"][0]["answers"][1] == by_transformers(merged)
    assert (
        main(words) == 2
        and "a whole model, which can be named as a base, or be compared with one" in capsys.readouterr().err
    )
    assert main([*words, "--base", str(bloom)]) == 0
    assert main(["serve", str(merged)]) == 2 and "serve it by itself" in capsys.readouterr().err
