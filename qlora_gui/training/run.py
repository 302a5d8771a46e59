"""One run from its run.json to its adapter: base, data, steps, files."""

import contextlib
import time
from dataclasses import dataclass

import torch
from transformers import set_seed

from qlora_gui import hardware, hub
from qlora_gui.config import RunConfig
from qlora_gui.data import load, row_stats, tokenization
from qlora_gui.data.chat import Chat
from qlora_gui.data.prompts import Prompt, prompts_of
from qlora_gui.data.template_renderer import RENDERER
from qlora_gui.errors import UserError
from qlora_gui.memory import cpu_guard
from qlora_gui.models import ask_torch, chats, context, supported, vocabulary
from qlora_gui.models import base as bases
from qlora_gui.models import device as devices
from qlora_gui.runs import gpus
from qlora_gui.runs.event_text import describe
from qlora_gui.runs.events import EventLog, Step
from qlora_gui.runs.store import Run
from qlora_gui.runs.training_rows import Rows, rows_of
from qlora_gui.training import distributed, limit, preflight, probes, setup
from qlora_gui.training import resume as resumed
from qlora_gui.training.interrupts import Interrupted, StopWatch
from qlora_gui.training.resume import Before
from qlora_gui.training.save import save_adapter
from qlora_gui.training.trainer import RunTrainer, arguments


class Stopped(Exception):
    """The stop file appeared before the first step: there is nothing to save."""


@dataclass(frozen=True)
class _Inputs:
    """What a run trains on and measures with; `prompts` are for its probes."""

    base: bases.Base
    chat: Chat
    examples: list[tokenization.Encoded]
    held_out: list[tokenization.Encoded]
    prompts: list[Prompt]


def train(run: Run, log: EventLog, resume: bool, changed: bool = False) -> None:
    """Train a run, writing every event but `started` and `failed`; `changed` lets one go on with other data or base.

    Raises UserError for what a person can fix.
    """
    try:
        with StopWatch(run, log) as watch:
            _train(run, log, Before(run, log, resume, changed), resume, watch)
    except (Stopped, Interrupted):
        distributed.end(at_once=True)
        there = run.has_adapter()
        state = "the adapter is as it was" if there else "there is no adapter"
        log.append("stopped", step=_last_step(run) if there else 0, message=f"Stopped before the first step; {state}.")


def _interrupt_at_a_stop(run: Run) -> None:
    """Raise Interrupted at once where a stop is asked for; several processes agree on that elsewhere."""
    if distributed.world() == 1 and run.stop_file.exists():
        raise Interrupted


def _train(run: Run, log: EventLog, before: Before, resume: bool, watch: StopWatch) -> None:
    began = time.monotonic()
    config = run.config()
    hub.go_offline_if_unreachable()
    set_seed(config.seed)
    stage = _Stages(run, log)
    device = devices.pick()
    distributed.begin(device.type)
    _check_alike(device)
    _tell_device(config, device, log)
    with limit.enforce(device):
        RENDERER.start()  # meanwhile
        inputs = _read_inputs(run, config, log, before, stage)
        examples, held_out, chat = inputs.examples, inputs.held_out, inputs.chat
        stage("Loading the base model in 4 bits")
        ready = setup.prepare(config, inputs.base, chat.tokenizer, examples, device, log, stage.say)
        if remark := setup.beside_longer_rows(ready, (*examples, *held_out)):
            stage.say(remark)
        checkpoint = distributed.agreed(before.checkpoint()) if resume else None
        if preflight.wanted(device) and not distributed.sharded():  # where one ran out, the others would wait for it
            stage("Trying the longest batch")
            ready = setup.agreed(setup.fit(ready, device, log, stage.say), log, stage.say)
        trainer = RunTrainer(
            run=run,
            log=log,
            held_out=held_out,
            probes=probes.Probes(chat, inputs.prompts, config.probe_tokens) if inputs.prompts else None,
            watch=watch,
            model=ready.model,
            args=arguments(ready.config, str(run.checkpoints), device, ready.rows_a_batch),
            train_dataset=ready.rows,
            data_collator=ready.collate,
            processing_class=chat.tokenizer,
        )
        interrupted = _steps(trainer, stage, checkpoint)
    watch.saving()
    if interrupted and not trainer.state.global_step:
        raise Stopped
    stage.say("Saving the adapter")
    saved = save_adapter(run, ready.config, inputs.base, ready.model, chat)
    if saved:
        log.append("saved", step=trainer.state.global_step, **saved)
    _log_end(run, log, trainer, interrupted, began)
    distributed.end(at_once=interrupted)


def _log_end(run: Run, log: EventLog, trainer: RunTrainer, interrupted: bool, began: float) -> None:
    """Write the `finished` or `stopped` event."""
    step, most = trainer.state.global_step, trainer.state.max_steps
    # Who was interrupted asks the others nothing more: they may wait for it elsewhere.
    stopped = interrupted or (distributed.agreed(run.stop_file.exists()) and step < most)
    log.append(
        "stopped" if stopped else "finished",
        step=step,
        seconds=round(time.monotonic() - began, 1),
        **trainer.losses(),
        **({"message": "Interrupted: a step that was not finished is not in the adapter."} if interrupted else {}),
    )


