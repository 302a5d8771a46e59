"""One run from its run.json to its adapter: base, data, steps, files."""

import time
from typing import Any

import torch
from transformers import set_seed

from qlora_gui import hub
from qlora_gui.data import batches, tokens
from qlora_gui.errors import UserError
from qlora_gui.model import attention, lora, loss, template
from qlora_gui.model import base as bases
from qlora_gui.model import device as devices
from qlora_gui.runs.config import RunConfig
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.rows import rows_of
from qlora_gui.runs.store import Run
from qlora_gui.training.save import save_adapter
from qlora_gui.training.trainer import RunTrainer, arguments


class Stopped(Exception):
    """The stop file appeared before the first step: there is nothing to save."""


def train(run: Run, log: EventLog, resume: bool) -> None:
    """Train a run, writing every event but `started` and `failed`. Raises UserError for what a person can mend."""
    try:
        _train(run, log, resume)
    except Stopped:
        log.append("stopped", step=0, message="Stopped before the first step; there is no adapter.")


def _train(run: Run, log: EventLog, resume: bool) -> None:
    began = time.monotonic()
    config = run.config()
    hub.go_offline_if_unreachable()
    set_seed(config.seed)

    def say(text: str) -> None:
        print(text, flush=True)
        log.append("stage", text=text)

    def stage(text: str) -> None:
        if run.stop_file.exists():
            raise Stopped
        say(text)

    device = devices.pick()
    dtype = devices.compute_dtype(device)
    stage("Finding the base model")
    base = bases.locate(config.base_model, config.revision, stage)
    tokenizer = bases.load_tokenizer(base.path)
    stage("Reading the data")
    examples, held_out = _data(config, tokenizer, log)
    stage("Loading the base model in 4 bits")
    model = bases.load_model(base.path, config.quant_type, config.double_quant, device, dtype, say)
    lora.prepare(model, config)
    rows = batches.as_rows(examples)
    shared_length = batches.packed_length(rows, model.config.hidden_size, config.max_length)
    if not attention.packs(model):
        shared_length = 0
    rows, rows_a_batch = _packed(rows, config, model, shared_length) if config.packing else (rows, config.batch_size)
    model = lora.attach(model, config)
    if reason := loss.install(model.get_base_model()):
        say(f"The loss is computed from all logits at once, for {reason}")
    log.append(
        "base",
        name=base.name,
        revision=base.revision,
        fingerprint=base.fingerprint,
        template=template.digest(tokenizer.chat_template),
        device=_name(device),
        dtype=str(dtype).removeprefix("torch."),
        rows=len(rows),
        rows_a_batch=rows_a_batch,
        chunked_loss=not reason,
        **lora.counts(model),
    )
    trainer = RunTrainer(
        run=run,
        log=log,
        held_out=held_out,
        model=model,
        args=arguments(config, run, device, dtype, rows_a_batch),
        train_dataset=rows,
        data_collator=batches.Collate(tokenizer.pad_token_id, shared_length),
        processing_class=tokenizer,
    )
    checkpoint = run.last_checkpoint() if resume else None
    if resume and checkpoint is None:
        raise UserError(f"The run '{run.id}' has no checkpoint to resume from: train again instead.")
    if checkpoint is None and held_out:
        stage("Measuring the base on held-out rows")
        trainer.evaluate()
    stage("Training")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if held_out and trainer.last_eval_step != trainer.state.global_step:
        say("Measuring on held-out rows")
        trainer.evaluate()
    say("Saving the adapter")
    saved = save_adapter(run, config, base, model, tokenizer)
    log.append("saved", step=trainer.state.global_step, **saved)
    stopped = run.stop_file.exists() and trainer.state.global_step < trainer.state.max_steps
    log.append(
        "stopped" if stopped else "finished",
        step=trainer.state.global_step,
        seconds=round(time.monotonic() - began, 1),
        **trainer.losses(),
    )


def _packed(rows: list[batches.Row], config: RunConfig, model: Any, length: int) -> tuple[list[batches.Row], int]:
    """Packed rows, and how many a micro-batch: they are shorter than max_length and more, with as many tokens."""
    if not length:
        raise UserError(
            f"Packing needs a base that keeps packed examples apart, and {model.config.model_type} does not: "
            "turn packing off."
        )
    return batches.share(rows, length), max(config.batch_size * config.max_length // length, 1)


def _data(config: RunConfig, tokenizer: Any, log: EventLog) -> tuple[list[tokens.Encoded], list[tokens.Encoded]]:
    """Examples to train on and held-out ones; what became of every row goes into a `data` event."""
    found = rows_of(config)
    examples, report = tokens.encode_all(found.train, tokenizer, config.max_length, config.system_prompt)
    measured, held_report = tokens.encode_all(found.held_out, tokenizer, config.max_length, config.system_prompt)
    dropped = report.dropped + held_report.dropped
    log.append(
        "data",
        format=found.format,
        used=report.used,
        held_out=held_report.used,
        truncated=report.truncated + held_report.truncated,
        dropped=len(dropped),
        dropped_rows=[{"row": row, "reason": reason} for row, reason in dropped[:20]],
        tokens=report.tokens,
        supervised=report.supervised,
    )
    if not examples:
        reason = f"row {dropped[0][0]}: {dropped[0][1]}" if dropped else "all rows are held out"
        raise UserError(
            f"No row of '{config.dataset}' can be learned from ({reason}): raise max_length or mend the data."
        )
    return examples, measured


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
