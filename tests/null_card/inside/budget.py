"""How often the card is asked and waited for: a micro-batch of training and a decoded token, ours and the stock way."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import GenerationConfig, GenerationMixin, Trainer, TrainingArguments

from qlora_gui.config import RunConfig, make
from qlora_gui.data import collate
from qlora_gui.inference.multi_lora import BASE, MultiLora
from qlora_gui.models import device as devices
from qlora_gui.models import lora_kernel
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.store import RunStore
from qlora_gui.step_rules import GPU_MULTIPLE
from qlora_gui.training.trainer import RunTrainer, arguments
from tests.null_card import native
from tests.null_card.host import ROOT

sys.path.append(str(ROOT / "benchmarks"))

ROWS, LENGTH, PROMPT = 4, 512, 64
Found = dict[str, float]


def micro_batch(folder: str, base: str, way: str, knobs: dict[str, Any]) -> Found:
    """`launches` and `waits` of one micro-batch in the Trainer's own loop, whatever a step costs besides left out.

    `way` is ours, or stock: PEFT's k-bit preparation and transformers' Trainer under autocast.
    """
    from gpu_parts import bases

    config = make(
        {"base_model": base, "batch_size": ROWS, "max_length": LENGTH, "gradient_checkpointing": "none"} | knobs
    )
    device = torch.device("cuda", 0)
    devices.release()
    model = bases.random_base(bases.shape_of(base, False), config, device)
    model = (bases.ours if way == "ours" else bases.stock)(model, config)
    trainer_of = _ours if way == "ours" else _stock

    def step(micro_batches: int) -> Callable[[], Any]:
        one = config.model_copy(update={"gradient_accumulation": micro_batches, "max_steps": 1})
        return trainer_of(Path(folder) / str(micro_batches), model, one, device).train

    step(1)()
    return _apart(step(2), step(6), 4)


def _ours(folder: Path, model: Any, config: RunConfig, device: torch.device) -> Trainer:
    run = RunStore(folder).create(config.model_copy(update={"base_model": "demo"}))  # a run that no hub is asked about
    rows: list[collate.Row] = [{"input_ids": [5] * LENGTH, "labels": [5] * LENGTH}] * (
        ROWS * config.gradient_accumulation
    )
    return RunTrainer(
        run=run,
        log=EventLog(run.events_file),
        held_out=[],
        model=model,
        args=arguments(config, str(run.checkpoints), device, ROWS),
        train_dataset=rows,
        data_collator=collate.Collate(0, LENGTH, GPU_MULTIPLE),
    )


def _stock(folder: Path, model: Any, config: RunConfig, device: torch.device) -> Trainer:
    half = devices.compute_dtype(device)
    row = {"input_ids": torch.full((LENGTH,), 5), "labels": torch.full((LENGTH,), 5)}
    row["attention_mask"] = torch.ones(LENGTH, dtype=torch.int64)
    return Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=config.max_steps,
            per_device_train_batch_size=ROWS,
            gradient_accumulation_steps=config.gradient_accumulation,
            optim=config.optimizer,
            bf16=half is torch.bfloat16,
            fp16=half is torch.float16,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=[row] * (ROWS * config.gradient_accumulation),
        data_collator=lambda rows: {key: torch.stack([row[key] for row in rows]) for key in rows[0]},
    )


def token(base: str, adapters: int, way: str) -> Found:
    """`launches` and `waits` of one more token from base and adapters, in transformers' own generate.

    `way` is ours, all in one batch; mixed, PEFT's batch of rows with different adapters; apart, plain PEFT's generate
    for the base and each adapter, one after the other; or probe, as many rows of a model in training.
    """
    from gpu_parts import bases, decode
    from peft import LoraConfig, get_peft_model

    config = make({"base_model": base, "gradient_checkpointing": "none"})
    devices.release()
    model = bases.random_base(bases.shape_of(base, False), config, torch.device("cuda", 0)).eval()
    names = [f"adapter-{number}" for number in range(adapters)]
    if way == "ours":
        multi_lora = MultiLora(model, [decode._adapter(model, config.rank, number) for number in range(adapters)])

        def answer(new: int) -> None:
            with multi_lora.activate([BASE, *range(adapters)]):
                _generate(model, 1 + adapters, new)

    elif way == "probe":
        model = bases.ours(model, config).eval()

        def answer(new: int) -> None:
            with patch.object(
                lora_kernel, "dense", side_effect=AssertionError("a weight was unpacked for a few tokens")
            ):
                _generate(model, 1 + adapters, new)

    else:
        wanted = LoraConfig(
            r=config.rank, lora_alpha=int(config.alpha), target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, wanted, adapter_name=names[0])
        for name in names[1:]:
            model.add_adapter(name, wanted)
        model.eval()

        def answer(new: int) -> None:
            if way == "mixed":
                _generate(model, 1 + adapters, new, adapter_names=["__base__", *names])
                return
            with model.disable_adapter():
                _generate(model, 1, new)
            for name in names:
                model.set_adapter(name)
                _generate(model, 1, new)

    answer(2)
    return _apart(lambda: answer(4), lambda: answer(12), 8)


@torch.no_grad()
def _generate(model: Any, rows: int, new: int, **more: Any) -> None:
    config = GenerationConfig(do_sample=False, max_new_tokens=new, use_cache=True, pad_token_id=0, eos_token_id=None)
    ids = torch.zeros(rows, PROMPT, dtype=torch.int64, device="cuda")
    with _to_the_end(new):
        out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, **more)
    assert out.shape == (rows, PROMPT + new), out.shape


@contextmanager
def _to_the_end(new: int) -> Iterator[None]:
    """Let generate read on the card whether all rows have ended, which nobody computes, and go on all the same.

    Positions are summed up once, before the first token, by a library for a single row, which the null card lacks.
    """
    plain, asked, summed = GenerationMixin._has_unfinished_sequences, [0], torch.Tensor.cumsum

    def unfinished(self: Any, finished: Any, *others: Any, **more: Any) -> bool:
        bool(finished)
        asked[0] += 1
        return asked[0] <= new

    GenerationMixin._has_unfinished_sequences = unfinished  # type: ignore[method-assign]
    torch.Tensor.cumsum = lambda tensor, *places: torch.zeros_like(tensor)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        GenerationMixin._has_unfinished_sequences = plain  # type: ignore[method-assign]
        torch.Tensor.cumsum = summed  # type: ignore[method-assign]


def free_memory(size: int) -> dict[str, int]:
    """What the program takes for free before and after `size` bytes were used and given back to torch's allocator."""
    device = torch.device("cuda", 0)
    before = devices.free_memory(device)
    used = torch.empty(size, dtype=torch.uint8, device=device)
    between = devices.free_memory(device)
    del used
    return {"before": before, "between": between, "after": devices.free_memory(device)}


def _apart(few: Callable[[], Any], more: Callable[[], Any], count: int) -> Found:
    """What one of `count` costs that `more` has beyond `few`."""
    marks = [(native.launches(), native.waits())]
    for run in (few, more):
        run()
        marks.append((native.launches(), native.waits()))
    (a, b, c) = marks
    found = [((c[kind] - b[kind]) - (b[kind] - a[kind])) / count for kind in range(2)]
    return {"launches": found[0], "waits": found[1]}