def _read_inputs(run: Run, config: RunConfig, log: EventLog, before: Before, stage: "_Stages") -> _Inputs:
    """Find the base and read the data, checked against each other and against an earlier start of the run."""
    stage("Finding the base model")
    base = distributed.first(lambda: bases.locate(config.base_model, config.revision, stage.say))
    before.check_base(base)
    supported.check(base.path, config.attention)
    stage("Reading the data")
    rows = rows_of(config)
    with RENDERER.interrupted_by(lambda: _interrupt_at_a_stop(run)):
        chat = chats.for_run(base.path, config, rows.train)
        examples, held_out, prompts = _data(config, chat, rows, log, before)
    ids = (row.input_ids for row in (*examples, *held_out))
    vocabulary.check(ids, chat.tokenizer, vocabulary.size(base.path), base.name)
    if too_long := context.check([*examples, *held_out], base.path, base.name):
        print(describe(log.append("note", text=too_long)), flush=True)
    return _Inputs(base, chat, examples, held_out, prompts)


def _tell_device(config: RunConfig, device: torch.device, log: EventLog) -> None:
    """Note which card was chosen, and what is wrong or untried about the device. Raises UserError (`memory.cpu_guard`)."""
    given = gpus.of_this_process()
    notes = [given.text] if given else []
    if device.type == "cpu" and config.gpu != gpus.CPU:
        trouble = hardware.trouble(ask_torch.view())
        cpu_guard.check(config, trouble)
        notes += [f"{trouble} This run is on the CPU."] * bool(trouble)
    notes.append(hardware.remark_on(device.type, bool(torch.version.hip)))
    for text in filter(None, notes):
        print(describe(log.append("note", text=text)), flush=True)


def _check_alike(device: torch.device) -> None:
    """Raise UserError where several processes would compute in different formats: gradients of fp16 are scaled, and the
    mean of those and others is of neither."""
    dtype = str(devices.compute_dtype(device)).removeprefix("torch.")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    formats = distributed.gathered((dtype, name))
    if len({dtype for dtype, _ in formats}) > 1:
        there = ", ".join(f"{name} in {dtype}" for dtype, name in dict.fromkeys(formats))
        raise UserError(
            f"The processes of one run must compute in one format, and these would not: {there}. Set "
            "QLORA_GUI_COMPUTE_DTYPE=float16, which all of them have, or train on GPUs of one kind."
        )


def _steps(trainer: RunTrainer, stage: "_Stages", checkpoint: str | None) -> bool:
    """Measure the base, train, measure the adapter; returns whether that was interrupted."""
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
    return max((event.step for event in run.history().all(Step)), default=0)


class _Stages:
    """Says what the run is doing; called, it first looks whether the run shall stop."""

    def __init__(self, run: Run, log: EventLog):
        self.run, self.log = run, log

    def __call__(self, text: str) -> None:
        if distributed.agreed(self.run.stop_file.exists()):
            raise Stopped
        self.say(text)

    def say(self, text: str) -> None:
        print(text, flush=True)
        self.log.append("stage", text=text)


def _data(
    config: RunConfig, chat: Chat, data: Rows, log: EventLog, before: Before
) -> tuple[list[tokenization.Encoded], list[tokenization.Encoded], list[Prompt]]:
    """Examples to train on, held-out ones, and the prompts to probe; what became of every row goes into a `data` event."""
    how = chat, config.max_length, config.system_prompt
    examples, report = tokenization.encode_all(data.train, *how)
    measured, held_report = tokenization.encode_all(data.held_out, *how)
    # Row numbers are of the file, and held-out rows may come from one of their own.
    dropped = report.dropped + [(row, f"{reason} (held out, not trained on)") for row, reason in held_report.dropped]
    files, rows = load.find(config.dataset).fingerprint(), resumed.digest((*examples, *measured))
    before.check_rows(files, rows)
    event = log.append(
        "data",
        files={name: value for name, value in files.items() if name != "name"},
        digest=rows,
        format=data.format,
        used=report.used,
        held_out=held_report.used,
        truncated=report.truncated + held_report.truncated,
        dropped=len(dropped),
        dropped_rows=[{"row": row, "reason": reason} for row, reason in dropped[:20]],
        tokens=report.tokens,
        supervised=report.supervised,
        **data.event_fields(),
        facts=row_stats.compute(examples, report, chat, data.format),
    )
    print(describe(event), flush=True)
    if not examples:
        raise UserError(_nothing_to_learn(config, report.dropped, chat.probe.failure))
    taken = {row.row for row in measured}  # what the template refuses cannot be asked either
    asked = [example for example in data.held_out if example["row"] in taken]
    return examples, measured, prompts_of(asked, config.probe_prompts, config.system_prompt)


def _nothing_to_learn(config: RunConfig, dropped: list[tuple[int, str]], refuses: str) -> str:
    """Why no row is left, and what helps; `refuses` is why the template takes not even a question and an answer, or ""."""
    if refuses:
        return f"The chat template refuses even a question and an answer ({refuses}): choose another chat_template."
    if not dropped:
        return f"No row of '{config.dataset}' is left to train on, because all are held out: set eval_fraction lower."
    row, reason = dropped[0]
    helps = "raise max_length" if "max_length" in reason else "change the data, or choose another chat_template"
    return f"No row of '{config.dataset}' can be trained on (row {row}: {reason}): {helps}."
