"""Adapters active on the rows of a clean base: every column's text is that of a model loaded freshly and alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig

from qlora_gui.data.special_tokens import Text
from qlora_gui.errors import UserError
from qlora_gui.inference import adapter_file, clean_base, generate, protocol, worker
from qlora_gui.inference.client import CompareClient
from qlora_gui.inference.columns import Columns
from qlora_gui.inference.multi_lora import BASE, _blocks
from qlora_gui.inference.sampling import Decoding
from qlora_gui.models import base as bases
from qlora_gui.runs.store import Run
from tests.adapters import fresh

GREEDY = Decoding(greedy=True, max_new_tokens=16)
PROMPTS = ["My kettle never came.", "Where is order A-17? I have waited for two weeks now!", "hi"]
MIXES = [("none",), ("all",), ("lora_only", "all"), ("all", "none", "lora_only"), ("all", "all")]


def chat(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def ask(columns: Columns, prompt: str, decoding: Decoding = GREEDY) -> list[str]:
    """The text of every column."""
    events: list[protocol.Event] = []
    count = len(columns.adapters) + 1
    columns.answer([chat(prompt)] * count, decoding, events.append, lambda: False)
    answers = protocol.collect(events, count)
    assert all(answer.ended for answer in answers)
    return [answer.text for answer in answers]


@torch.no_grad()
def fresh_text(model: Any, tokenizer: Any, prompt: str) -> str:
    """Plain transformers: one prompt, greedy, cut as the plain template's stop string says."""
    text = tokenizer.apply_chat_template(chat(prompt), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    config = GenerationConfig(max_new_tokens=16, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=1)
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).split("\n### User:")[0]


@pytest.fixture(scope="module")
def expected(bloom: Path, bloom_runs: dict[str, Run]) -> dict[str, list[str]]:
    """What each model says to each prompt when it is loaded freshly and alone."""
    tokenizer = bases.load_tokenizer(bloom)
    found = {}
    for bias in ("base", *bloom_runs):
        model = fresh(bloom, bloom_runs[bias].path if bias != "base" else None)
        found[bias] = [fresh_text(model, tokenizer, prompt) for prompt in PROMPTS]
    return found


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "in 4 bits"])
def test_every_column_says_what_its_fresh_model_says(
    bloom: Path,
    bloom_runs: dict[str, Run],
    expected: dict[str, list[str]],
    packed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if packed:
        monkeypatch.setattr(clean_base, "unpack_if_it_fits", lambda model: False)
    assert len({tuple(texts) for texts in expected.values()}) == 4, "the models should say different things"
    columns = Columns()
    for mix in MIXES:
        proofs = columns.load((str(bloom), "", "nf4", True), [bloom_runs[bias].path for bias in mix], lambda text: None)
        assert ["unpacked" in proof["quantization"] for proof in proofs] == [not packed] * (len(mix) + 1)
        for number, prompt in enumerate(PROMPTS):
            assert ask(columns, prompt) == [expected[bias][number] for bias in ("base", *mix)], mix


def test_mixed_logits_equal_clean_ones_and_the_base_stays_clean(bloom: Path, bloom_runs: dict[str, Run]) -> None:
    columns = Columns()
    columns.load((str(bloom), "", "nf4", True), [run.path for run in bloom_runs.values()], lambda text: None)
    assert columns.base and columns.multi_lora
    model = columns.base.model
    before = {name: part.clone() for name, part in model.state_dict().items()}
    ids = columns.base.tokenizer("Where is my parcel?", return_tensors="pt").input_ids
    clean = [fresh(bloom, path)(input_ids=ids).logits for path in (None, *(run.path for run in bloom_runs.values()))]
    with columns.multi_lora.activate([BASE, 0, 1, 2]):
        mixed = model(input_ids=ids.expand(4, -1)).logits
    for row, alone in zip(mixed, clean, strict=True):
        assert (row - alone[0]).abs().max() <= 1e-5 * alone.abs().max()
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_rows_read_the_adapters_where_they_lie(bloom: Path, bloom_runs: dict[str, Run]) -> None:
    """Neighbouring adapters are one view, others a view each: copies would double what adapters take."""
    assert [(block.place, block.each, block.adapters) for block in _blocks([BASE, 0, 0, 1, 1, 2, 0])] == [
        (slice(1, 5), 2, slice(0, 2)),
        (slice(5, 6), 1, slice(2, 3)),
        (slice(6, 7), 1, slice(0, 1)),
    ]
    columns = Columns()
    columns.load((str(bloom), "", "nf4", True), [run.path for run in bloom_runs.values()], lambda text: None)
    assert columns.multi_lora
    for stack in columns.multi_lora.stacks.values():
        some = stack.select(slice(1, 3))
        for whole, part in ((stack.a, some.a), (stack.b, some.b), (stack.bias, some.bias)):
            assert (whole is None) == (part is None)
            assert (
                whole is None or part is None or part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
            )


def test_rank_alpha_patterns_and_rslora_are_honoured(llama: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    patterns = {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 5}, "alpha_pattern": {"q_proj": 64, "v_proj": 3}}
    for name, extra in (("plain", patterns), ("rs", {"use_rslora": True} | patterns)):
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, **extra)
        get_peft_model(AutoModelForCausalLM.from_pretrained(llama), config).save_pretrained(tmp_path / name)
    columns = Columns()
    # The self-test at load raises when a column differs from PEFT.
    proofs = columns.load((str(llama), "", "nf4", True), [tmp_path / "plain", tmp_path / "rs"], lambda text: None)
    assert all("equals PEFT's logits" in proof["self_test"] for proof in proofs[1:])


