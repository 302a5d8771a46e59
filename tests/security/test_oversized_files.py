"""Small files that become large: what they are read by stays small, answers others, and says what is wrong with which."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_gui import config as configs
from qlora_gui import settings_yaml
from qlora_gui.config import make
from qlora_gui.data import load, turns
from qlora_gui.errors import UserError
from qlora_gui.families import config_sizes
from qlora_gui.inference import adapter_file
from qlora_gui.memory import model_shape
from qlora_gui.models import base as bases
from qlora_gui.runs import sweep
from qlora_gui.runs.launch import child_environment
from qlora_gui.runs.store import RunStore
from tests.adapters import made_adapter, made_run
from tests.security.attacks import Attempts

MOST_GROWTH = 300e6  # bytes of the page's process
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(
    f"{one}: &{one} [{','.join([f'*{before}'] * 9)}]" for before, one in itertools.pairwise("abcdefghij")
)
DIGITS = "9" * 400


def page(store: RunStore, attempt: Attempts, *ways: str, **asked: Any) -> str:
    """What the page's process says; its memory and its silence are held against their limits."""
    question = json.dumps({"store": str(store.root), "do": ways, **asked})
    done = subprocess.run(
        [sys.executable, "-m", "tests.page_under_load"],
        input=question,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
        env=child_environment(),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    attempt(found["grew"] < MOST_GROWTH, f"the page grew by {found['grew'] / 1e6:,.0f} MB")
    attempt(found["silent"] < 5, f"the page answered nobody for {found['silent']:.1f} s")
    return "\n".join(found["told"])


def unpacking_parquet(path: Path) -> None:
    """Some kilobytes that are forty rows of one text of 32 MB."""
    text = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 40, pyarrow.int32()), pyarrow.array(["x" * (32 << 20)])
    )
    table = pyarrow.table({"prompt": text, "completion": pyarrow.array(["y"] * 40)})
    pyarrow.parquet.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 1 << 20


def long_line(path: Path) -> None:
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "' + "x" * (150 << 20) + '", "completion": "b"}\n')


def long_cell(path: Path) -> None:
    path.write_text('prompt,completion\na,b\n"' + ("x" * 999 + "\n") * (40 << 10) + '",b\n')


def nested_list(path: Path) -> None:
    path.write_text("[" * 100_000)


def many_values(path: Path) -> None:
    path.write_text("[" + "{}," * (5 << 20) + "{}]")


def long_number(path: Path) -> None:
    path.write_text(f'{{"prompt": "a", "completion": {"9" * 5000}}}\n')


DATA: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a Parquet file that unpacks": (
        "d.parquet",
        unpacking_parquet,
        "row 1: it has 33,554,433 characters, and at most 16,777,216 are read",
    ),
    "a line of 150 MB": ("d.jsonl", long_line, r"row 2: it is longer than 16,777,216 bytes"),
    "a cell of 40 MB": ("d.csv", long_cell, r"broken at line 3: a cell is longer than 16,777,216 characters"),
    "100,000 lists in lists": ("d.json", nested_list, "nested too deeply"),
    "5 million objects": ("d.json", many_values, "fits no known format"),
    "a number of 5,000 digits": ("d.jsonl", long_number, "a number has more than 4,300 digits"),
}


@pytest.mark.slow
@pytest.mark.attack("data files that unpack to gigabytes, nest, or have no end of a line")
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if "million" in n else []) for n in DATA])
def test_the_pages_process_stays_small_whatever_the_data_unpacks_to(
    name: str, store: RunStore, llama: Path, tmp_path: Path, attempt: Attempts
) -> None:
    import re

    file, write, told = DATA[name]
    write(tmp_path / file)
    config = {"base_model": str(llama), "dataset": str(tmp_path / file)}
    said = page(store, attempt, "create", "preview", "held out", config=config)
    attempt(re.search(f"create refused: .*{told}", said, re.S), said)
    attempt(re.search(f"held out refused: .*{told}", said, re.S), said)
    attempt(file in said, said)


