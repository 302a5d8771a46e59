"""One run from its run.json to its adapter: base, data, steps, files."""

import contextlib
import time
from typing import Any

from transformers import set_seed

from qlora_gui import hub
from qlora_gui.data import facts, tokens
from qlora_gui.errors import UserError
from qlora_gui.model import base as bases
from qlora_gui.model import device as devices
from qlora_gui.model import template
from qlora_gui.runs.config import RunConfig
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.rows import rows_of
from qlora_gui.runs.store import Run
from qlora_gui.training import fitting, limit, probes, setup, together
from qlora_gui.training.save import save_adapter
from qlora_gui.training.stopping import Interrupted, StopWatch
from qlora_gui.training.trainer import RunTrainer, arguments


class Stopped(Exception):
    """The stop file appeared before the first step: there is nothing to save."""


def train(run: Run, log: EventLog, resume: bool) -> None:
    """Train a run, writing every event but `started` and `failed`. Raises UserError for what a person can mend."""
    try:
        with StopWatch(run, log) as watch:
            _train(run, log, resume, watch)
    except (Stopped, Interrupted):
        together.end(at_once=True)
        there = run.has_adapter()
        told = "the adapter is as it was" if there else "there is no adapter"
        log.append("stopped", step=_last_step(run) if there else 0, message=f"Stopped before the first step; {told}.")


def _train(run: Run, log: EventLog, resume: bool, watch: StopWatch) -> None:
    began = time.monotonic()
    config = run.config()
    hub.go_offline_if_unreachable()
    set_seed(config.seed)
    stage = _Stages(run, log)
    device = devices.pick()
    together.begin(device.type)
    with limit.kept(device):
        stage("Finding the base model")
        base = together.first(lambda: bases.locate(config.base_model, config.revision, stage.say))
        tokenizer = bases.load_tokenizer(base.path)
        stage("Reading the data")
        examples, held_out, prompts = _data(config, tokenizer, log)
        stage("Loading the base model in 4 bits")
        ready = setup.prepare(config, base, tokenizer, examples, device, log, stage.say)
        checkpoint = together.agreed(_checkpoint(run)) if resume else None
        if fitting.wanted(device) and not together.sharded():  # where one ran out, the others would wait for it
            stage("Trying the longest batch")
            ready = setup.agreed(setup.fit(ready, device, log, stage.say), log, stage.say)
        trainer = RunTrainer(
            run=run,
            log=log,
            held_out=held_out,
            probes=probes.Probes(tokenizer, prompts, config.probe_tokens, config.control) if prompts else None,
            watch=watch,
            model=ready.model,
            args=arguments(ready.config, str(run.checkpoints), device, ready.rows_a_batch),
            train_dataset=ready.rows,
            data_collator=ready.collate,
            processing_class=tokenizer,
        )
        interrupted = _steps(trainer, stage, checkpoint)
    watch.saving()
    step, most = trainer.state.global_step, trainer.state.max_steps
    if interrupted and not step:
        raise Stopped
    stage.say("Saving the adapter")
    saved = save_adapter(run, ready.config, base, ready.model, tokenizer)
    if saved:
        log.append("saved", step=step, **saved)
    # Who was interrupted asks the others nothing more: they may wait for it elsewhere.
    stopped = interrupted or (together.agreed(run.stop_file.exists()) and step < most)
    log.append(
        "stopped" if stopped else "finished",
        step=step,
        seconds=round(time.monotonic() - began, 1),
        **trainer.losses(),
        **({"message": "Interrupted: a step that was not finished is not in the adapter."} if interrupted else {}),
    )
    together.end(at_once=interrupted)


def _steps(trainer: RunTrainer, stage: "_Stages", checkpoint: str | None) -> bool:
    """Measure the base, train, measure the adapter; gives whether that was interrupted."""
    try:
        if checkpoint is None and trainer.held_out:
            stage("Measuring the base on held-out rows")
            trainer.evaluate()
        stage("Training")
        trainer.train(resume_from_checkpoint=checkpoint)
    except Interrupted:
        return True
    if trainer.held_out and trainer.last_eval_step != trainer.state.global_step:
        stage.say("Measuring on held-out rows")
        with contextlib.suppress(Interrupted):
            trainer.evaluate()
    return False


def _last_step(run: Run) -> int:
    return max((event["step"] for event in run.events()[0] if event["kind"] == "step"), default=0)


def _checkpoint(run: Run) -> str:
    """The checkpoint to go on from. Raises UserError where there is none."""
    found = run.last_checkpoint()
    if found is None:
        raise UserError(f"The run '{run.id}' has no checkpoint to resume from: train again instead.")
    before = [event.get("processes", 1) for event in run.events()[0] if event["kind"] == "base"]
    if before and before[0] != together.world():
        raise UserError(
            f"The run '{run.id}' was begun with {before[0]} processes and cannot go on with {together.world()}: its "
            "steps would see other rows."
        )
    return str(found)


class _Stages:
    """Says what the run is doing; called, it first looks whether the run shall stop."""

    def __init__(self, run: Run, log: EventLog):
        self.run, self.log = run, log

    def __call__(self, text: str) -> None:
        if together.agreed(self.run.stop_file.exists()):
            raise Stopped
        self.say(text)

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.log.append("stage", text=text)


def _data(
    config: RunConfig, tokenizer: Any, log: EventLog
) -> tuple[list[tokens.Encoded], list[tokens.Encoded], list[probes.Turns]]:
    """Examples to train on, held-out ones, and the prompts to probe; what became of every row goes into a `data` event."""
    found, how = rows_of(config), (config.max_length, config.system_prompt, config.control)
    examples, report = tokens.encode_all(found.train, tokenizer, *how)
    measured, held_report = tokens.encode_all(found.held_out, tokenizer, *how)
    dropped = report.dropped + held_report.dropped
    chat = tokenizer.chat_template
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
        facts=facts.of(examples, tokenizer, found.format, template.digest(chat), has_template=chat != template.PLAIN),
    )
    if not examples:
        reason = f"row {dropped[0][0]}: {dropped[0][1]}" if dropped else "all rows are held out"
        raise UserError(
            f"No row of '{config.dataset}' can be learned from ({reason}): raise max_length or mend the data."
        )
    return examples, measured, probes.prompts_of(found.held_out, config.probe_prompts, config.system_prompt)