def test_the_self_test_notices_a_wrong_product(bloom: Path, bloom_runs: dict[str, Run], monkeypatch: Any) -> None:
    monkeypatch.setattr(adapter_file, "_scaling", lambda *args: 1.0)
    with pytest.raises(UserError, match="its answers differ from PEFT's"):
        Columns().load((str(bloom), "", "nf4", True), [bloom_runs["none"].path], lambda text: None)


def test_an_error_in_mid_answer_leaves_nothing_behind(
    bloom: Path, bloom_runs: dict[str, Run], expected: dict[str, list[str]]
) -> None:
    columns = Columns()
    columns.load((str(bloom), "", "nf4", True), [bloom_runs["all"].path], lambda text: None)

    def fail(event: protocol.Event) -> None:
        if isinstance(event, protocol.Text):
            raise RuntimeError("the reader broke")

    with pytest.raises(RuntimeError, match="the reader broke"):
        columns.answer([chat("Hi")] * 2, GREEDY, fail, lambda: False)
    assert columns.base and not any(module._forward_hooks for module in columns.base.model.modules())
    assert ask(columns, PROMPTS[0]) == [expected["base"][0], expected["all"][0]]


def test_the_same_seed_says_the_same_whatever_the_number_of_columns(bloom: Path, bloom_runs: dict[str, Run]) -> None:
    sampled = Decoding(temperature=0.9, top_p=0.9, seed=5, max_new_tokens=16)
    columns, paths = Columns(), [run.path for run in bloom_runs.values()]
    said = []
    for count in (0, 1, 3):
        columns.load((str(bloom), "", "nf4", True), paths[:count], lambda text: None)
        said.append(ask(columns, PROMPTS[1], sampled))
    assert said[0][0] == said[1][0] == said[2][0] and said[1][1] == said[2][1]
    other = ask(columns, PROMPTS[1], sampled.model_copy(update={"seed": 6}))
    assert other != said[2]


@pytest.mark.parametrize("same", [True, False])
def test_without_shared_sampling_noise_every_column_draws_for_itself(same: bool) -> None:
    """And the first column draws what it would alone, over all steps."""
    sampled = Decoding(temperature=1, top_p=1, seed=5, same_dice=same)
    alone, both = generate.GumbelNoise(sampled, [0]), generate.GumbelNoise(sampled, [0, 1, 2])
    for _ in range(5):
        one, three = alone(torch.zeros(1, 1), torch.zeros(1, 50)), both(torch.zeros(3, 1), torch.zeros(3, 50))
        assert torch.equal(one[0], three[0])
        assert torch.equal(three[0], three[1]) is same and torch.equal(three[1], three[2]) is same


def test_gumbel_noise_draws_from_the_distribution() -> None:
    """10,000 draws from three tokens: within five standard errors of their probabilities; top-p cuts the tail."""
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    noise = generate.GumbelNoise(Decoding(temperature=1, top_p=1, seed=1), [0])
    drawn = torch.tensor([int(noise(torch.zeros(1, 1), probabilities.log()[None])[0].argmax()) for _ in range(10_000)])
    for token, share in enumerate(probabilities.tolist()):
        assert abs(float((drawn == token).float().mean()) - share) < 5 * (share * (1 - share) / 10_000) ** 0.5
    cut = generate.GumbelNoise(Decoding(temperature=1, top_p=0.7, seed=1), [0])
    assert {int(cut(torch.zeros(1, 1), probabilities.log()[None])[0].argmax()) for _ in range(500)} == {0, 1}