YAML = {
    "aliases that laugh": (LAUGHS, "more than 10,000 values"),
    "an alias of itself": ("rank: &a [*a]", "stands for what it is part of"),
    "a number of 400 digits": (f"rank: {DIGITS}", "a number of 400 digits, and at most 40"),
    "lists in lists": ("rank: " + "[" * 50_000, "nested too deeply"),
    "bytes": ("name: !!binary aGVsbG8=", "of the kind !!binary"),
    "a set": ("rank: !!set {a, b}", "of the kind !!set"),
    "an object": ("name: !!python/object/apply:os.system [x]", "of the kind !!python/object"),
    "a long text": ("name: " + "x" * 1_000_000, "no more are read"),
    "no number": ("learning_rate: .nan", "learning_rate"),
    "a setting twice": ("rank: 8\nrank: 16", "'rank' stands in it twice"),
    "no end": ("max_grad_norm: .inf", "max_grad_norm"),
    "a hexadecimal": ("rank: 0x10", "rank should be a valid integer.*0x10"),
    "a sexagesimal": ("rank: 12:30", "rank should be a valid integer.*12:30"),
    "a date as a number": ("rank: 2024-01-01", "rank should be a valid integer.*2024-01-01"),
    "steps without measure": (f"max_steps: {10**30}", "max_steps should be less than or equal to"),
}


@pytest.mark.slow
@pytest.mark.attack("settings in YAML that unfold, nest, or are of other types")
def test_yaml_that_unfolds_or_is_of_another_type_is_one_sentence(
    store: RunStore, tmp_path: Path, attempt: Attempts
) -> None:
    import re

    for name, (text, told) in YAML.items():
        file = tmp_path / "mine.yaml"
        file.write_text(text)
        with pytest.raises(UserError) as refused:
            configs.resolve(file=file)
        attempt(re.search(told, str(refused.value)) and len(str(refused.value)) < 600, f"{name}: {refused.value}")
    file.write_text(LAUGHS)
    said = page(store, attempt, "file", "sweep", file=str(file))
    attempt(said.count("more than 10,000 values") == 2, said)


def test_words_that_yaml_takes_for_something_else_are_what_they_are() -> None:
    found = settings_yaml.parsed(
        "thinking: on\nname: 2024-01-01\npacking: yes\ndouble_quant: off\nrank: 010\nseed: 1_000"
    )
    config = make(found)
    assert (config.thinking, config.name, config.packing, config.double_quant) == ("on", "2024-01-01", True, False)
    assert (config.rank, config.seed) == (10, 1000)
    assert settings_yaml.parsed("a: &x [1, 2.5]\nb: *x\nc: ~\nd:\ne: 2e-4") == {
        "a": [1, 2.5],
        "b": [1, 2.5],
        "c": None,
        "d": None,
        "e": 2e-4,
    }
    assert sweep.parse("rank: 8, 16\nlearning_rate: [1e-4, 2e-4]") == {"rank": [8, 16], "learning_rate": [1e-4, 2e-4]}
    for preset in configs.preset_names():
        make(configs.read_preset(preset))


NUMBERS = [10**9, 10**400, -1, 0, 2.5, "12", True, None, [1, 10**9], {"a": 1}]
SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
)


