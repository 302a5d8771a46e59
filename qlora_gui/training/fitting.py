"""Before the first step: how many layers to recompute, and two steps on the longest batch, so that memory fails now."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from qlora_gui.data import batches
from qlora_gui.errors import UserError
from qlora_gui.memory import known
from qlora_gui.memory.plan import MemoryPlan, plan
from qlora_gui.model import device as devices
from qlora_gui.runs.config import RunConfig
from qlora_gui.training import limit


def wanted(device: torch.device) -> bool:
    """Whether the longest batch is tried first: on GPUs, and where a limit is set."""
    return device.type == "cuda" or limit.wanted() is not None


def resolve(config: RunConfig, device: torch.device) -> RunConfig:
    """The config with gradient_checkpointing settled: what the plan says fits, on a CPU none."""
    if config.gradient_checkpointing != "auto":
        return config
    found = planned(config, device)
    unplanned = "none" if device.type == "cpu" else "all"
    return config.model_copy(update={"gradient_checkpointing": found.checkpointing if found else unplanned})


def planned(
    config: RunConfig, device: torch.device, rows: int | None = None, length: int | None = None
) -> MemoryPlan | None:
    """The plan of a run on this device; None where the base's shape is not known."""
    try:
        return plan(config, known.find(config), limit.budget(device), rows=rows, length=length)
    except UserError:
        return None


def fitted(
    config: RunConfig,
    try_it: Callable[[RunConfig], None],
    checkpoint: Callable[[str], None],
    say: Callable[[RunConfig, str], None],
) -> RunConfig:
    """Let `try_it` take its steps, with smaller micro-batches until they fit; gives the config that did.

    Where micro-batches cannot get smaller, all layers are recomputed (`checkpoint`). Raises what says that memory is
    short (`devices.ran_out`) when nothing is left to change, or auto_fit is off.
    """
    while True:
        try:
            try_it(config)
            return config
        except (RuntimeError, MemoryError, OSError) as error:
            if not devices.ran_out(error):
                raise
            smaller = smaller_step(config) if config.auto_fit else None
            if smaller is None:
                raise
        devices.release()
        if smaller.gradient_checkpointing != config.gradient_checkpointing:
            checkpoint(smaller.gradient_checkpointing)
        config = smaller
        say(
            config,
            f"Out of memory on the longest batch: going on with micro-batch {config.batch_size}, accumulation "
            f"{config.gradient_accumulation}, checkpointing {config.gradient_checkpointing}",
        )


def smaller_step(config: RunConfig) -> RunConfig | None:
    """The micro-batch halved and accumulation doubled, as many rows a step as before; at 1, all layers recomputed."""
    if config.batch_size > 1:
        batch = config.batch_size // 2 if config.batch_size % 2 == 0 else 1
        more = config.gradient_accumulation * config.batch_size // batch
        return config.model_copy(update={"batch_size": batch, "gradient_accumulation": more})
    if config.gradient_checkpointing != "all":
        return config.model_copy(update={"gradient_checkpointing": "all"})
    return None


def two_steps(
    model: Any, rows: Sequence[batches.Row], count: int, collate: batches.Collate, args: TrainingArguments
) -> None:
    """Two optimizer steps on the `count` longest rows, every token learned from, that change nothing.

    The peak comes in the second, when the optimizer's states exist, and in its second micro-batch, when
    gradients do. The learning rate is 0, and random numbers are drawn again later. Raises what `devices.ran_out` knows.
    """
    longest = sorted(rows, key=lambda row: -len(row["input_ids"]))[:count]
    heaviest: list[batches.Row] = [{**row, "labels": list(row["input_ids"])} for row in longest]
    padded = batches.Collate(collate.pad_id, multiple=collate.multiple)
    trained = [part for part in model.parameters() if part.requires_grad]
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
    optimizer = kind(trained, **(settings | {"lr": 0.0}), weight_decay=0.0)
    model.train()
    try:
        with torch.random.fork_rng(devices=[args.device] if args.device.type == "cuda" else []):
            for together in (padded, collate):  # a row each, and sharing rows, which brings a mask
                for _ in range(min(args.gradient_accumulation_steps, 2)):
                    batch = {key: value.to(args.device) for key, value in together(heaviest).items() if key != "tokens"}
                    model(**batch).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
    finally:
        model.zero_grad()
        del optimizer
        devices.release()
