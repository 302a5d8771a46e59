"""Before the first step: how many layers to recompute, and two steps on the longest batch, so that a lack of memory shows now."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from qlora_gui.config import RunConfig
from qlora_gui.data import collate as batches
from qlora_gui.errors import UserError
from qlora_gui.memory import known_models
from qlora_gui.memory.estimate import MemoryPlan, plan
from qlora_gui.models import device as devices
from qlora_gui.training import limit


def wanted(device: torch.device) -> bool:
    """Whether the longest batch is tried first: on GPUs, and where a limit is set."""
    return device.type == "cuda" or limit.wanted() is not None


def resolve(config: RunConfig, device: torch.device) -> RunConfig:
    """The config with gradient_checkpointing settled: what the plan says fits, on a CPU none."""
    if config.gradient_checkpointing != "auto":
        return config
    memory_plan = planned(config, device)
    unplanned = "none" if device.type == "cpu" else "all"
    return config.model_copy(update={"gradient_checkpointing": memory_plan.checkpointing if memory_plan else unplanned})


def planned(
    config: RunConfig, device: torch.device, rows: int | None = None, length: int | None = None
) -> MemoryPlan | None:
    """The plan of a run on this device; None where the base's shape is not known."""
    try:
        return plan(config, known_models.find(config), limit.budget(device), rows=rows, length=length)
    except UserError:
        return None


def fitted(
    config: RunConfig,
    rows: int,
    try_it: Callable[[RunConfig, int], None],
    checkpoint: Callable[[str], None],
    say: Callable[[RunConfig, str], None],
) -> tuple[RunConfig, int]:
    """Let `try_it` take its steps of `rows` rows per micro-batch, with fewer until they fit; returns the config and the rows that
    did.

    Where micro-batches cannot get smaller, all layers are recomputed (`checkpoint`). Raises what says that memory is
    short (`devices.ran_out`) when nothing is left to change, or auto_fit is off.
    """
    while True:
        try:
            try_it(config, rows)
            return config, rows
        except (RuntimeError, MemoryError, OSError) as error:
            if not devices.ran_out(error):
                raise
            smaller = smaller_step(config, rows) if config.auto_fit else None
            if smaller is None:
                raise
        devices.release()
        if smaller[0].gradient_checkpointing != config.gradient_checkpointing:
            checkpoint(smaller[0].gradient_checkpointing)
        config, rows = smaller
        packed = " packed rows" if config.packing else ""
        say(
            config,
            f"Out of memory on the longest batch: going on with micro-batch {rows}{packed}, accumulation "
            f"{config.gradient_accumulation}, checkpointing {config.gradient_checkpointing}",
        )


def smaller_step(config: RunConfig, rows: int) -> tuple[RunConfig, int] | None:
    """A micro-batch of at most half its `rows`, and accumulation for as many rows per step as before; at 1, all layers
    recomputed.

    Packed rows are more per micro-batch than batch_size says (`setup.prepare`), which then only goes down with them.
    """
    if rows > 1:
        whole = rows * config.gradient_accumulation
        fewer = next(number for number in range(rows // 2, 0, -1) if whole % number == 0)
        batch = max(config.batch_size * fewer // rows, 1) if config.packing else fewer
        return config.model_copy(update={"batch_size": batch, "gradient_accumulation": whole // fewer}), fewer
    if config.gradient_checkpointing != "all":
        return config.model_copy(update={"gradient_checkpointing": "all"}), rows
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
            for collator in (padded, collate):  # one example per row, and packed, which needs a mask
                for _ in range(min(args.gradient_accumulation_steps, 2)):
                    batch = {key: value.to(args.device) for key, value in collator(heaviest).items() if key != "tokens"}
                    model(**batch).loss.backward()
                # in fp16 one row may overflow, and a rate of 0 times NaN is NaN
                torch._foreach_zero_([part.grad for part in trained if part.grad is not None])
                optimizer.step()
                optimizer.zero_grad()
    finally:
        model.zero_grad()
        del optimizer
        devices.release()