@pytest.mark.slow
@pytest.mark.attack("numbers of a base's config.json beyond all measure")
def test_no_number_of_a_config_costs_time_or_memory(
    store: RunStore, llama: Path, tmp_path: Path, attempt: Attempts
) -> None:
    told = json.loads((llama / "config.json").read_text())
    for field, value in itertools.product(
        (*SIZES, "head_dim", "max_position_embeddings", "num_local_experts"), NUMBERS
    ):
        try:
            found = model_shape.read(told | {field: value})
            config_sizes.check_limits(told | {field: value})
            attempt(found.parameters < 10**16, f"{field} {value}")
        except UserError as error:
            attempt(field in str(error) or "config.json has no usable" in str(error), error)
            attempt(len(str(error)) < 300, error)
    with pytest.raises(UserError, match=r"num_hidden_layers is 1,000,000,000, and at most 2,000 is believed"):
        model_shape.read(told | {"num_hidden_layers": 10**9})
    for field, value in (
        ("num_labels", 10**9),
        ("vision_config", {"depth": 10**9}),
        ("num_mtp_layers", 10**9),
        ("layer_types", [["full"] * 60_000] * 2),
        ("hidden_sizes", [[1, [{"n_blocks": 10**9}]]]),
        ("attention_types", [[["global"] * 1000, 1000]]),
        ("attention_types", [[["global"], 10**9]]),
    ):
        with pytest.raises(UserError, match=r"config\.json"):
            config_sizes.check_limits(told | {field: value})
    config_sizes.check_limits(
        told
        | {"attention_types": [[["global", "local"], 12]], "num_labels": 1000, "rope_theta": 10**10, "n_params": 10**12}
    )
    base = tmp_path / "base"
    base.mkdir()
    for text in (
        json.dumps(told | {"num_hidden_layers": 10**9}),
        json.dumps(told | {"rope_scaling": {"factor": 10**400}}),
        json.dumps(told)[:-1] + ', "deep": ' + "[" * 100_000,
        json.dumps(told)[:-1] + f', "many": {"9" * 5000}}}',
        json.dumps(told | {"padding": "x" * (5 << 20)}),
    ):
        (base / "config.json").write_text(text)
        said = page(store, attempt, "base", config={"base_model": str(base)})
        attempt("base refused: " in said and "config.json" in said and len(said) < 500, said)
        with pytest.raises(UserError):
            bases.locate(str(base))


@pytest.mark.slow
@pytest.mark.attack("a base's config.json that takes memory while it is counted")
def test_counting_a_base_has_a_limit(attempt: Attempts) -> None:
    repeated = {"model_type": "gpt_neo", "attention_types": [[["global"] * 100_000, 10**9]], "num_layers": 2}
    asked = {"base": repeated | {"hidden_size": 64, "num_heads": 4, "vocab_size": 100}}
    program = "from qlora_gui.simulation import count_parameters as c; c.MOST_RAM = 2 << 30; raise SystemExit(c.main())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=120,
        env=child_environment(),
    )
    attempt(done.returncode == 1 and "error" in json.loads(done.stdout), done.stdout + done.stderr[-500:])


@pytest.mark.slow
@pytest.mark.attack("lists of Python and rows of a CSV file that take memory and time in the page")
def test_cells_and_columns_beyond_all_measure_are_told(
    store: RunStore, llama: Path, tmp_path: Path, attempt: Attempts
) -> None:
    for name, cell in {
        "lists": f"['a'{',[]' * 1_200_000}]",
        "numbers": f"['a'{',1' * 1_900_000}]",
        "objects": f"{{'a':{{}}{',1:{}' * 500_000}}}",
    }.items():
        (tmp_path / f"{name}.csv").write_text(f'messages\n"{cell}"\n')
        page(
            store,
            attempt,
            "create",
            "preview",
            config={"dataset": str(tmp_path / f"{name}.csv"), "base_model": str(llama)},
        )
    (tmp_path / "wide.csv").write_text(",".join(f"c{number}" for number in range(40_000)) + "\n")
    said = page(
        store, attempt, "create", "preview", config={"dataset": str(tmp_path / "wide.csv"), "base_model": str(llama)}
    )
    attempt("40,000 columns" in said, said)
    fine = str([{"role": "user", "content": "a, [b]: c" * 500}, {"role": "assistant", "content": "d"}])
    attempt(turns.listed(fine)[1]["content"] == "d", "a list of usual size")


