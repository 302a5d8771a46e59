"""Adapter folders as others leave them: from the hub, from other trainers, old and new PEFT, and with the usual mishaps."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123\n"
# Written by newer or other programs; all of them off, or harmless.
NEWER: dict[str, Any] = {
    "peft_version": "0.99.0",
    "auto_mapping": None,
    "corda_config": None,
    "eva_config": None,
    "exclude_modules": None,
    "lora_bias": False,
    "qalora_group_size": 16,
    "some_future_key": None,
}
OLDER = ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "revision", "init_lora_weights", "peft_version")


def copied(source: Path, folder: Path, named: str | None = "", **settings: Any) -> Path:
    """A copy of an adapter with other settings; `named` is what it calls its base, "" leaves that."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    if named != "":
        config["base_model_name_or_path"] = named
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    return folder


def _without(*names: str) -> Callable[[Path], None]:
    def drop(folder: Path) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        kept = {name: value for name, value in config.items() if name not in names}
        (folder / "adapter_config.json").write_text(json.dumps(kept))

    return drop


def _with_leftovers(folder: Path) -> None:
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "dataset_info.json"):
        (folder / name).write_bytes(b"\x80")
    (folder / "checkpoint-500").mkdir()
    shutil.copy(folder / "adapter_config.json", folder / "checkpoint-500")


def _nothing(folder: Path) -> None: ...


# What it calls its base, its settings, what is done to the folder.
SHAPES: dict[str, tuple[str | None, dict[str, Any], Callable[[Path], None]]] = {
    "bare": ("", {}, _nothing),
    "other case": ("Someone/SMALL-Llama", {}, _nothing),
    "unsloth": ("unsloth/small-llama-unsloth-bnb-4bit", NEWER, _nothing),
    "in 8 bits": ("someone/small-llama-bnb-8bit", {}, _nothing),
    "colab": ("/content/models/small-llama", {}, _nothing),
    "windows": ("C:\\Users\\me\\small-llama", {}, _nothing),
    "old peft": ("", {}, _without(*OLDER)),
    "trainer's leftovers": ("", {}, _with_leftovers),
    "regex": ("", {"target_modules": r".*self_attn\.(q|v)_proj"}, _nothing),
    "patterns": ("", {"alpha_pattern": {"q_proj": 32}, "rank_pattern": {"v_proj": 4}}, _nothing),
    "räumlich mit Leerzeichen": ("", {}, _nothing),
}
MISHAPS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pointer": (lambda weights: weights.write_text(POINTER), "cloned without Git LFS.*git lfs pull"),
    "empty": (lambda weights: weights.write_bytes(b""), "has an empty adapter_model.safetensors"),
    "cut": (lambda weights: weights.write_bytes(weights.read_bytes()[:-100]), "are damaged"),
    "pickle": (lambda weights: weights.rename(weights.with_name("adapter_model.bin")), "which can run code.*save_pretrained"),
    "none": (lambda weights: weights.unlink(), "has no adapter_model.safetensors"),
}  # fmt: skip


def shaped(source: Path, folder: Path, shape: str) -> Path:
    """A copy of an adapter in one of `SHAPES`."""
    named, settings, change = SHAPES[shape]
    copied(source, folder, named, **settings)
    change(folder)
    return folder
