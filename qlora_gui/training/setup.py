"""What a run trains: the prepared base with its adapter, the rows it reads, and a batch that fits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from qlora_gui.config import RunConfig
from qlora_gui.data import chat_template, tokenization
from qlora_gui.data import collate as batches
from qlora_gui.errors import UserError
from qlora_gui.formatting import gigabytes
from qlora_gui.memory import calibration
from qlora_gui.memory.estimate import MemoryPlan
from qlora_gui.models import (
    attention,
    causality,
    chunked_loss,
    lora,
    lora_kernel,
    lora_targets,
    quantized_cache,
    rope,
    vocabulary,
)
from qlora_gui.models import base as bases
from qlora_gui.models import device as devices
from qlora_gui.runs.events import EventLog
from qlora_gui.step_rules import GPU_MULTIPLE
from qlora_gui.training import distributed, fsdp, preflight
from qlora_gui.training.trainer import arguments

_WORTH_TELLING = 0.02  # share of the weights
Say = Callable[[str], None]


@dataclass(frozen=True)
class Ready:
    """A run before its first step. `config` is the run's, with checkpointing and batch as they really are; of packed rows
    `rows_a_batch` are a micro-batch."""

    config: RunConfig
    model: Any
    rows: list[batches.Row]
    collate: batches.Collate
    rows_a_batch: int


def prepare(
    config: RunConfig,
    base: bases.Base,
    tokenizer: Any,
    examples: list[tokenization.Encoded],
    device: torch.device,
    log: EventLog,
    say: Say,
) -> Ready:
    """Load the base, prepare it, put the adapter on; writes the `base` event. Raises UserError."""
    dtype = devices.compute_dtype(device)
    model = _load(config, base, device, dtype, say)
    in_4_bits = quantized_cache.quantization_of(model)
    ids = (row.input_ids for row in examples)
    vocabulary.check(ids, tokenizer, model.get_input_embeddings().num_embeddings, base.name)
    config = preflight.resolve(config, device)
    lora.prepare(model, config)
    multiple = GPU_MULTIPLE if device.type == "cuda" else 1
    rows, collate = _rows(config, model, examples, tokenizer.pad_token_id, multiple)
    targets = lora_targets.resolve(model, config.target_modules, config.dropout)
    in_16_bits = lora_targets.weights_in_16_bits(model)
    model = lora.attach(model, config, targets)
    _tell_what_is_left_out(model, config, targets, in_16_bits, say)
    shares = _place_weights(model, device, say)
    if reason := chunked_loss.install(model.get_base_model()):
        say(f"The loss is computed from all logits at once, for {reason}")
    rows_a_batch = config.batch_size
    if config.packing:  # they are shorter than max_length and more, with as many tokens per micro-batch
        rows_a_batch = max(config.batch_size * config.max_length // collate.shared_length, 1)
    ready = Ready(config, model, rows, collate, rows_a_batch)
    log.append(
        "base",
        name=base.name,
        revision=base.revision,
        fingerprint=base.fingerprint,
        template=chat_template.digest(tokenizer.chat_template),
        vocabulary=model.get_input_embeddings().num_embeddings,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        dtype=str(dtype).removeprefix("torch."),
        quant_type=in_4_bits.quant_type,
        double_quant=in_4_bits.double_quant,
        rows=len(rows),
        rows_a_batch=ready.rows_a_batch,
        processes=distributed.world(),
        chunked_loss=not reason,
        gradient_checkpointing=config.gradient_checkpointing,
        without_lora=sorted(name for names in targets.left_out.values() for name in names),
        weights_16bit=in_16_bits.linears + in_16_bits.others,
        weights_16bit_share=round(in_16_bits.linears_share + in_16_bits.others_share, 4),
        **lora.counts(model),
        **shares,
    )
    return ready


def _load(config: RunConfig, base: bases.Base, device: torch.device, dtype: torch.dtype, say: Say) -> Any:
    """The base in 4 bits, on `device`, or on the CPU where it will be sharded: it may be larger than a GPU."""
    where = torch.device("cpu") if distributed.sharded() else device
    model = bases.load_model(base.path, config.quant_type, config.double_quant, where, dtype, say)
    if not distributed.sharded():  # then it is on the CPU, where a large one takes minutes
        causality.check(model, base.name)
    return model


def _rows(
    config: RunConfig, model: Any, examples: list[tokenization.Encoded], pad_id: int, multiple: int
) -> tuple[list[batches.Row], batches.Collate]:
    """The rows to train on, packed where the run asks for it, and what makes batches of them."""
    rows = batches.as_rows(examples)
    collate = batches.Collate(pad_id, _shared_length(rows, config, model), multiple)
    if config.packing:
        rows = _packed(rows, model, collate.shared_length)
    elif collate.shared_length:
        rows = batches.as_rows(examples, min(config.max_length, attention.fixed_window(model) or config.max_length))
    return rows, collate


def _place_weights(model: Any, device: torch.device, say: Say) -> dict[str, int]:
    """Shard the 4-bit weights where the run does so, and return `fsdp.install`'s bytes; else unpack them where that pays."""
    if not distributed.sharded():
        lora_kernel.keep_dense(model)
        return {}
    shares = fsdp.install(model, device)
    say(f"Each process keeps {gigabytes(shares['share'])} of {gigabytes(shares['weights_4bit'])} of 4-bit weights")
    return shares


