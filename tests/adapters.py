"""Adapters and run folders as others make them, and a base loaded alone to hold them against."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from qlora_gui.config import make
from qlora_gui.inference.columns import Columns
from qlora_gui.models import base as bases
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.store import Run, RunStore
from tests.conftest import TINY

# Adapters beyond plain LoRA by name: their config, and what is said of why PEFT alone computes them.
BEYOND: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True, "target_modules": ["q_proj", "down_proj"]}, "it uses DoRA"),
    "head": ({"modules_to_save": ["lm_head"]}, "it replaces whole modules (modules_to_save: lm_head)"),
    "embedding": ({"modules_to_save": ["embed_tokens"]}, "modules_to_save: embed_tokens"),
    "both tied": ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, "modules_to_save: embed_tokens"),
    "norms": ({"modules_to_save": ["norm"], "bias": "all"}, "modules_to_save: norm"),
    "tokens": ({"trainable_token_indices": [3, 5, 9]}, "single token embeddings (model.embed_tokens)"),
    "tokens apart": (
        {"trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [6, 7]}},
        "(lm_head, model.embed_tok",
    ),
    "dora and head": ({"use_dora": True, "modules_to_save": ["lm_head"]}, "it uses DoRA and it replaces whole modules"),
}

_CHANGED = ("lora_magnitude_vector", "modules_to_save", "trainable_tokens_delta")


def made_adapter(base: Path, folder: Path, seed: int, **config: Any) -> Path:
    """A PEFT adapter as from elsewhere: random LoRA weights, and random changes to whatever else is trained."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(model, LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif parameter.requires_grad and any(part in name for part in _CHANGED):
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(folder)
    return folder


def made_to_push(base: Path, folder: Path) -> Path:
    """An adapter as from elsewhere with its tokenizer, and with what a run's folder has besides, rows of its data among it."""
    made_adapter(base, folder, 1, r=4, target_modules=["q_proj"])
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(base / name, folder / name)
    for name in ("events.jsonl", "train.log", "evaluation.json", "optimizer.pt", ".lock", "votes.jsonl"):
        (folder / name).write_text("the secret row of a customer")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "adapter_model.safetensors").write_text("not this one")
    return folder


def finished_run(adapter: Path, folder: Path) -> Run:
    """A run that has finished, with a copy of this adapter."""
    run = Run(Path(shutil.copytree(adapter, folder)))
    (run.path / "run.json").write_text(json.dumps({"schema": 1, "config": make(TINY).model_dump()}))
    run.events_file.unlink()
    EventLog(run.events_file).append("finished")
    return run


def made_run(store: RunStore, llama: Path, name: str) -> Run:
    """A run that has ended, with a checkpoint and something like an adapter."""
    run = store.create(make(TINY | {"base_model": str(llama), "name": name}))
    EventLog(run.events_file).append("started", pid=1, resumed=False)
    EventLog(run.events_file).append("failed", message="no matter", bug=False)
    checkpoint = run.checkpoints / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    for file in ("adapter_config.json", "adapter_model.safetensors", "train.log"):
        (run.path / file).write_text("{}")
    return run


def fresh(base: Path, adapter: Path | None) -> Any:
    """A base loaded anew in the worker's dtype, in plain PEFT's wrapper if there is an adapter."""
    model = bases.load_model(str(base), "nf4", True, torch.device("cpu"), torch.float32)
    return PeftModel.from_pretrained(model, str(adapter)).eval() if adapter else model


def proof(base: Path, adapter: Path, chosen: bool = False, kind: tuple[str, bool] = ("nf4", True)) -> dict[str, Any]:
    """What is proven of an adapter on a base."""
    return Columns().load((str(base), "", *kind), [adapter], lambda text: None, chosen)[1]


def beyond(base: Path, folder: Path, kind: str) -> Path:
    return made_adapter(base, folder, 1, **{"target_modules": ["q_proj"], "r": 4} | BEYOND[kind][0])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.arange(1, 40)[None]).logits
    return found
