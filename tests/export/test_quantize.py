"""K-quants: made by llama.cpp's own quantizer, read back by transformers and by llama.cpp; whole or not there."""

import os
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from qlora_gui.errors import UserError
from qlora_gui.export import job, work
from qlora_gui.export.gguf import quantize
from tests.adapters import made_adapter
from tests.export import llama_cpp
from tests.matrix.build import build

no_shell = pytest.mark.skipif(os.name == "nt", reason="the programs here are shell scripts")
PROMPTS = [[{"role": "user", "content": text}] for text in ("Where is my parcel?", "Hello", "It is broken.")]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On a Llama whose rows divide into blocks of 256."""
    root = tmp_path_factory.mktemp("wide")
    base = build("llama3", root).path
    config = LlamaConfig.from_pretrained(base)
    config.hidden_size, config.intermediate_size, config.head_dim = 256, 512, 256 // config.num_attention_heads
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(base)
    return made_adapter(base, root / "adapter", 1, r=4, target_modules=["q_proj", "down_proj"])


def exported(adapter: Path, out: Path, kind: Any) -> tuple[job.Made, list[str], list[tuple[int, int]]]:
    said: list[str] = []
    progress: list[tuple[int, int]] = []
    settings = job.Settings(kind="gguf", type=kind, out=str(out), max_new_tokens=4)
    made = work.export(adapter, settings, said.append, lambda *at: progress.append(at), prompts=PROMPTS)
    return made, said, progress


@pytest.mark.parametrize(("kind", "types"), [("q4_k_m", {"Q4_K", "Q6_K"}), ("q6_k", {"Q6_K"})])
def test_llama_cpp_makes_it_and_it_is_compared(
    kind: str, types: set[str], adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(llama_cpp.quantizer(tmp_path)), prepend=os.pathsep)
    made, said, progress = exported(adapter, tmp_path / "out", kind)
    file = made.folder / f"adapter-{kind}.gguf"
    tensors = GGUFReader(file).tensors
    assert {part.tensor_type.name for part in tensors} == {*types, "F32"}
    assert {path.name for path in made.folder.iterdir()} == {file.name, "Modelfile", "README.md", job.RECORD}
    assert "Quantizing with llama-quantize" in said and (len(tensors), len(tensors)) in progress
    assert made.proof.startswith("Compared on 3 given prompts") and not made.worse
    assert 0 < float(made.proof.split("KL ")[1].split()[0]) < 0.5
    assert kind in (made.folder / "README.md").read_text()
    prompt = AutoTokenizer.from_pretrained(adapter.parent / "llama3")("Where is", add_special_tokens=False)["input_ids"]
    assert llama_cpp.ask(file, prompts=[prompt], tokens=4)["answers"][0]


def test_rows_that_do_not_divide_are_told(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(llama_cpp.quantizer(tmp_path)), prepend=os.pathsep)
    adapter = made_adapter(llama, tmp_path / "adapter", 1, r=4, target_modules=["q_proj"])
    made, _, _ = exported(adapter, tmp_path / "out", "q4_k_m")
    assert made.proof.endswith("21 tensors of 29 have rows that q4_k_m does not divide, and are in a larger format.")


def test_without_the_program_nothing_is_begun(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as told:
        exported(adapter, tmp_path / "out", "q4_k_m")
    assert "llama-quantize, which is not on the PATH: install llama.cpp" in str(told.value)
    assert "llama-quantize adapter-bf16.gguf adapter-q4_k_m.gguf Q4_K_M." in str(told.value)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.part").exists()


def program(folder: Path, *lines: str) -> None:
    """Another program of that name, for what becomes of its process."""
    (folder / "llama-quantize").write_text("\n".join(["#!/bin/sh", *lines, ""]))
    (folder / "llama-quantize").chmod(0o755)


@no_shell
def test_one_that_fails_leaves_nothing(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    program(tmp_path, 'echo half > "$2"', "echo no room to write", "echo", "exit 3")
    with pytest.raises(UserError, match=r"made no q5_k_m file \(exit code 3\): no room to write"):
        exported(adapter, tmp_path / "out", "q5_k_m")
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.part").exists()


@no_shell
def test_an_interrupt_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    program(tmp_path, f"echo $$ > {tmp_path}/pid", "echo '[   1/   2] x'", "exec sleep 100")

    def interrupted(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize.run(tmp_path / "a", tmp_path / "b", "q6_k", interrupted)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))