def _tell_what_is_left_out(
    model: Any,
    config: RunConfig,
    targets: lora_targets.Targets,
    in_16_bits: lora_targets.In16Bits,
    say: Say,
) -> None:
    """Say which linears get no LoRA, which biases stay as they are, and how much of the base is not in 4 bits."""
    for reason, names in targets.left_out.items():
        say(f"No LoRA on {', '.join(names)}: {reason}")
    frozen = lora.counts(model)["frozen_biases"]
    if config.bias == "all" and frozen:
        say(
            f"Not trained: {frozen:,} numbers called a bias that belong to convolutions, routers, experts or time steps"
        )
    if in_16_bits.linears_share > _WORTH_TELLING:
        say(
            f"{in_16_bits.linears_share:.0%} of the base's weights ({gigabytes(in_16_bits.linears)}) are linear layers "
            "that it does not have in 4 bits"
        )
    if in_16_bits.others_share > _WORTH_TELLING:
        lora_too = "" if model.peft_config["default"].target_parameters else ", without LoRA"
        say(
            f"{in_16_bits.others_share:.0%} of the base's weights ({gigabytes(in_16_bits.others)}) are not in linear "
            f"layers, experts mostly: they are not quantized to 4 bits{lora_too}"
        )


def beside_longer_rows(ready: Ready, examples: Sequence[tokenization.Encoded]) -> str:
    """What to say where rows are long enough to change how those beside them are read (`models.rope`); else ""."""
    limit = rope.alike_up_to(ready.model.config)
    if limit is None or max(len(row.input_ids) for row in examples) <= limit:
        return ""
    alone = ready.rows_a_batch == 1 and not ready.config.packing
    other = "" if alone else ", or batch_size 1 without packing,"
    return (
        f"This base reads rows beyond {limit:,} tokens with other RoPE frequencies, and with them all rows of their batch: "
        f"choose max_length {limit}{other} if each is to be read as it is alone"
    )


def fit(ready: Ready, device: torch.device, log: EventLog, say: Say) -> Ready:
    """Take two steps on the longest batch, with smaller micro-batches where memory does not suffice.

    What it took goes into a `memory` event and calibrates the next prediction; what was changed, into a `fit` event.
    Raises what `devices.ran_out` knows where no smaller step fits, or auto_fit is off.
    """
    base = ready.model.get_base_model()

    def try_it(config: RunConfig, rows: int) -> None:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # what a try that failed took is not what the run takes
        args = arguments(config, "unused", device, rows)
        preflight.two_steps(ready.model, ready.rows, rows, ready.collate, args)

    devices.release()
    config, rows = preflight.fitted(
        ready.config,
        ready.rows_a_batch,
        try_it,
        lambda level: lora.checkpoint(base, level),
        lambda config, text: _tell_fit(config, text, log, say),
    )
    fitted = replace(ready, config=config, rows_a_batch=rows)
    longest = max(len(row["input_ids"]) for row in ready.rows)
    plan = preflight.planned(fitted.config, device, fitted.rows_a_batch, longest)
    if device.type == "cuda" and plan is not None:
        _calibrate(plan, device, log, say)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # step events report the peak of the steps
    return fitted


def agreed(ready: Ready, log: EventLog, say: Say) -> Ready:
    """What fits on the smallest of several processes' GPUs, for all of them: rows are dealt out in equal batches."""
    choices = distributed.gathered((ready.config, ready.rows_a_batch))
    config, rows = min(choices, key=lambda choice: (choice[1], choice[0].gradient_checkpointing != "all"))
    if config != ready.config:
        lora.checkpoint(ready.model.get_base_model(), config.gradient_checkpointing)
    if any(choice != config for choice, _ in choices):
        _tell_fit(config, f"Another GPU has less memory: all go on with micro-batch {rows}", log, say)
    return replace(ready, config=config, rows_a_batch=rows)


def _tell_fit(config: RunConfig, text: str, log: EventLog, say: Say) -> None:
    say(text)
    knobs = ("batch_size", "gradient_accumulation", "gradient_checkpointing")
    log.append("fit", text=text, knobs={name: getattr(config, name) for name in knobs})


def _calibrate(plan: MemoryPlan, device: torch.device, log: EventLog, say: Say) -> None:
    gpu, measured = torch.cuda.get_device_name(device), torch.cuda.max_memory_allocated(device)
    if problem := calibration.record(gpu, plan.uncorrected, measured):
        say(problem)
    log.append("memory", predicted=plan.uncorrected, measured=measured, gpu=gpu)


def _shared_length(rows: list[batches.Row], config: RunConfig, model: Any) -> int:
    """Tokens that examples may share a row of; 0 where the base does not keep them apart."""
    if not attention.packs(model):
        return 0
    length = batches.packed_length(rows, model.config.get_text_config().hidden_size, config.max_length)
    return min(length, attention.fixed_window(model) or length)


def _packed(rows: list[batches.Row], model: Any, length: int) -> list[batches.Row]:
    if not length:
        raise UserError(
            f"Packing needs a base that keeps packed examples apart, and {model.config.model_type} does not: "
            "turn packing off."
        )
    return batches.share(rows, length)
