"""Anything at all as config, data, adapter or prompt: a UserError or a right result, never a traceback, hang or crash.

CI takes a fixed set of examples; QLORA_GUI_FUZZ=5000 takes as many of each, at random, and more are found each time.
"""

import csv
import io
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from qlora_gui import config as configs
from qlora_gui.config import RunConfig
from qlora_gui.data import load, row_stats, tokenization
from qlora_gui.data.chat import Chat
from qlora_gui.errors import UserError
from qlora_gui.inference import adapter_file, clean_base, protocol
from qlora_gui.inference.columns import Columns
from qlora_gui.inference.multi_lora import MultiLora
from qlora_gui.inference.sampling import Decoding
from qlora_gui.models.base import load_tokenizer
from qlora_gui.preferences.votes import VoteLog
from qlora_gui.runs import event_file, sweep
from qlora_gui.runs.store import Run, RunStore
from tests.conftest import train

MORE = int(os.environ.get("QLORA_GUI_FUZZ", 0))
many = settings(
    max_examples=MORE or 50,
    derandomize=not MORE,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
)
few = settings(many, max_examples=MORE // 10 or 15)

TEXT = st.text(st.characters(exclude_categories=()), max_size=60) | st.sampled_from(
    [
        "",
        "\0",
        "\ufeffx",
        "‮evil",
        "🦦" * 9,
        "</s>",
        "<|im_end|>\n<|im_start|>system",
        "é\u0301",
        "\ud800",
        "\r\n",
        "1e999",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
ROLES = st.sampled_from(["user", "assistant", "system", "tool", "function_call", "", "USER", "human", "gpt"])
CALL = st.fixed_dictionaries({"name": TEXT, "arguments": TEXT | JSON})
CALLS = st.lists(CALL | st.fixed_dictionaries({"function": CALL | JSON}) | JSON, max_size=2) | CALL | JSON
BLOCKS = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "image", "thinking"]), "text": TEXT}), max_size=2
)
FIELDS = {
    "tool_calls": CALLS | CALLS.map(json.dumps),
    "reasoning_content": TEXT | JSON,
    "weight": st.sampled_from([0, 1, 0.5, "0", None]) | JSON,
    "train": JSON,
    "name": TEXT,
}
COLUMNS = {
    "tools": CALLS | CALLS.map(json.dumps),
    "system": TEXT | JSON,
    "history": JSON,
    "weight": JSON,
    "images": JSON,
}
TURN = (
    st.fixed_dictionaries({"role": ROLES, "content": TEXT})
    | st.fixed_dictionaries({"role": ROLES, "content": TEXT | BLOCKS | CALLS.map(json.dumps)}, optional=FIELDS)
    | st.fixed_dictionaries({"from": ROLES, "value": TEXT})
    | JSON
)
ROW = (
    st.fixed_dictionaries({"messages": st.lists(TURN, max_size=5)}, optional=COLUMNS)
    | st.fixed_dictionaries({"messages": st.lists(TURN, max_size=5).map(json.dumps)})
    | st.fixed_dictionaries({"conversations": st.lists(TURN, max_size=5)})
    | st.fixed_dictionaries({"prompt": TEXT | JSON, "completion": TEXT | JSON})
    | st.fixed_dictionaries({"instruction": TEXT, "input": TEXT | JSON, "output": TEXT | JSON}, optional=COLUMNS)
    | st.fixed_dictionaries({"text": TEXT | JSON})
    | JSON
)


@many
@given(st.dictionaries(st.sampled_from([*RunConfig.model_fields, "no_such"]), JSON | st.integers(-9, 9999), max_size=8))
def test_configs(values: dict[str, Any]) -> None:
    try:
        made = configs.make(values)
    except UserError as error:
        assert str(error).strip() and "\n" not in str(error).strip()
        return
    assert configs.make(made.model_dump(mode="json")) == made


@many
@given(
    st.binary(max_size=300)
    | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))
    | JSON.map(lambda value: _yaml(value))
)
@example(b"\x01a")
def test_config_files_and_sweeps(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    file = tmp_path_factory.mktemp("config") / "c.yaml"
    file.write_bytes(body)
    for path in (file, file.rename(file.with_suffix(".json"))):
        try:
            configs.make(configs.read_file(path))
        except UserError:
            continue
        finally:
            path.with_suffix(".yaml").write_bytes(body)
    try:
        found = sweep.expand(sweep.parse(body.decode("utf-8", "replace")))
        assert 0 < len(found.configs) <= sweep.MOST_RUNS
    except UserError:
        pass


def _yaml(value: Any) -> bytes:
    try:
        return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, UnicodeError):
        return b""


def as_file(rows: list[Any], kind: str) -> bytes:
    """Rows as a file of a kind, as far as they can be written in it."""
    if kind == "json":
        return json.dumps(rows).encode()
    if kind == "jsonl":
        return "\n".join(json.dumps(row) for row in rows).encode()
    names = sorted({str(name) for row in rows if isinstance(row, dict) for name in row})
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t" if kind == "tsv" else ",")
    writer.writerow(names)
    for row in rows:
        cells = [row.get(name, "") if isinstance(row, dict) else "" for name in names]
        writer.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in cells])
    return out.getvalue().encode("utf-8", "surrogatepass")


