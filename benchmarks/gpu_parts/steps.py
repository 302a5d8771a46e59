"""A few steps of transformers' Trainer on made-up rows, with their time and their memory."""

import gc
import tempfile
import time
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from qlora_gui.config import RunConfig
from qlora_gui.memory import budget
from qlora_gui.models import device as devices

GIB = 2**30
_IGNORED = -100


def device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def context_bytes() -> int:
    """What the driver holds for this process besides tensors, its matrix library loaded."""
    some = torch.ones(64, 64, dtype=devices.compute_dtype(device()), device="cuda")
    (some @ some).sum().item()
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def has_flash() -> bool:
    """Whether attention is planned for as on this GPU; anywhere else as on a card of today."""
    if not torch.cuda.is_available():
        return True
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return budget.of_gpu("", 0, 0, capability).flash


def cap(gib: float | None, context: int) -> bool:
    """Let the allocator take what a card of `gib` leaves it beside the context. False if this GPU is no larger."""
    total = torch.cuda.get_device_properties(0).total_memory
    fraction = 1.0 if gib is None else (gib * GIB - context) / total
    torch.cuda.set_per_process_memory_fraction(min(max(fraction, 0.0), 1.0))
    return fraction <= 1.0


def clear() -> None:
    """Give back what the last model held, so that the next one starts from nothing."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def made_up(
    rows: int, length: int, vocabulary: int, supervised: float = 1.0, padded: bool = True
) -> list[dict[str, Any]]:
    """Rows of random tokens; the last share `supervised` of each is learned from.

    `padded`: with a mask, the first row ends in one token of padding, as transformers' collator makes them. A run of ours
    pads on the right and has no mask (`data.batches.Collate`).
    """
    ids = torch.randint(10, vocabulary, (rows, length))
    labels, mask = ids.clone(), torch.ones_like(ids)
    labels[:, : round(length * (1 - supervised))] = _IGNORED
    if padded:
        labels[0, -1], mask[0, -1] = _IGNORED, 0
    given = {"input_ids": ids, "labels": labels} | ({"attention_mask": mask} if padded else {})
    return [{name: value[row] for name, value in given.items()} for row in range(rows)]


class Clock(TrainerCallback):
    """The time of every optimizer step, the GPU's work included."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def _mark(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark()

    @property
    def seconds(self) -> list[float]:
        """One figure a step; the first has the warm-up in it."""
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]


def arguments(run: RunConfig, rows: int, steps: int, folder: str, autocast: bool) -> dict[str, Any]:
    """Settings by their names in TrainingArguments, the same for every way of training.

    `autocast`: under it, in bf16 or fp16 as the device has it, as the usual way is. Ours needs none, and of the Trainer
    only fp16's loss scaling.
    """
    half = devices.compute_dtype(device())
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": run.gradient_accumulation,
        "learning_rate": run.learning_rate,
        "lr_scheduler_type": "constant",
        "max_grad_norm": run.max_grad_norm,
        "optim": run.optimizer,
        "bf16": autocast and half is not torch.float16,
        "fp16": half is torch.float16,
        "use_cpu": not torch.cuda.is_available(),
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": run.seed,
    }


def on_one_gpu(arguments: TrainingArguments) -> None:
    """One process trains on one GPU; where it sees more, the Trainer multiplies rows and loss by their number."""
    arguments._n_gpu = min(arguments.n_gpu, 1)


def take(model: Any, run: RunConfig, batch: list[dict[str, Any]], steps: int, autocast: bool) -> dict[str, Any]:
    """`steps` optimizer steps, every micro-batch the same. Gives seconds a step, and on a GPU the peaks in bytes.

    `allocated` and `reserved` are the allocator's own figures.
    """
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = arguments(run, len(batch), steps, folder, autocast)
        made = TrainingArguments(**settings, remove_unused_columns=False)
        on_one_gpu(made)
        trainer = Trainer(
            model=model,
            args=made,
            train_dataset=batch * steps * run.gradient_accumulation,
            data_collator=lambda rows: {key: torch.stack([row[key] for row in rows]) for key in rows[0]},
            callbacks=[clock],
        )
        trainer.train()
    return {"seconds": clock.seconds} | peaks()


def peaks() -> dict[str, int]:
    if not torch.cuda.is_available():
        return {}
    return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
