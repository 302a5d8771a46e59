"""A training step's parts for tests: its settings, its rows, what it trains."""

from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from qlora_gui.config import RunConfig, make
from qlora_gui.data import collate as batches
from qlora_gui.data import load as read
from qlora_gui.data import tokenization
from qlora_gui.data.chat import Chat
from qlora_gui.models import base as bases
from qlora_gui.models import chunked_loss, lora
from tests.conftest import TINY

CPU = torch.device("cpu")


def load(base: Path, dtype: torch.dtype = torch.float32) -> Any:
    return bases.load_model(str(base), "nf4", True, CPU, dtype)


def config_of(**knobs: object) -> RunConfig:
    return make(TINY | {"dropout": 0} | knobs)


def trainable(base: Path, config: RunConfig, dtype: torch.dtype = torch.float32) -> Any:
    """The model as a run prepares it, with B not zero, so that LoRA does something."""
    set_seed(0)
    model = load(base, dtype)
    lora.prepare(model, config)
    model = lora.attach(model, config)
    assert chunked_loss.install(model.get_base_model()) == ""
    stir(model)
    return model.train()


def stir(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, part in model.named_parameters():
        if "lora_B" in name:
            part.data.normal_(0, 0.02, generator=generator)


def rows_of(base: Path, count: int = 12, system: str = "") -> list[batches.Row]:
    found = read.load("demo", limit=count).train
    return batches.as_rows(tokenization.encode_all(found, Chat(bases.load_tokenizer(base)), 192, system)[0])
