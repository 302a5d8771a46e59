"""Tokens a second in training: ours, the stock way with transformers' Trainer, and TRL's SFTTrainer if it is installed.

Rows of one length without padding, the last half of each learned from. All layers are recomputed by everybody but
"ours, auto", which recomputes what its plan for this device says. Each line has the allocator's peaks. Ours computes in
the device's own number format without autocast, as training does; the others under autocast, as their guides show it.
"""

import statistics
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from gpu_parts import bases, steps
from qlora_gui.config import RunConfig, make
from qlora_gui.memory import budget
from qlora_gui.memory import model_shape as shapes
from qlora_gui.memory.estimate import plan

WAYS = ("ours", "ours, auto", "trainer", "trl")


def run(dry: bool) -> Iterator[dict[str, Any]]:
    """A line for every base and way, in alternating order: the median of the steps after the first two."""
    sizes = {bases.BLOOM_560M: (4, 1024), bases.BLOOM_7B1: (2, 1024), bases.LLAMA_1B: (4, 1024)}
    if dry:
        sizes = {bases.BLOOM_560M: (2, 32)}
    for repeat in range(1 if dry else 2):
        for name, (rows, length) in sizes.items():
            for way in WAYS if repeat % 2 == 0 else WAYS[::-1]:
                line = {"base": name, "rows": rows, "length": length, "way": way, "repeat": repeat}
                yield line | _one(name, rows, length, way, dry)


def _one(name: str, rows: int, length: int, way: str, dry: bool) -> dict[str, Any]:
    if way == "trl" and not (find_spec("trl") and find_spec("datasets")):
        return {"skipped": "trl is not installed"}
    raw = bases.shape_of(name, dry)
    config = make(
        {"base_model": name, "batch_size": rows, "max_length": length, "dropout": 0, "gradient_accumulation": 1}
    )
    chosen = plan(config, shapes.read(raw), budget.here()).checkpointing if way == "ours, auto" else "all"
    config = config.model_copy(update={"gradient_checkpointing": chosen})
    steps.clear()
    model = bases.random_base(raw, config, steps.device())
    batch = steps.made_up(rows, length, raw["vocab_size"], supervised=0.5, padded=False)
    count = 3 if dry else 6
    if way == "trl":
        found = _with_trl(model, config, batch, count)
    else:
        ours = way.startswith("ours")
        model = (bases.ours if ours else bases.stock)(model, config)
        found = steps.take(model, config, batch, count, autocast=not ours)
    seconds = statistics.median(found["seconds"][2:])
    return found | {"checkpointing": chosen, "tokens_per_second": rows * length / seconds}


def _with_trl(model: Any, config: RunConfig, batch: list[dict[str, Any]], count: int) -> dict[str, Any]:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    rows = [
        {"input_ids": row["input_ids"].tolist(), "completion_mask": (row["labels"] != -100).long().tolist()}
        for row in batch
    ]
    wanted = LoraConfig(r=config.rank, lora_alpha=int(config.alpha), target_modules="all-linear", task_type="CAUSAL_LM")
    clock = steps.Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                **steps.arguments(config, len(batch), count, folder, autocast=True),
                max_length=config.max_length,
                completion_only_loss=True,
                gradient_checkpointing=True,
            ),
            train_dataset=Dataset.from_list(rows * count),
            processing_class=bases.tokenizer(model.config.vocab_size),
            peft_config=wanted,
            callbacks=[clock],
        )
        steps.on_one_gpu(trainer.args)
        trainer.train()
    return {"seconds": clock.seconds} | steps.peaks()
