"""Adapters that name their base in other words: paths of another machine, snapshots, another case, a 4-bit variant."""

import json
import shutil
from pathlib import Path

import pytest

from qlora_gui.errors import UserError
from qlora_gui.inference import client
from qlora_gui.inference.columns import Columns
from qlora_gui.runs import base_names
from qlora_gui.runs.store import Run

HASH = "a0ddd3ef8b2f9b1b3b6c0a1d2e3f405162738495"


@pytest.mark.parametrize(
    ("named", "name", "revision"),
    [
        (f"/home/other/.cache/huggingface/hub/models--Qwen--Qwen3-4B/snapshots/{HASH}", "Qwen/Qwen3-4B", HASH),
        (f"C:\\Users\\x\\hub\\models--Qwen--Qwen3-4B\\snapshots\\{HASH}\\", "Qwen/Qwen3-4B", HASH),
        (f"/cache/models--gpt2/snapshots/{HASH}", "gpt2", HASH),
        ("/home/other/models/Qwen3-4B", "/home/other/models/Qwen3-4B", "main"),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B", "main"),
    ],
)
def test_a_snapshot_of_another_machine_is_the_hub_model(named: str, name: str, revision: str) -> None:
    assert base_names.resolved(named, "main") == (name, revision)


def test_a_snapshot_that_is_here_stays_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "models--Qwen--Qwen3-4B" / "snapshots" / HASH
    folder.mkdir(parents=True)
    assert base_names.resolved(str(folder)) == (str(folder), "")
    assert not base_names.is_elsewhere(str(folder))


@pytest.mark.parametrize(
    ("named", "elsewhere"),
    [
        ("/home/other/models/Qwen3-4B", True),
        ("C:\\models\\Qwen3-4B", True),
        ("D:/models/Qwen3-4B", True),
        ("~/no/such/folder", True),
        ("models/Qwen/Qwen3-4B", True),
        ("Qwen/Qwen3-4B", False),
        ("gpt2", False),
        ("demo", False),
    ],
)
def test_paths_of_other_machines_are_known_from_hub_ids(named: str, elsewhere: bool) -> None:
    assert base_names.is_elsewhere(named) is elsewhere


@pytest.mark.parametrize(
    ("one", "other", "relation"),
    [
        ("Qwen/Qwen3-4B", "/models/Qwen3-4B", "the same name"),
        ("C:\\models\\Qwen3-4B\\", "Qwen/Qwen3-4B", "the same name"),
        (f"/hub/models--Qwen--Qwen3-4B/snapshots/{HASH}", "Qwen/Qwen3-4B", "the same name"),
        ("qwen/qwen3-4b", "Qwen/Qwen3-4B", "the same name but for its case"),
        ("unsloth/Qwen3-4B-bnb-4bit", "Qwen/Qwen3-4B", "the same name but for its 4-bit form"),
        ("unsloth/qwen3-4b-unsloth-bnb-4bit", "Qwen/Qwen3-4B", "the same name but for its 4-bit form"),
        ("/models/one/merged", "/models/one/merged", "the same name"),
        ("/models/one/merged", "/models/two/merged", None),
        ("/models/one/checkpoint-500", "someone/checkpoint-500", None),
        ("./final_model", "/other/Final_Model", None),
        ("1" * 200 + "x", "2" * 200 + "x", None),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B-Base", None),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-8B", None),
    ],
)
def test_how_two_names_go_together(one: str, other: str, relation: str | None) -> None:
    assert base_names.relation(one, other) == relation
    assert base_names.relation(other, one) == relation


def from_elsewhere(run: Run, folder: Path, named: str) -> Path:
    """A run's adapter as another machine and another program would have left it."""
    folder.mkdir()
    for name in ("adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(run.path / name, folder)
    told = json.loads((run.path / "adapter_config.json").read_text()) | {"base_model_name_or_path": named}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


def test_the_base_is_the_one_that_was_named(bloom: Path, bloom_runs: dict[str, Run], tmp_path: Path) -> None:
    lost = from_elsewhere(bloom_runs["none"], tmp_path / "lost", "/home/other/my-base")
    with pytest.raises(UserError, match=r"'/home/other/my-base', a folder that is not on this machine: .*--base"):
        client.base_of([lost])
    found = client.base_of([lost], str(bloom))
    assert found == {"base_model": str(bloom), "revision": "", "chosen": True}
    key = (str(bloom), "", "nf4", True)
    with pytest.raises(UserError, match=r"was trained on /home/other/my-base, not on .*--base"):
        Columns().load(key, [lost], lambda text: None)
    proof = Columns().load(key, [lost], lambda text: None, chosen=True)[1]
    assert proof["trained_on"] == (
        f"/home/other/my-base; on {bloom} because it was chosen; all shapes fit, so does the vocabulary"
    )


def test_a_name_that_differs_in_case_or_bits_is_told(bloom: Path, bloom_runs: dict[str, Run], tmp_path: Path) -> None:
    for number, (named, said) in enumerate(
        [("owner/Small-BLOOM", "but for its case"), ("unsloth/small-bloom-bnb-4bit", "but for its 4-bit form")]
    ):
        folder = from_elsewhere(bloom_runs["none"], tmp_path / str(number), named)
        proof = Columns().load((str(bloom), "", "nf4", True), [folder], lambda text: None)[1]
        assert proof["trained_on"].startswith(
            f"{named}; on {bloom} because that is the same name {said}; all shapes fit"
        )


def test_a_chosen_base_of_other_shapes_or_words_is_refused(
    bloom: Path, llama: Path, bloom_runs: dict[str, Run], tmp_path: Path
) -> None:
    """Also where a fingerprint says another base: choosing it asks for a check of shapes and vocabulary."""
    with pytest.raises(UserError, match="this one has no linear"):
        load = Columns().load
        folder = from_elsewhere(bloom_runs["none"], tmp_path / "shapes", "x/y")
        (folder / "tokenizer.json").unlink()
        load((str(llama), "", "nf4", True), [folder], lambda text: None, chosen=True)
    odd = from_elsewhere(bloom_runs["none"], tmp_path / "words", "x/y")
    told = json.loads((odd / "tokenizer.json").read_text())
    vocabulary = told["model"]["vocab"]
    one, two = sorted(vocabulary, key=vocabulary.get)[500:502]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (odd / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"its tokenizer gives 2 of [\d,]+ tokens another number"):
        Columns().load((str(bloom), "", "nf4", True), [odd], lambda text: None, chosen=True)


def test_a_copy_with_another_fingerprint_needs_a_choice(
    bloom: Path, bloom_runs: dict[str, Run], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bloom, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))  # told twice: another fingerprint
    key = (str(copy), "", "nf4", True)
    with pytest.raises(UserError, match="was trained on another base"):
        Columns().load(key, [bloom_runs["none"].path], lambda text: None)
    proof = Columns().load(key, [bloom_runs["none"].path], lambda text: None, chosen=True)[1]
    assert "because it was chosen" in proof["trained_on"]