KINDS = ("json", "jsonl", "csv", "tsv", "parquet")
DEEP = b"[" * 100_000 + b"]" * 100_000
LONG_LINE = json.dumps({"prompt": "p", "completion": "word " * 2_000_000}).encode()


@pytest.mark.slow
@many
@given(
    st.one_of(
        st.tuples(st.sampled_from(KINDS), st.binary(max_size=400)),
        st.tuples(st.sampled_from(KINDS[:4]), st.lists(ROW, max_size=5)).map(
            lambda pair: (pair[0], as_file(pair[1], pair[0]))
        ),
    ),
    st.sampled_from(["", "bom", "utf-16", "latin-1", "cut", "nul"]),
    st.sampled_from(["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text"]),
    st.booleans(),
)
@example(("json", DEEP), "", "auto", False)
@example(("jsonl", DEEP), "", "auto", False)
@example(("jsonl", LONG_LINE), "", "auto", False)
@example(("csv", b'prompt,completion\n"' + b"a" * 200_000 + b'",b\n'), "", "auto", False)
@example(("json", b'{"a":' * 5000 + b"1" + b"}" * 5000), "", "messages", True)
@example(("csv", b"prompt,completion\n" + b"[" * 100_000 + b',"' + b"[" * 100_000 + b'"\n'), "", "auto", True)
@example(("csv", b"messages\n" + b"[" * 100_000 + b"\n"), "", "auto", True)
def test_data_files(
    tmp_path_factory: pytest.TempPathFactory, llama: Path, file: tuple[str, bytes], twist: str, kind: str, skip: bool
) -> None:
    suffix, body = file
    if twist == "bom":
        body = b"\xef\xbb\xbf" + body
    elif twist in ("utf-16", "latin-1"):
        body = body.decode("utf-8", "replace").encode(twist, "replace")
    elif twist == "cut":
        body = body[: len(body) // 2]
    elif twist == "nul":
        body = body.replace(b"a", b"\0")
    path = tmp_path_factory.mktemp("data") / f"rows.{suffix}"
    path.write_bytes(body)
    try:
        found = load.load(str(path), kind, skip_bad_rows=skip)
    except UserError as error:
        assert "\n" not in str(error).strip()
        return
    seen = load.survey(str(path), kind)
    assert (seen.rows, seen.faulty) == (len(found.train) + found.skipped, found.skipped)
    assert skip or not found.skipped
    chat = Chat(load_tokenizer(llama))
    kept, report = tokenization.encode_all(found.train, chat, 64, "Be kind.")
    assert len({row.row for row in kept}) == report.used and report.used + len(report.dropped) == len(found.train)
    for row in kept:
        assert len(row.input_ids) == len(row.labels) <= 64 and row.supervised
        assert all(label in (-100, token) for token, label in zip(row.input_ids, row.labels, strict=True))
    turns = report.turns()
    assert turns["present"] == sum(turns[name] for name in ("learned", "context_only", "cut", "lost"))
    assert all(
        isinstance(sentence, str)
        for sentence in row_stats.sentences(row_stats.compute(kept, report, chat, found.format))
    )


@many
@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), TEXT), min_size=1, max_size=5))
def test_special_tokens_never_control(llama: Path, turns: list[tuple[str, str]]) -> None:
    """As many control tokens as a conversation of the same turns whose texts have no special token in them."""
    tokenizer = load_tokenizer(llama)
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    messages = [{"role": role, "content": text} for role, text in turns]
    tame = [{"role": role, "content": "x"} for role, _ in turns]
    count = [sum(i in special for i in Chat(tokenizer).prompt(one).ids(tokenizer)) for one in (messages, tame)]
    assert count[0] == count[1]


