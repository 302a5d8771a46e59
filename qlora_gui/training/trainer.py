"""transformers' Trainer, with an exact held-out loss and every step written as an event."""

import time
from contextlib import ExitStack, nullcontext
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainingArguments

from qlora_gui.config import RunConfig
from qlora_gui.data import collate
from qlora_gui.data.tokenization import Encoded
from qlora_gui.errors import UserError
from qlora_gui.models import device as devices
from qlora_gui.models.lora import keep_trained_biases_exact
from qlora_gui.optimizers import DEFAULT, OPTIMIZERS
from qlora_gui.runs.checkpoints import mark_whole
from qlora_gui.runs.event_text import VERY_FEW_STEPS, describe, few_steps
from qlora_gui.runs.events import Eval, EventLog
from qlora_gui.runs.store import Run
from qlora_gui.training import distributed, fsdp, overflow
from qlora_gui.training.interrupts import StopWatch
from qlora_gui.training.probes import Probes


def arguments(config: RunConfig, folder: str, device: torch.device, rows_a_batch: int) -> TrainingArguments:
    """A RunConfig in transformers' terms, with checkpoints in `folder`; packed rows are more per batch than it says.

    Raises UserError for choices that this machine cannot follow.
    """
    if config.report_to != "none" and find_spec(config.report_to) is None:
        raise UserError(f"report_to is {config.report_to}, which is not installed: pip install {config.report_to}.")
    optimizer = OPTIMIZERS[config.optimizer]
    if optimizer.needs_cuda and device.type != "cuda":
        which = "paged optimizer" if optimizer.paged else f"optimizer {optimizer.name}"
        others = " or ".join(filter(None, (optimizer.unpaged, DEFAULT)))
        raise UserError(f"The {which} needs a CUDA GPU: choose {others}.")
    made = TrainingArguments(
        output_dir=folder,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=rows_a_batch,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=config.warmup_ratio,  # below 1 it is a share of the steps
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=config.optimizer,
        seed=config.seed,
        data_seed=config.seed,  # the same order in all processes, whatever the random state of each
        fp16=devices.compute_dtype(device)
        == torch.float16,  # for its loss scaling; the prepared model needs no autocast
        use_cpu=device.type == "cpu",
        logging_strategy="steps",
        logging_steps=config.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a NaN is reported, not replaced
        eval_strategy="steps",
        eval_steps=config.eval_steps,
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=2,
        report_to=config.report_to,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=device.type == "cuda",
        accelerator_config={"non_blocking": device.type == "cuda"},  # from pinned memory: the host goes on
        ddp_find_unused_parameters=False,
    )
    # One process trains on one GPU. Where it sees more, the Trainer counts on DataParallel, which does not wrap 4-bit
    # models, and still multiplies the rows per batch and the loss by their number.
    made._n_gpu = min(made.n_gpu, 1)
    return made