@pytest.mark.attack("weights and tokenizers of a base that are damaged beyond all measure")
def test_a_base_with_damaged_weights_or_tokenizer_is_one_sentence(
    llama: Path, tmp_path: Path, attempt: Attempts
) -> None:
    whole = (llama / "model.safetensors").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    one, other = [name for name in header if name != "__metadata__"][:2]
    overlapping = header | {one: header[one] | {"data_offsets": header[other]["data_offsets"]}}
    for name, file, content in (
        ("a header of a petabyte", "model.safetensors", (10**15).to_bytes(8, "little") + b"{}"),
        ("overlapping tensors", "model.safetensors", _header(overlapping, 0) + body),
        (
            "a shape beyond numbers",
            "model.safetensors",
            _header(header | {one: header[one] | {"shape": [10**30]}}, 0) + body,
        ),
        ("half of the weights", "model.safetensors", whole[: len(whole) // 2]),
        ("another tokenizer", "tokenizer.json", b'{"a": 1}'),
        ("a deep tokenizer", "tokenizer.json", b"[" * 200_000),
    ):
        given = tmp_path / name.replace(" ", "-")
        shutil.copytree(llama, given)
        (given / file).write_bytes(content)
        with pytest.raises(UserError) as refused:
            base = bases.locate(str(given))
            bases.load_tokenizer(base.path)
            bases.load_model(base.path, "nf4", True, torch.device("cpu"), torch.float32)
        attempt(str(given) in str(refused.value) and len(str(refused.value)) < 500, f"{name}: {refused.value}")


@pytest.mark.attack("a base whose folder holds an adapter, or says that its weights are elsewhere or are pickles")
def test_a_base_is_nothing_but_what_lies_in_its_folder(llama: Path, tmp_path: Path, attempt: Attempts) -> None:
    outside = tmp_path / "outside.safetensors"
    shutil.copy(llama / "model.safetensors", outside)
    names = list(load_file(outside))
    for number, (where, said) in enumerate(
        {
            "weights.bin": "is no safetensors file in it",
            "../outside.safetensors": "is no safetensors file in it",
            str(outside): "is no safetensors file in it",
            "missing.safetensors": "is no safetensors file in it",
            "pipe.safetensors": "cannot be read",
        }.items()
    ):
        given = tmp_path / str(number)
        shutil.copytree(llama, given)
        (given / "model.safetensors").rename(given / "weights.bin")
        save_file({"x": torch.zeros(1)}, given / "x.safetensors")
        os.mkfifo(given / "pipe.safetensors") if where.startswith("pipe") else None
        (given / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, where)}))
        with pytest.raises(UserError) as refused:
            bases.locate(str(given))
        attempt(said in str(refused.value), f"{where}: {refused.value}")
    (given / "model.safetensors.index.json").write_text("[]")
    (given / "pipe.safetensors").unlink()
    with pytest.raises(UserError, match=r"index\.json' cannot be read"):
        bases.locate(str(given))
    (given / "weights.bin").rename(given / "model.safetensors")
    bases.locate(str(given))  # an index that nobody reads
    (given / "adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": "([a-z_.0-9]+)+!"}')
    with pytest.raises(UserError, match="holds an adapter") as refused:
        bases.locate(str(given))
    attempt("move its files" in str(refused.value), refused.value)


@pytest.mark.attack("files of a stranger's run that nest, swell or count beyond all measure")
def test_files_of_a_run_that_swell_keep_the_page_small(store: RunStore, llama: Path, attempt: Attempts) -> None:
    deep, number = "[" * 100_000, "9" * 5000
    bodies = [
        deep,
        f'{{"a": {number}}}',
        '{"a": "' + "x" * (80 << 20) + '"}',
        '{"schema": 1, "config": {"rank": 1e999}}',
    ]
    for place, (name, body) in enumerate(
        itertools.product(("run.json", "evaluation.json", "queued", "chat_template_settings.json"), bodies)
    ):
        run = made_run(store, llama, f"given-{place}")
        (run.path / name).write_text(body)
    said = page(store, attempt, "runs", "report")
    attempt("runs: " in said and "report: " in said, said)


