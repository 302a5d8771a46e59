"""Whole runs of small random models with the real tokenizers and templates of their families: train, probe, compare,
evaluate, and plain PEFT, on reported rows whose every answer is the same sentence.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    Gemma3TextConfig,
    LlamaConfig,
    Qwen3Config,
)

from qlora_gui.evaluation import job
from qlora_gui.evaluation import run as evaluate
from qlora_gui.inference import protocol
from qlora_gui.inference.client import CompareClient
from qlora_gui.inference.sampling import Decoding
from qlora_gui.runs.store import Run, RunStore
from tests import tokenizers
from tests.conftest import SHARED_DATA, last, need, train

ROWS = SHARED_DATA.parent / "reports" / "same_answer.jsonl"
ANSWER = "The parcel never came."
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
# family: (its tokenizer, config, the ends its generation_config names, EOS of its tokenizer where it is another one)
FAMILIES: dict[str, tuple[str, Any, list[str], str]] = {
    "qwen3": ("qwen3", lambda **ids: Qwen3Config(**SIZES, head_dim=16, **ids), ["<|im_end|>", "<|endoftext|>"], ""),
    # As the base models of Qwen are published: the template ends a turn with another mark than the EOS.
    "qwen3-base": ("qwen3", lambda **ids: Qwen3Config(**SIZES, head_dim=16, **ids), ["<|endoftext|>"], "<|endoftext|>"),
    "gemma3": (
        "gemma3",
        lambda **ids: Gemma3TextConfig(
            **SIZES, head_dim=16, sliding_window=32, layer_types=["sliding_attention", "full_attention"], **ids
        ),
        ["<eos>", "<end_of_turn>"],
        "",
    ),
    "llama3": ("llama3", lambda **ids: LlamaConfig(**SIZES, **ids), ["<|end_of_text|>"], ""),
}

# Gemma's embeddings are scaled up by the root of the hidden size: a random base is surer of its nonsense, and learns slower.
SPREAD, RATE = {"gemma3": 0.3}, {"gemma3": 1e-2}


def make_model(family: str, folder: Path) -> Path:
    """A small random model of a family, with its real tokenizer and the ends that its generation_config names."""
    tokenizer_name, config, ends, eos = FAMILIES[family]
    folder.mkdir()
    tokenizers.copy(tokenizer_name, folder)
    if eos:
        settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"eos_token": eos}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    ids = [tokenizer.convert_tokens_to_ids(end) for end in ends]
    model = AutoModelForCausalLM.from_config(
        config(vocab_size=-(-len(tokenizer) // 64) * 64, eos_token_id=ids, bos_token_id=tokenizer.bos_token_id),
        dtype=torch.bfloat16,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, SPREAD.get(family, 0.5) if len(parameter) > 10_000 else 0.2)
    model.generation_config.eos_token_id = ids
    model.save_pretrained(folder)
    return folder


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in ("qwen3", "gemma3") else pytest.mark.slow) for name in FAMILIES],
)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    need(ROWS.is_file(), "the reported inputs are not beside this checkout")
    folder = tmp_path_factory.mktemp(request.param)
    base = make_model(request.param, folder / "base")
    store = RunStore(folder / "adapters")
    knobs = {
        "max_steps": 30,
        "learning_rate": RATE.get(request.param, 5e-3),
        "batch_size": 4,
        "eval_steps": 30,
        "save_steps": 30,
    }
    knobs |= {"eval_fraction": 0.25, "probe_prompts": 2, "probe_tokens": 16, "dropout": 0.0, "rank": 16, "alpha": 32}
    return train(store, base_model=str(base), dataset=str(ROWS), name=request.param, **knobs)


@pytest.mark.slow
def test_a_run_learns_answers_that_end_wherever_they_are_asked_for(run: Run) -> None:
    events = run.events()[0]
    data = last(events, "data")
    assert data is not None and data["facts"]["turns"]["learned"] == data["facts"]["turns"]["present"] > 0
    assert data["facts"]["eos_supervised"] == 1.0 and data["facts"]["thinking"] is (False if "qwen" in run.id else None)
    probe = last(events, "probe")
    assert probe is not None and [(one["answer"], one["ended"]) for one in probe["answers"]] == [(ANSWER, True)] * 2

    question = [{"role": "user", "content": "Where is order A-77?"}]
    client = CompareClient()
    try:
        base = run.config()
        columns = client.columns(base.base_model, "", [run.path])
        assert (
            columns[1]["thinking"] == columns[0]["thinking"] == ("off" if "qwen" in run.id else "as the template does")
        )
        _, answer = protocol.collect(client.answer([question] * 2, Decoding(greedy=True, max_new_tokens=16)), 2)
        evaluated = evaluate.evaluate(
            [run.path], None, job.Settings(max_new_tokens=16), lambda text: None, client=client
        )
    finally:
        client.close()
    assert (answer.text, answer.ended) == (ANSWER, "eos")
    prompt = answer.prompt

    (found,) = evaluated["evaluations"]
    assert found["texts"]["adapter"]["ended_by_eos"] == 1.0 and found["texts"]["adapter"]["exact"] == 1.0
    assert found["eos"]["adapter"] > 0.9 and found["loss"]["adapter"] < 0.1 < found["loss"]["base"]
    assert last(events, "eval")["loss"] == pytest.approx(found["loss"]["adapter"], abs=0.02)  # type: ignore[index]

    assert _by_plain_peft(run, prompt) == ANSWER


def _by_plain_peft(run: Run, prompt: str) -> str:
    """What transformers and PEFT answer to the very prompt, with the tokenizer that was saved beside the adapter."""
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    base = AutoModelForCausalLM.from_pretrained(
        run.config().base_model, quantization_config=quantization, dtype=torch.bfloat16
    )
    model = PeftModel.from_pretrained(base, str(run.path)).eval()
    for part in model.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    tokenizer = AutoTokenizer.from_pretrained(run.path)
    question = [{"role": "user", "content": "Where is order A-77?"}]
    settings = json.loads((run.path / "chat_template_settings.json").read_text()) if "qwen" in run.id else {}
    asked = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True, **settings)
    assert asked == prompt  # who follows the adapter's folder asks what was trained
    ids = torch.tensor([tokenizer(asked, add_special_tokens=False)["input_ids"]])
    end = tokenizer.convert_tokens_to_ids({"g": "<end_of_turn>", "l": "<|eot_id|>", "q": "<|im_end|>"}[run.id[0]])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=16, do_sample=False, eos_token_id=end
    )
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
