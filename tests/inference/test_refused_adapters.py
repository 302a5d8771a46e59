"""Comparing where it is easy to go wrong: unequal conversations, refused adapters, a base that was nearly spoiled."""

import glob
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import GenerationConfig

from qlora_gui.cli import compare
from qlora_gui.data import chat_template
from qlora_gui.errors import UserError
from qlora_gui.inference import peft_lane, protocol
from qlora_gui.inference.client import CompareClient
from qlora_gui.inference.columns import Columns
from qlora_gui.inference.sampling import Decoding
from qlora_gui.models import base as bases
from tests.adapters import made_adapter

GREEDY = Decoding(greedy=True, max_new_tokens=24)
TURNS = [
    ("My parcel came late.", "I am sorry!", "And broken."),
    ("Where is order A-17? I have waited for two weeks and nobody writes me anything at all.",),
    ("hi", "Hello.", "hi", "Hello again, what can I do?", "My kettle"),
]
CONVERSATIONS = [
    [{"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(texts)] for texts in TURNS
]


@pytest.fixture(scope="module")
def made(bloom: Path, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Two unlike adapters a base, with no run's files beside them."""
    root = tmp_path_factory.mktemp("made")
    return {
        "bloom": [
            made_adapter(bloom, root / "b0", 1, r=3, lora_alpha=4, bias="all", target_modules=["query_key_value"]),
            made_adapter(bloom, root / "b1", 2, r=7, lora_alpha=5, bias="lora_only", target_modules="all-linear"),
        ],
        "llama": [
            made_adapter(llama, root / "l0", 3, r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"]),
            made_adapter(llama, root / "l1", 4, r=6, lora_alpha=6, use_rslora=True, target_modules="all-linear"),
        ],
    }


@torch.no_grad()
def alone(base: Path, adapter: Path | None, conversations: list[list[dict[str, str]]]) -> list[str]:
    """What a freshly loaded model says to each conversation by itself, by plain transformers and PEFT."""
    tokenizer = bases.load_tokenizer(base)
    model = bases.load_model(str(base), "nf4", True, torch.device("cpu"), torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, str(adapter)).eval()
    config = GenerationConfig(max_new_tokens=24, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=1)
    said = []
    for messages in conversations:
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
        text = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        said.append(str(text).split(chat_template.STOP)[0])
    return said


def answers(columns: Columns, conversations: list[list[dict[str, str]]]) -> list[str]:
    events: list[protocol.Event] = []
    columns.answer(conversations, GREEDY, events.append, lambda: False)
    return [answer.text for answer in protocol.collect(events, len(conversations))]


@pytest.mark.parametrize("kind", ["bloom", "llama"])
def test_columns_with_conversations_of_their_own_say_what_they_would_alone(
    kind: str, made: dict[str, list[Path]], request: pytest.FixtureRequest
) -> None:
    base = request.getfixturevalue(kind)
    columns = Columns()
    columns.load((str(base), "", "nf4", True), made[kind], lambda text: None)
    expected = [alone(base, adapter, CONVERSATIONS) for adapter in (None, *made[kind])]
    assert len({tuple(texts) for texts in expected}) == 3, "the columns should say different things"
    for shift in range(3):
        places = [(shift + column) % 3 for column in range(3)]
        said = answers(columns, [CONVERSATIONS[place] for place in places])
        assert said == [texts[place] for texts, place in zip(expected, places, strict=True)]


def test_after_a_refusal_there_are_no_columns_and_the_base_stays(bloom: Path, made: dict[str, list[Path]]) -> None:
    columns, key = Columns(), (str(bloom), "", "nf4", True)
    columns.load(key, made["bloom"], lambda text: None)
    base = columns.base
    with pytest.raises(UserError, match="was trained on"):
        columns.load(key, [made["bloom"][0], made["llama"][0]], lambda text: None)
    with pytest.raises(UserError, match="choose one first"):
        answers(columns, CONVERSATIONS)
    columns.load(key, made["bloom"], lambda text: None)
    assert columns.base is base
    assert answers(columns, CONVERSATIONS)[0] == alone(bloom, None, CONVERSATIONS[:1])[0]


def test_peft_failing_half_way_leaves_the_base_as_it_was(
    bloom: Path, made: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PeftModel.from_pretrained

    def half(model: Any, *args: Any, **kwargs: Any) -> None:
        real(model, *args, **kwargs)
        raise ValueError("the second half\nis missing")

    columns, key = Columns(), (str(bloom), "", "nf4", True)
    columns.load(key, [], lambda text: None)
    assert columns.base
    before = {name: id(part) for name, part in columns.base.model.named_modules()}
    monkeypatch.setattr(peft_lane.PeftModel, "from_pretrained", half)
    with pytest.raises(UserError, match=r"'b0' cannot be compared: PEFT refuses it \(the second half\)"):
        columns.load(key, made["bloom"], lambda text: None)
    assert {name: id(part) for name, part in columns.base.model.named_modules()} == before
    monkeypatch.undo()
    columns.load(key, made["bloom"], lambda text: None)
    assert answers(columns, CONVERSATIONS)[0] == alone(bloom, None, CONVERSATIONS[:1])[0]


def test_a_base_that_was_spoiled_is_loaded_anew(
    bloom: Path, made: dict[str, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PeftModel.from_pretrained

    def spoil(model: Any, *args: Any, **kwargs: Any) -> Any:
        model.transformer.ln_f.weight.data.mul_(1.5)
        return real(model, *args, **kwargs)

    columns, key = Columns(), (str(bloom), "", "nf4", True)
    monkeypatch.setattr(peft_lane.PeftModel, "from_pretrained", spoil)
    with pytest.raises(RuntimeError, match="the base changed while the adapter 'b0' was tested"):
        columns.load(key, made["bloom"], lambda text: None)
    monkeypatch.undo()
    columns.load(key, made["bloom"], lambda text: None)
    assert answers(columns, CONVERSATIONS)[0] == alone(bloom, None, CONVERSATIONS[:1])[0]


def edited(adapter: Path, folder: Path, **config: Any) -> Path:
    """A copy of an adapter with changes in its config."""
    folder.mkdir()
    told = json.loads((adapter / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(told))
    (folder / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    return folder


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"init_lora_weights": "OLoRA"}, "'OLoRA' rewrote the base's weights"),
        ({"init_lora_weights": "lora_ga"}, "'lora_ga' rewrote the base's weights"),
        ({"alora_invocation_tokens": [1, 2]}, "it uses alora_invocation_tokens"),
        ({"kasa_config": {"beta": 1.0}}, "it uses kasa_config"),
        ({"target_parameters": ["experts.up"]}, "target_parameters"),
        ({"target_parameters": 5}, "damaged: its target_parameters is 5"),
        ({"target_modules": 5}, "damaged: its target_modules is 5"),
        ({"target_modules": "([a"}, "damaged: its target_modules, "),
        ({"lora_alpha": "much"}, "its lora_alpha or r is no number"),
    ],
)
def test_kinds_of_lora_that_compute_something_else_are_refused(
    bloom: Path, made: dict[str, list[Path]], tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    folder = edited(made["bloom"][0], tmp_path / "odd", **config)
    with pytest.raises(UserError, match=said):
        Columns().load((str(bloom), "", "nf4", True), [folder], lambda text: None)


def test_the_proof_says_what_is_not_proven(bloom: Path, made: dict[str, list[Path]], tmp_path: Path) -> None:
    ours = edited(made["bloom"][0], tmp_path / "ours")
    print_ = bases.fingerprint(bloom)
    (ours / "events.jsonl").write_text(
        json.dumps({"t": 1.0, "kind": "base", "name": "x", "device": "CPU", "fingerprint": print_}) + "\n"
    )
    (ours / "run.json").write_text(json.dumps({"schema": 1, "config": {"quant_type": "fp4"}}))
    proofs = Columns().load((str(bloom), "", "nf4", True), [ours, made["bloom"][1]], lambda text: None)
    fp4 = "trained on fp4 with double quantization, answers on nf4 with double quantization"
    assert [proof.get("warning") for proof in proofs] == [
        None,
        fp4,
        "that it belongs to this base is known by name and shapes only",
    ]
    assert all(float(proof["self_test"].rpartition(" ")[2]) > 0.01 for proof in proofs[1:]), "the adapters do something"


def logs() -> set[str]:
    return set(glob.glob(os.path.join(tempfile.gettempdir(), "qlora-gui-compare-*.log")))


@pytest.mark.slow
def test_a_bug_keeps_its_traceback_and_a_quiet_worker_leaves_no_log(bloom: Path) -> None:
    there = logs()
    client = CompareClient()
    try:
        client.columns(str(bloom), "", [])
        with pytest.raises(RuntimeError, match=r"ValidationError.*more in (\S+)") as caught:
            list(client.answer([CONVERSATIONS[0]], Decoding.model_construct(temperature=-1.0)))
        assert list(client.answer([CONVERSATIONS[0]], GREEDY))[-1] == protocol.Done()
    finally:
        client.close()
    (log,) = logs() - there
    assert log in str(caught.value)
    assert "Traceback" in Path(log).read_text()
    os.unlink(log)
    client.columns(str(bloom), "", [])
    try:
        assert not logs() - there, "where nothing fails, no file is made"
    finally:
        client.close()


def test_a_killed_worker_is_called_killed_even_in_mid_line(tmp_path: Path) -> None:
    client = CompareClient()
    client._start()
    child = client._child
    assert child and child.stdout
    child.kill()
    child.wait()
    child.stdout.close()
    whole, unknown = '{"kind": "text", "column": 0, "text": "Hi"}', '{"kind": "of a later version"}'
    (tmp_path / "half").write_text(f"{whole}\n{unknown}\n{whole[:12]}")
    with (tmp_path / "half").open() as half:
        child.stdout = half
        assert list(client._events()) == [protocol.Text(0, "Hi")]
        assert "ended (it was killed: perhaps memory ran out); ask again to start it anew." in str(client._death())


class _NoClient:
    def __init__(self) -> None:
        raise AssertionError("nothing should be started")


class _Echo:
    """Stands in for the worker: repeats the prompt, and remembers what it was told to load."""

    told: dict[str, Any]

    def columns(self, **told: Any) -> list[dict[str, Any]]:
        _Echo.told = told
        return [{"name": "base", "adapter": None}, {"name": "b0", "adapter": "b0"}]

    def answer(self, conversations: Any, decoding: Decoding) -> Any:
        for column, messages in enumerate(conversations):
            yield protocol.Text(column, messages[-1]["content"])

    def close(self) -> None:
        pass


def test_every_adapter_is_looked_at_before_anything_is_loaded(
    made: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "CompareClient", _NoClient)
    (tmp_path / "prompts").write_text("Hi\n")
    for adapters, out, said in (
        ([made["bloom"][0], tmp_path / "gone"], "out.json", "There is no adapter '.*gone'"),
        (made["bloom"][:1] * 6, "out.json", "6 adapters are too many"),
        (made["bloom"], "no/such/out.json", "cannot be written"),
    ):
        with pytest.raises(UserError, match=said):
            compare.compare_file(adapters, tmp_path / "prompts", tmp_path / out, None, "", GREEDY, lambda text: None)


def test_a_named_base_serves_an_adapter_that_names_none(
    bloom: Path, made: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "CompareClient", _Echo)
    (tmp_path / "prompts").write_text('{"prompt": "one\u2028line"}\n', encoding="utf-8")
    silent = edited(made["bloom"][0], tmp_path / "silent", base_model_name_or_path=None)
    arguments: list[Any] = [[silent], tmp_path / "prompts", tmp_path / "out.json"]
    with pytest.raises(UserError, match="name it with --base"):
        compare.compare_file(*arguments, None, "", GREEDY, lambda text: None)
    compare.compare_file(*arguments, str(bloom), "", GREEDY, lambda text: None)
    assert _Echo.told["base_model"] == str(bloom)
    assert json.loads((tmp_path / "out.json").read_text())["prompts"] == [
        {"prompt": "one\u2028line", "answers": ["one\u2028line"] * 2}
    ]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("\n  \n", "is empty"),
        ('{"prompt": "a"}\n{"prompt"', "prompts line 2 is not JSON"),
        ('{"prompt": "a"}\n\n{"question": "b"}', "prompts line 3 has neither"),
        ('{"messages": [{"role": "user"}]}', "prompts line 1 has neither"),
    ],
)
def test_bad_prompts_are_named_by_file_and_line(tmp_path: Path, body: str, said: str) -> None:
    (tmp_path / "prompts").write_text(body)
    with pytest.raises(UserError, match=said):
        compare.read_prompts(tmp_path / "prompts")


def test_half_a_character_in_a_prompt_is_marked(tmp_path: Path) -> None:
    lines = r'{"prompt": "a \ud83d"}', r'{"messages": [{"role": "user", "content": "\ud83d"}]}'
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    first, second = compare.read_prompts(tmp_path / "prompts.jsonl")
    assert first["prompt"] == "a \ufffd" and second["messages"][0]["content"] == "\ufffd"