class RunTrainer(Trainer):
    """Trains on dict rows of `data.collate`; measures on `held_out` and answers `probes`; writes `step`, `eval` and
    `probe` events.

    `last_eval_step` is the step of the last held-out measurement, -1 before the first.
    """

    def __init__(
        self,
        run: Run,
        log: EventLog,
        held_out: list[Encoded],
        probes: Probes | None = None,
        watch: StopWatch | None = None,
        **kwargs: Any,
    ):
        self.rows = len(kwargs["train_dataset"])
        if distributed.world() > 1:
            kwargs["train_dataset"] = [*kwargs["train_dataset"], collate.BLANK]
        # The Trainer refuses eval_strategy without a data set; `evaluate` below reads its own.
        super().__init__(eval_dataset=held_out or kwargs["train_dataset"], **kwargs)
        if distributed.sharded():
            self.model_wrapped = fsdp.wrapped(self.model, self.args.device)
        self.run, self.log_events, self.held_out, self.watch = run, log, held_out, watch
        self.probes = probes
        self.last_eval_step = -1
        self.tokens_seen = 0
        self.measuring_seconds = 0.0  # spent on held-out rows and probes, no training
        self.model_accepts_loss_kwargs = True  # models/chunked_loss.py divides by the whole step's labels
        self._loss_shifts_labels = True
        if not held_out:
            self.args.eval_strategy = "no"  # type: ignore[assignment]
        self.remove_callback(PrinterCallback)
        self.add_callback(_Reporter(self))

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The last step at least is not warm-up, whose first step has a rate of zero: a run of one step trains too."""
        self.args.warmup_steps = min(self.args.get_warmup_steps(num_training_steps), num_training_steps - 1)
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self.tokens_seen += inputs.pop("tokens")
        return super().training_step(model, inputs, *args, **kwargs)

    @torch.no_grad()
    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean loss over all supervised tokens of the held-out rows, each token weighing the same."""
        if not self.held_out:
            return {}
        began = time.monotonic()
        model = self.model
        model.eval()
        with overflow.watched(model, devices.compute_dtype(self.args.device)) as largest:
            total, count = distributed.summed(self._held_out_loss(model))
        near = {} if largest.value is None else {"largest_activation": largest.value}
        model.train()
        loss = total / max(count, 1)
        self.last_eval_step = self.state.global_step
        event = self.log_events.append("eval", step=self.state.global_step, loss=loss, tokens=int(count), **near)
        print(describe(event), flush=True)
        if self.probes and (distributed.rank() == 0 or distributed.sharded()):
            self.log_events.append(
                "probe", step=self.state.global_step, answers=self.probes.answers(model, distributed.sharded())
            )
        self.measuring_seconds += time.monotonic() - began
        metrics = {"eval_loss": loss}
        self.control: TrainerControl = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _held_out_loss(self, model: Any) -> tuple[float, float]:
        """The sum of losses over this process's share of the held-out rows, and of how many tokens."""
        size = self.args.per_device_train_batch_size
        rows = sorted(collate.as_rows(self.held_out), key=lambda row: len(row["input_ids"]))
        parts = [rows[first : first + size] for first in range(0, len(rows), size)]
        if distributed.sharded():  # all take as many forward passes
            parts += [[collate.BLANK]] * (-len(parts) % distributed.world())
        means: list[torch.Tensor] = []
        counts: list[int] = []
        for part in parts[distributed.rank() :: distributed.world()]:
            batch = self.data_collator(part)
            labelled = int(
                (batch["labels"][:, 1:] != -100).sum()
            )  # counted on the CPU: a GPU would have to be waited for
            batch = {key: value.to(self.args.device) for key, value in batch.items() if key != "tokens"}
            loss = model(**batch).loss
            if labelled:
                means.append(loss)
                counts.append(labelled)
        losses = torch.stack(means).tolist() if means else []
        return sum((mean * labelled for mean, labelled in zip(losses, counts, strict=True)), 0.0), sum(counts)

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()
        if distributed.world() > 1:
            step = distributed.world() * self.args.per_device_train_batch_size
            loader.set_sampler(collate.WholeSteps(self.rows, step, self.args.data_seed))  # type: ignore[attr-defined]
        return loader

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self.watch.held() if self.watch else nullcontext():
            super()._save_checkpoint(*args, **kwargs)
            if distributed.rank() == 0:
                mark_whole(Path(self.args.output_dir or "") / f"checkpoint-{self.state.global_step}")

    def _save_rng_state(self, output_dir: str) -> None:
        """Rank 0 writes the random states of all, so that trainer_state.json stays the last file of a checkpoint."""
        if distributed.world() == 1:
            super()._save_rng_state(output_dir)
            return
        with TemporaryDirectory() as aside:
            super()._save_rng_state(aside)
            mine = (Path(aside) / f"rng_state_{distributed.rank()}.pth").read_bytes()
        for number, state in enumerate(distributed.gathered(mine)):
            if distributed.rank() == 0:
                (Path(output_dir) / f"rng_state_{number}.pth").write_bytes(state)

    def losses(self) -> dict[str, float | None]:
        """Held-out loss before the first and after the last step, as far as measured, over the whole run."""
        past = [event.loss for event in self.run.history().all(Eval)]
        return {"loss_before": past[0], "loss_after": past[-1]} if past else {"loss_before": None, "loss_after": None}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # The Trainer would load a second adapter through PEFT, which refuses a second one with biases.
        target = model or self.model
        set_peft_model_state_dict(target, load_file(f"{resume_from_checkpoint}/adapter_model.safetensors"))
        keep_trained_biases_exact(target)


class _Reporter(TrainerCallback):
    """Writes step events, and turns the stop file into the Trainer's own stop."""

    def __init__(self, trainer: RunTrainer):
        self.trainer = trainer
        self.began = self.last = time.monotonic()
        self.first_step = self.last_tokens = 0
        self.last_measuring = 0.0
        self._stepping = ExitStack()  # while it holds something, the optimizer changes the weights

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = self.last = time.monotonic()
        self.last_measuring = self.trainer.measuring_seconds
        self.first_step = state.global_step
        if distributed.rank() and not state.global_step:
            torch.manual_seed(
                args.seed + distributed.rank()
            )  # dropout of its own; a resumed run has it in its checkpoint
        if state.max_steps < VERY_FEW_STEPS:
            event = self.trainer.log_events.append("note", text=few_steps(state.max_steps))
            print(describe(event), flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if distributed.agreed(self.trainer.run.stop_file.exists()):
            control.should_training_stop = True
            control.should_save = True

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._stepping.enter_context(self.trainer.watch.held() if self.trainer.watch else nullcontext())

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self._stepping.close()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        now, step = time.monotonic(), state.global_step
        seen, memory = zip(
            *distributed.gathered((self.trainer.tokens_seen, devices.memory_in_use(args.device))), strict=True
        )
        tokens = sum(seen)
        done = max(step - self.first_step, 1)
        trained = now - self.last - (self.trainer.measuring_seconds - self.last_measuring)
        event = {
            "step": step,
            "max_steps": state.max_steps,
            "epoch": round(state.epoch or 0.0, 4),
            "loss": logs["loss"],
            "learning_rate": logs.get("learning_rate"),
            "grad_norm": logs.get("grad_norm"),
            "tokens_per_second": round((tokens - self.last_tokens) / max(trained, 1e-9), 1),
            "memory": max(memory),
            "eta": round((now - self.began) / done * (state.max_steps - step), 1),
        }
        self.last, self.last_tokens = now, tokens
        self.last_measuring = self.trainer.measuring_seconds
        print(describe(self.trainer.log_events.append("step", **event)), flush=True)