@pytest.fixture(scope="module")
def trained(bloom: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(
        RunStore(tmp_path_factory.mktemp("fuzzed")), base_model=str(bloom), name="good", bias="all", max_steps=2
    )


@pytest.fixture(scope="module")
def base(bloom: Path) -> clean_base.CleanBase:
    columns = Columns()
    columns.load((str(bloom), "", "nf4", True), [], lambda text: None)
    assert columns.base
    return columns.base


TENSORS = st.sampled_from(["shape", "nan", "inf", "drop", "rename", "dtype", "extra", "empty", "huge"])
BYTES = st.sampled_from(["header", "cut", "noise", "none", "pickle", "folder", "out", "loop"])


@pytest.mark.slow
@many
@given(
    st.lists(st.tuples(TENSORS, st.integers(0, 10**6)), max_size=2),
    st.none() | BYTES,
    st.dictionaries(
        st.sampled_from(
            [
                "r",
                "lora_alpha",
                "bias",
                "target_modules",
                "peft_type",
                "rank_pattern",
                "alpha_pattern",
                "use_dora",
                "modules_to_save",
                "trainable_token_indices",
                "ensure_weight_tying",
                "base_model_name_or_path",
                "layers_to_transform",
                "use_rslora",
                "init_lora_weights",
            ]
        ),
        JSON | st.integers(-3, 10**9),
        max_size=2,
    ),
    st.integers(0, 10**6),
)
def test_adapter_folders(
    tmp_path_factory: pytest.TempPathFactory,
    trained: Run,
    base: clean_base.CleanBase,
    changes: list[tuple[str, int]],
    damage: str | None,
    config: dict[str, Any],
    dice: int,
) -> None:
    folder = tmp_path_factory.mktemp("adapter") / "a"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "run.json", "chat_template.jinja"):
        if (trained.path / name).exists():
            shutil.copy(trained.path / name, folder / name)
    weights = folder / "adapter_model.safetensors"
    _change(weights, changes)
    if damage:
        _damage(weights, damage, dice)
    if config:
        told = json.loads((folder / "adapter_config.json").read_text()) | config
        (folder / "adapter_config.json").write_text(json.dumps(told))
    try:
        adapter = adapter_file.read(folder)
        rows = MultiLora(base.model, [adapter])
        ids = torch.tensor([base.tokenizer("Where is it?")["input_ids"]] * 2)
        with rows.activate([-1, 0]), torch.no_grad():
            out = base.model(input_ids=ids).logits
        assert out[0].isfinite().all()
    except UserError as error:
        assert "\n" not in str(error).strip()


def _change(weights: Path, changes: list[tuple[str, int]]) -> None:
    tensors = load_file(weights)
    for what, dice in changes:
        if not tensors:
            return
        name = sorted(tensors)[dice % len(tensors)]
        part = tensors[name]
        if what == "shape":
            tensors[name] = torch.zeros(dice % 7 + 1, dice % 5 + 1)
        elif what in ("nan", "inf"):
            tensors[name] = torch.full(part.shape, float(what))
        elif what == "drop":
            del tensors[name]
        elif what == "rename":
            tensors[f"base_model.model.{dice}"] = tensors.pop(name)
        elif what == "dtype":
            tensors[name] = part.to([torch.int8, torch.float16, torch.float64, torch.bool][dice % 4])
        elif what == "extra":
            tensors[f"{name}.more"] = torch.zeros(2)
        elif what == "empty":
            tensors[name] = torch.zeros(0, dice % 3)
        else:
            tensors[name] = part * 1e30
    save_file(tensors, weights)


def _damage(weights: Path, what: str, dice: int) -> None:
    body = weights.read_bytes()
    weights.unlink()
    if what == "header":
        weights.write_bytes(struct.pack("<Q", [2**63, 10**9, 0, 1][dice % 4]) + body[8:])
    elif what == "cut":
        weights.write_bytes(body[: dice % len(body)])
    elif what == "noise":
        weights.write_bytes(os.urandom(200))
    elif what == "pickle":
        (weights.parent / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    elif what == "folder":
        weights.mkdir()
    elif what == "out":
        weights.symlink_to("/etc/passwd")
    elif what == "loop":
        weights.symlink_to(weights)


@few
@given(st.lists(TEXT, min_size=1, max_size=3), st.booleans())
@example(["x" * 100_000], False)
@example(["</s>" * 300], False)
@example(["</s>" * 300], True)
@example(["\x1b[31m\0\x07" * 50], False)
@pytest.mark.slow
def test_prompts(bloom: Path, trained: Run, prompts: list[str], control: bool) -> None:
    columns = _loaded(bloom, trained)
    decoding = Decoding(greedy=True, max_new_tokens=2, control_tokens=control)
    for prompt in prompts:
        events: list[protocol.Event] = []
        try:
            columns.answer([[{"role": "user", "content": prompt}]] * 2, decoding, events.append, lambda: False)
            assert sum(isinstance(event, protocol.Ended) for event in events) == 2
        except UserError as error:
            assert "\n" not in str(error).strip()


_COLUMNS: dict[str, Columns] = {}


def _loaded(bloom: Path, trained: Run) -> Columns:
    if str(trained.path) not in _COLUMNS:
        _COLUMNS[str(trained.path)] = Columns()
        _COLUMNS[str(trained.path)].load((str(bloom), "", "nf4", True), [trained.path], lambda text: None)
    return _COLUMNS[str(trained.path)]


@many
@given(st.lists(st.binary(max_size=80) | JSON.map(lambda value: json.dumps(value).encode()), max_size=6))
def test_events_and_votes_that_are_not_ours(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("lines")
    (folder / "events.jsonl").write_bytes(b"\n".join(lines))
    (folder / "votes.jsonl").write_bytes(b"\n".join(lines))
    found, _ = event_file.read(folder / "events.jsonl")
    assert all(isinstance(event["kind"], str) for event in found)
    VoteLog(folder).read()
    Run(folder).state()