@pytest.mark.attack("adapters with headers, ranks and numbers beyond all measure")
def test_adapters_beyond_all_measure_are_refused_before_they_cost_anything(
    llama: Path, tmp_path: Path, attempt: Attempts
) -> None:
    from qlora_gui.inference.columns import Columns

    made = made_adapter(llama, tmp_path / "made", 1, r=2, target_modules=["q_proj"])
    weights, config = made / "adapter_model.safetensors", made / "adapter_config.json"
    good, settings = weights.read_bytes(), json.loads(config.read_text())
    columns = Columns()
    columns.load((str(llama), "", "nf4", True), [made], lambda text: None)

    def refused(told: str) -> None:
        try:
            columns.load((str(llama), "", "nf4", True), [made], lambda text: None)
        except UserError as error:
            attempt(told in str(error) and len(str(error)) < 500, f"{told}: {error}")
        else:
            attempt(False, told)

    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    one = {"dtype": "F32", "shape": [2, 64], "data_offsets": [0, 512]}
    for header, told in (
        ((10**15).to_bytes(8, "little") + b"{}", "damaged"),
        (_header({name: one, f"{name}2": one}, 1024), "damaged"),
        (_header({name: one | {"shape": [10**9, 10**9]}}, 512), "damaged"),
        (_header({name: one | {"shape": [-1, 64]}}, 512), "damaged"),
        (_header({f"{name}{n}": one for n in range(300_000)}, 512), "the list of its tensors has"),
    ):
        weights.write_bytes(header)
        refused(told)
    with weights.open("wb") as file:  # a terabyte that takes no place
        file.write(_header({name: one | {"shape": [2, 10**11], "data_offsets": [0, 8 * 10**11]}}, 0))
        file.truncate(file.tell() + 8 * 10**11)
    refused("GB of memory are free")
    save_file({name: torch.full((2, 64), float("nan"))}, weights)
    refused("NaN or infinite values")
    weights.write_bytes(good)
    for changed, told in (
        ({"r": 10**9}, "asks for rank 1,000,000,000"),
        ({"rank_pattern": {"q_proj": 10**9}}, "asks for rank 1,000,000,000"),
        ({"lora_alpha": 10**400}, "lora_alpha or r is no number"),
        ({"lora_alpha": float("nan")}, "lora_alpha or r is no number"),
        ({"target_modules": "(" * 5000}, "target_modules"),
    ):
        config.write_text(json.dumps(settings | changed))
        refused(told)
    config.write_text(json.dumps(settings)[:-1] + ', "deep": ' + "[" * 100_000)
    refused("nested too deeply")
    config.write_text(json.dumps(settings | {"padding": "x" * (5 << 20)}))
    refused("at most 4,194,304 are read")
    config.write_text(json.dumps(settings))
    with (made / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    (made / "run.json").unlink(missing_ok=True)
    try:
        columns.load((str(llama), "", "nf4", True), [made], lambda text: None, chosen=True)
        attempt(False, "a tokenizer of a terabyte")
    except UserError as error:
        attempt("at most 134,217,728 are read of a tokenizer" in str(error), error)
    assert adapter_file.read(made)


def _header(tensors: dict[str, Any], size: int) -> bytes:
    body = json.dumps(tensors).encode()
    return len(body).to_bytes(8, "little") + body + bytes(size)


def test_rows_of_usual_length_are_read_as_before(tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "a" * (5 << 20), "completion": "b"}) + "\n")
    assert len(load.load(str(tmp_path / "long.jsonl")).train[0]["messages"][0]["content"]) == 5 << 20
    load.check(str(tmp_path / "long.jsonl"))
    table = pyarrow.table({"prompt": [f"p{n}" for n in range(1000)], "completion": ["c"] * 1000})
    pyarrow.parquet.write_table(table, tmp_path / "many.parquet")
    assert [row["row"] for row in load.load(str(tmp_path / "many.parquet")).train] == list(range(1, 1001))