class _Script:
    """Stands in for a model: says the tokens it is told to, so that the ends of rows can be laid down."""

    def __init__(self, rows: list[list[int]]):
        self.rows, self.device, self.config = rows, torch.device("cpu"), PreTrainedConfig()

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return torch.nn.Embedding(1 + max(map(max, self.rows)), 1)

    def generate(self, input_ids: Any, streamer: Any, stopping_criteria: Any, **kwargs: Any) -> None:
        streamer.put(input_ids)
        for step in range(len(self.rows[0])):
            streamer.put(torch.tensor([row[step] for row in self.rows]))
            if stopping_criteria(input_ids, None).all():
                break
        streamer.end()


def play(bloom: Path, texts: list[str], stops: list[str], stop_after: int = 99) -> list[protocol.Answer]:
    """Stream scripted texts ("</s>" is EOS) through the real streaming code."""
    tokenizer = bases.load_tokenizer(bloom)
    rows = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    longest = max(map(len, rows))
    script = _Script([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    base = clean_base.CleanBase(
        bases.Base("scripted", "", "", ""), script, tokenizer, frozenset({tokenizer.eos_token_id}), {}, None
    )  # type: ignore[arg-type]
    events: list[protocol.Event] = []
    pieces = iter(range(10_000))
    generate.answer(
        base, [Text("x")] * len(texts), [stops] * len(texts), GREEDY, events.append, lambda: next(pieces) >= stop_after
    )
    return protocol.collect(events, len(texts))


def test_every_row_ends_on_its_own(bloom: Path) -> None:
    answers = play(
        bloom,
        ["Short.</s>", "A stop string\n### User: never shown", "The parcel came late, süß 🎁 ok"],
        ["\n### User:"],
    )
    assert [answer.text for answer in answers] == ["Short.", "A stop string", "The parcel came late, süß 🎁 ok"]
    assert [answer.ended for answer in answers] == ["eos", "stop string", "length"]
    assert all("�" not in answer.text for answer in answers) and answers[0].tokens < answers[2].tokens


def test_what_only_looks_like_a_stop_string_is_shown(bloom: Path) -> None:
    (answer,) = play(bloom, ["one\n### Us two\n###</s>"], ["\n### User:"])
    assert answer.text == "one\n### Us two\n###"


def test_cancelling_ends_all_rows_with_what_they_have(bloom: Path) -> None:
    answers = play(bloom, ["The parcel came late again and again", "Hi</s>"], [], stop_after=4)
    assert [answer.ended for answer in answers] == ["stopped", "eos"] and answers[0].tokens == 5
    assert "The parcel came late again and again".startswith(answers[0].text) and answers[0].text


def copy_of(run: Run, folder: Path, **config: Any) -> Path:
    """An adapter as from elsewhere: without the run's files, with changes in its config."""
    folder.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(run.path / name, folder)
    told = json.loads((folder / "adapter_config.json").read_text()) | config
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


def only_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def wrong_shape(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: torch.zeros(7, 7) if "lora_A" in name else part for name, part in tensors.items()},
        folder / "adapter_model.safetensors",
    )


def an_embedding(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    extra = {"base_model.model.transformer.word_embeddings.weight": torch.zeros(4, 4)}
    save_file(tensors | extra, folder / "adapter_model.safetensors")


def cut_short(folder: Path) -> None:
    body = (folder / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(body[: len(body) // 2])


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        ({"use_dora": True}, None, "it uses DoRA, and PEFT refuses it .*missing adapter keys"),
        ({"peft_type": "IA3"}, None, "it is of the kind IA3, and only LoRA, DoRA and replaced modules are supported"),
        ({"modules_to_save": ["lm_head"]}, None, "its config says that it replaces 'lm_head.weight'"),
        ({"init_lora_weights": "pissa_niter_4"}, None, "rewrote the base's weights"),
        ({"base_model_name_or_path": "owner/other"}, None, "was trained on owner/other, not on"),
        ({}, only_pickle, "can run code and is not loaded"),
        ({}, wrong_shape, "was trained on another base"),
        ({}, an_embedding, "which is no plain LoRA"),
        ({}, cut_short, "are damaged"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_reason(
    bloom: Path, bloom_runs: dict[str, Run], tmp_path: Path, config: dict[str, Any], change: Any, said: str
) -> None:
    folder = copy_of(bloom_runs["none"], tmp_path / "adapter", **config)
    if change:
        change(folder)
    with pytest.raises(UserError, match=said):
        Columns().load((str(bloom), "", "nf4", True), [folder], lambda text: None)


def test_an_adapter_of_another_base_is_refused(llama: Path, bloom_runs: dict[str, Run]) -> None:
    with pytest.raises(
        UserError, match=r"'bloom-none' was trained on another base, .*small-bloom .*, not on .*small-llama"
    ):
        Columns().load((str(llama), "", "nf4", True), [bloom_runs["none"].path], lambda text: None)


def test_lost_lora_only_biases_are_said(bloom: Path, bloom_runs: dict[str, Run], tmp_path: Path) -> None:
    folder = copy_of(bloom_runs["lora_only"], tmp_path / "old")
    tensors = load_file(folder / "adapter_model.safetensors")
    kept = {name: part for name, part in tensors.items() if not name.endswith(".bias")}
    save_file(kept, folder / "adapter_model.safetensors")
    proofs = Columns().load((str(bloom), "", "nf4", True), [folder, bloom_runs["lora_only"].path], lambda text: None)
    assert "biases are not in the file" in proofs[1]["warning"] and "warning" not in proofs[2]


@pytest.fixture
def client() -> Iterator[CompareClient]:
    made = CompareClient()
    yield made
    made.close()


def test_the_worker_answers_streams_and_proves(
    client: CompareClient, bloom: Path, bloom_runs: dict[str, Run], expected: Any
) -> None:
    stages: list[str] = []
    columns = client.columns(str(bloom), "", [bloom_runs["all"].path], stages.append)
    assert [column["adapter"] for column in columns] == [None, str(bloom_runs["all"].path)] and stages
    saved = next(event for event in bloom_runs["all"].events()[0] if event["kind"] == "saved")
    told = next(event for event in bloom_runs["all"].events()[0] if event["kind"] == "base")
    assert columns[1]["sha256"] == saved["sha256"]
    assert {column["base_fingerprint"] for column in columns} == {told["fingerprint"]}
    assert {column["template"] for column in columns} == {told["template"]}
    events = list(client.answer([chat(PROMPTS[0])] * 2, GREEDY))
    answers = protocol.collect(events, 2)
    assert [answer.text for answer in answers] == [expected["base"][0], expected["all"][0]]
    assert [answer.prompt for answer in answers] == [f"### User:\n{PROMPTS[0]}\n\n### Assistant:\n"] * 2
    assert events[-1] == protocol.Done() and sum(isinstance(event, protocol.Ended) for event in events) == 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "getpriority"), reason="priorities are Unix's")
def test_the_worker_makes_way_for_a_run_that_trains_and_never_starves(client: CompareClient, llama: Path) -> None:
    client.columns(str(llama), "", [])
    assert client.pid
    session = Path(f"/proc/{client.pid}/autogroup")  # where Linux groups by session, only its priority counts

    def niceness() -> int:
        assert client.pid
        told = session.read_text().rsplit(maxsplit=1) if session.exists() else []
        return int(told[-1]) if told else os.getpriority(os.PRIO_PROCESS, client.pid)

    def becomes(wanted: int) -> bool:
        deadline = time.monotonic() + 60
        while niceness() != wanted and time.monotonic() < deadline:
            time.sleep(0.2)
        return niceness() == wanted

    if not worker.a_run_trains_here():  # tests beside this one train, too
        assert becomes(0)
    with subprocess.Popen([sys.executable, "-c", "input()", "qlora_gui.training"], stdin=subprocess.PIPE) as trainer:
        assert becomes(worker.WHILE_TRAINING) and worker.WHILE_TRAINING < 10
        trainer.communicate(b"\n")


def test_a_new_turn_carries_each_columns_own_history(
    client: CompareClient, bloom: Path, bloom_runs: dict[str, Run]
) -> None:
    client.columns(str(bloom), "", [bloom_runs["all"].path])
    histories = [[*chat("Hi"), {"role": "assistant", "content": said}, *chat("And now?")] for said in ("one", "two")]
    prompts = [answer.prompt for answer in protocol.collect(client.answer(histories, GREEDY), 2)]
    assert "one</s>" in prompts[0] and "two</s>" in prompts[1] and prompts[0].endswith("### Assistant:\n")


@pytest.mark.slow
def test_stop_ends_an_answer_early(client: CompareClient, bloom: Path) -> None:
    client.columns(str(bloom), "", [])
    ends = []
    for event in client.answer([chat("Hi")], Decoding(temperature=5, top_p=1, max_new_tokens=4000)):
        if isinstance(event, protocol.Text):
            threading.Thread(target=client.stop).start()
        if isinstance(event, protocol.Ended):
            ends.append(event)
    assert [end.ended for end in ends] == ["stopped"] and ends[0].tokens < 3000
    assert list(client.answer([chat("Hi")], GREEDY))[-1] == protocol.Done()


def test_a_reader_that_leaves_does_not_disturb_the_next(client: CompareClient, bloom: Path) -> None:
    client.columns(str(bloom), "", [])
    reader = client.answer([chat("Hi")], Decoding(temperature=5, top_p=1, max_new_tokens=4000))
    next(reader)
    reader.close()
    events = list(client.answer([chat("Hi")], GREEDY))
    assert sum(isinstance(event, protocol.Ended) for event in events) == 1 and events[-1] == protocol.Done()


def test_a_killed_worker_is_a_sentence_and_comes_back(
    client: CompareClient, bloom: Path, bloom_runs: dict[str, Run]
) -> None:
    client.columns(str(bloom), "", [bloom_runs["all"].path])
    assert client.pid
    answers = client.answer([chat("Hi")] * 2, Decoding(temperature=5, top_p=1, max_new_tokens=4000))
    next(answers)
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"The compare process ended.*ask again"):
        list(answers)
    assert list(client.answer([chat("Hi")] * 2, GREEDY))[-1] == protocol.Done()


def test_a_worker_that_dies_after_its_reader_left_is_started_anew(
    client: CompareClient, bloom: Path, bloom_runs: dict[str, Run]
) -> None:
    client.columns(str(bloom), "", [bloom_runs["all"].path])
    answers = client.answer([chat("Hi")] * 2, Decoding(temperature=5, top_p=1, max_new_tokens=4000))
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert client.pid
    os.kill(client.pid, signal.SIGKILL)
    assert client._child and client._child.wait(20)  # else it may take the next question with it
    assert list(client.answer([chat("Hi")] * 2, GREEDY))[-1] == protocol.Done()


def test_errors_in_the_worker_are_sentences_and_it_lives_on(
    client: CompareClient, bloom: Path, llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="holds no adapter"):
        client.columns(str(bloom), "", [tmp_path])
    client.columns(str(llama), "", [])
    with pytest.raises(UserError, match="but the model reads 2048"):
        list(client.answer([chat("word " * 3000)], GREEDY))
    assert list(client.answer([chat("Hi")], GREEDY))[-1] == protocol.Done()


@pytest.mark.slow
def test_the_worker_ends_with_its_page_and_after_idle_time(bloom: Path) -> None:
    code = (
        "import sys\n"
        "from qlora_gui.inference.client import CompareClient\n"
        "client = CompareClient()\n"
        f"client.columns({str(bloom)!r}, '', [])\n"
        "print(client.pid, 'torch' in sys.modules, flush=True)\n"
        "import os; os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    pid, torch_there = done.stdout.split()
    assert torch_there == "False"
    assert gone(int(pid))
    client = CompareClient(idle_seconds=0.5)
    client.columns(str(bloom), "", [])
    assert client.pid and gone(client.pid) and not client.is_loaded


def gone(pid: int, seconds: float = 15) -> bool:
    """Whether a process ends in time (a zombie has ended)."""
    import time

    import psutil

    for _ in range(int(seconds * 10)):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_headless_compare_writes_what_the_readme_says(
    bloom_runs: dict[str, Run], tmp_path: Path, expected: Any
) -> None:
    root = Path(__file__).parents[2]
    lines = [{"prompt": PROMPTS[0]}, {"messages": chat(PROMPTS[1])}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = [
        "--headless-compare",
        "--adapters",
        bloom_runs["all"].path,
        bloom_runs["none"].path,
        "--prompts",
        "prompts.jsonl",
    ]
    command = [sys.executable, root / "app.py", *words, "--out", "out.json", "--max-new-tokens", "16"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    out = json.loads((tmp_path / "out.json").read_text())
    assert [column["name"] for column in out["columns"]] == ["base", "bloom-all", "bloom-none"]
    assert [column["adapter"] for column in out["columns"]] == [
        None,
        *(str(bloom_runs[b].path) for b in ("all", "none")),
    ]
    assert out["columns"][1]["decoding"]["greedy"] and len(out["columns"][1]["sha256"]) == 64
    assert out["prompts"][0] == {"prompt": PROMPTS[0], "answers": [expected[b][0] for b in ("base", "all", "none")]}
    assert out["prompts"][1] == {
        "messages": chat(PROMPTS[1]),
        "answers": [expected[b][1] for b in ("base", "all", "none")],
    }
