"""What one base gives on one device: trained for three steps by the real trainer, saved, reloaded, and measured."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from transformers.modeling_layers import GradientCheckpointingLayer

from qlora_gui.check.lines import Line, State
from qlora_gui.config import RunConfig, make
from qlora_gui.data import tokenization
from qlora_gui.errors import UserError
from qlora_gui.inference import protocol
from qlora_gui.inference.columns import Columns
from qlora_gui.inference.sampling import Decoding
from qlora_gui.models import base as bases
from qlora_gui.models import chats, lora
from qlora_gui.models import device as devices
from qlora_gui.runs.events import Base, Eval, EventLog, Fit, Silent, Step
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.runs.training_rows import rows_of
from qlora_gui.training import setup
from qlora_gui.training.run import train

# The largest relative differences that rounding explains, by what the device computes in: of losses, and of all
# gradients together (their norm). Three to ten times what CPUs give for these bases.
_LOSS = {"float32": 1e-4, "float16": 4e-3, "bfloat16": 2e-2}
_GRADS = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 1.5e-1}
_CHOICE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}  # as in inference/selftest.py
_FEW_BYTES = 1e-3  # 4-bit values that may lie on the other side of a border
_FP16_LARGEST, _FP16_NEAR = 65504.0, 0.1
_REPORT = "The numbers of this device are wrong: report this, with the lines above."

QUESTION = [{"role": "user", "content": "3 Where is my order?"}]
ANSWER_TOKENS = 12
_FP16_SCALE = 256.0  # keeps small gradients above fp16's smallest number, as the run's own scaler does


@dataclass(frozen=True)
class Numbers:
    """`steps` are the losses of the steps, `held_out` those before and after; `loss` and `grads` are of one batch with the
    reloaded adapter, `largest` is the largest number between its layers. `packed` are the 4-bit bytes by linear.
    `answers` are those of base and adapter, as tokens. `repeats` says whether a second pass gave the same to the bit."""

    steps: list[float]
    held_out: list[float]
    loss: float
    grads: dict[str, torch.Tensor]
    largest: float
    packed: dict[str, torch.Tensor]
    answers: list[list[int]]
    repeats: bool
    dtype: str


def config_of(name: str, base: Path, data: Path, **knobs: Any) -> RunConfig:
    """Three steps that are the same everywhere: no dropout, and of BLOOM all biases."""
    return make(
        {
            "name": name,
            "base_model": str(base),
            "dataset": str(data),
            "max_length": 96,
            "max_steps": 3,
            "batch_size": 4,
            "gradient_accumulation": 1,
            "gradient_checkpointing": "every-2",
            "dropout": 0,
            "rank": 8,
            "bias": "all" if name.startswith("bloom") else "none",
            "learning_rate": 2e-3,
            "lr_scheduler": "constant",
            "warmup_ratio": 0,
            "eval_fraction": 0.25,
            "eval_steps": 1000,
            "save_steps": 1000,
            "logging_steps": 1,
            "probe_prompts": 0,
        }
        | knobs
    )


def trained(store: RunStore, config: RunConfig) -> Run:
    """Train by the real trainer, in this process. Raises whatever ends a run."""
    run = store.create(config)
    train(run, EventLog(run.events_file), resume=False)
    return run


def measured(run: Run, adapter: Path) -> Numbers:
    """What a trained run recorded, and what its base gives with the adapter of `adapter`, loaded anew."""
    config, history = run.config(), run.history()
    loss, grads, largest, packed, repeats = _one_batch(config, adapter)
    return Numbers(
        steps=[_number(event.loss) for event in history.all(Step)],
        held_out=[_number(event.loss) for event in history.all(Eval)],
        loss=loss,
        grads=grads,
        largest=largest,
        packed=packed,
        answers=answered(config, adapter)[1],
        repeats=repeats,
        dtype=str(base.dtype) if (base := history.latest(Base)) else "",
    )


def _number(loss: float | None) -> float:
    return math.nan if loss is None else loss


def _one_batch(
    config: RunConfig, adapter: Path
) -> tuple[float, dict[str, torch.Tensor], float, dict[str, torch.Tensor], bool]:
    device = devices.pick()
    base = bases.locate(config.base_model, say=_silent)
    rows = rows_of(config)
    chat = chats.for_run(base.path, config, rows.train)
    examples, _ = tokenization.encode_all(rows.train, chat, config.max_length, config.system_prompt)
    ready = setup.prepare(config, base, chat.tokenizer, examples, device, Silent(), _silent)
    set_peft_model_state_dict(ready.model, load_file(adapter / "adapter_model.safetensors"))
    lora.keep_trained_biases_exact(ready.model)
    batch = {name: part.to(device) for name, part in ready.collate(ready.rows[:4]).items() if name != "tokens"}
    ready.model.train()
    with _largest(ready.model) as seen:
        loss, grads = _pass(ready.model, batch)
    again, grads_again = _pass(ready.model, batch)
    repeats = loss == again and all(torch.equal(part, grads_again[name]) for name, part in grads.items())
    packed = {
        name: part.weight.data.cpu().flatten()
        for name, part in ready.model.get_base_model().named_modules()
        if isinstance(part, bnb.nn.Linear4bit)
    }
    return loss, grads, max(seen, default=0.0), packed, repeats


def _pass(model: Any, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of a batch and all gradients, in fp32 on the CPU."""
    model.zero_grad()
    loss = model(**batch).loss
    (loss * _FP16_SCALE).backward()
    return float(loss), {
        name: part.grad.float().cpu() / _FP16_SCALE
        for name, part in model.named_parameters()
        if part.requires_grad and part.grad is not None
    }


@contextmanager
def _largest(model: Any) -> Iterator[list[float]]:
    """Collects the largest number that each layer gives on."""
    seen: list[float] = []

    def look(module: Any, inputs: Any, output: Any) -> None:
        out = output[0] if isinstance(output, tuple) else output
        seen.append(float(out.detach().abs().max()))

    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    hooks = [layer.register_forward_hook(look) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def answered(config: RunConfig, adapter: Path) -> tuple[Columns, list[list[int]]]:
    """The greedy answers of base and adapter as tokens, an end that they came to among them, by the columns that the page
    compares with. Raises UserError."""
    columns = Columns()
    columns.load((config.base_model, "", config.quant_type, config.double_quant), [adapter], _silent)
    assert columns.base is not None
    answers, decoding = [protocol.Answer(), protocol.Answer()], Decoding(greedy=True, max_new_tokens=ANSWER_TOKENS)
    columns.answer([QUESTION] * 2, decoding, lambda event: protocol.take(answers, event), lambda: False)
    end = [columns.base.tokenizer.eos_token_id]
    return columns, [[*answer.ids, *(end if answer.ended == "eos" else [])] for answer in answers]


def choice_apart(columns: Columns, column: int, tokens: list[int], own: list[int]) -> float:
    """By how much these columns' likeliest token leads the one that an answer takes where it first leaves their `own`.

    As a share of the largest logit; 0.0 where it does not, infinity where one only ends before the other. What comes
    after that place has another beginning, so it is not held against anything. Tokens, and not text: text would be read
    as other tokens than those that made it.
    """
    if tokens == own:
        return 0.0
    assert columns.base is not None and columns.multi_lora is not None
    adapter = columns.adapters[column - 1] if column else None
    prompt = columns.chat(adapter).prompt(QUESTION).ids(columns.base.tokenizer)
    model = columns.base.model
    place = next((place for place, (a, b) in enumerate(zip(tokens, own, strict=False)) if a != b), None)
    if place is None:
        return float("inf")
    with torch.no_grad(), columns.multi_lora.activate([column - 1]):
        logits = model(input_ids=torch.tensor([prompt + own[:place]], device=model.device)).logits[0, -1].float()
    return float((logits.max() - logits[tokens[place]]) / logits.abs().max())


def survived(store: RunStore, base: Path, data: Path) -> str:
    """Train under a limit that the longest batch exceeds; returns what the run did then, in words.

    Raises UserError where it did not go on.
    """
    from qlora_gui.training import preflight

    # On a GPU the batch is large, for its libraries keep up to 32 MiB of work space, and memory comes in pieces of 20 MiB.
    device = devices.pick()
    rows, length = (8, 96) if device.type == "cpu" else (32, 512)
    knobs = {
        "max_steps": 1,
        "batch_size": rows,
        "max_length": length,
        "gradient_checkpointing": "none",
        "eval_fraction": 0,
    }
    config = config_of("out-of-memory", base, data, **knobs)
    plan = preflight.planned(config, device)
    size = plan.uncorrected if plan else 32 << 20
    before = os.environ.get("QLORA_GUI_MEMORY_LIMIT")
    os.environ["QLORA_GUI_MEMORY_LIMIT"] = f"{max(size // 2 >> 20, 4)}MB"
    try:
        run = trained(store, config)
    finally:
        if before is None:
            del os.environ["QLORA_GUI_MEMORY_LIMIT"]
        else:
            os.environ["QLORA_GUI_MEMORY_LIMIT"] = before
        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(1.0)
            devices.keep_on_card(device)
    fit = run.history().latest(Fit)
    if fit is None:
        raise UserError("The run was given half of the memory that it needs, and did not run out.")
    return f"went on with micro-batch {fit.knobs['batch_size']} of {rows}"


def _silent(text: str) -> None:
    """Discard the messages of a run's stages."""


def relative(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """The norm of the difference of two sets of tensors as a share of the second's; infinity where names differ."""
    if first.keys() != second.keys():
        return float("inf")
    square = sum(float((first[name] - part).square().sum()) for name, part in second.items())
    whole = sum(float(part.square().sum()) for part in second.values())
    return (square / max(whole, 1e-30)) ** 0.5


def _apart(ours: list[float], theirs: list[float]) -> float:
    if len(ours) != len(theirs) or not ours or not all(map(math.isfinite, [*ours, *theirs])):
        return float("inf")
    return max(abs(left - right) / max(abs(right), 1e-9) for left, right in zip(ours, theirs, strict=True))


def lines(name: str, here: Numbers, cpu: Numbers, choices: list[float]) -> Iterator[Line]:
    """What is found about one base; `choices` are `numbers.choice_apart` of base and adapter."""
    called, dtype = name.capitalize(), here.dtype
    losses = _apart([*here.steps, *here.held_out], [*cpu.steps, *cpu.held_out])
    yield _judged(
        f"{name}-losses",
        losses <= _LOSS[dtype],
        f"{called}: three steps in {dtype}, losses within {losses:.1e} of the CPU's (fp32); held-out loss "
        f"{' → '.join(f'{loss:.3f}' for loss in here.held_out)}.",
    )
    again, grads = _apart([here.loss], [cpu.loss]), relative(here.grads, cpu.grads)
    yield _judged(
        f"{name}-gradients",
        again <= _LOSS[dtype] and grads <= _GRADS[dtype],
        f"{called}: saved and reloaded, loss within {again:.1e} and {len(here.grads)} gradients within {grads:.1e} of the CPU's.",
    )
    worst = max(choices)
    same = here.answers == cpu.answers
    yield _judged(
        f"{name}-text",
        same or worst <= _CHOICE[dtype],
        f"{called}: greedy answers of base and adapter are "
        + (
            "the CPU's." if same else f"the CPU's up to near ties (a lead of {worst:.1e} of the largest logit at most)."
        ),
    )


def _judged(key: str, good: bool, text: str) -> Line:
    return Line(key, "ok", text) if good else Line(key, "failed", text, _REPORT)


def kernels(here: dict[str, Numbers], cpu: dict[str, Numbers], kind: str) -> Iterator[Line]:
    """What only the device can tell: same bits twice, same 4-bit bytes as on a CPU, room in fp16's range."""
    twice = all(numbers.repeats for numbers in here.values())
    text = "A second pass gives the same to the bit." if twice else "A second pass differs in the last bits."
    fix = "" if twice else "A run is not repeatable to the bit here; report it if a run says that its base changed."
    yield Line("repeats", "ok" if twice else "warning", text, fix)
    if kind != "cpu":
        differ, count = _packed_apart(here, cpu)
        share = differ / max(count, 1)
        state: State = "ok" if share <= _FEW_BYTES else "failed"
        comparison = (
            "are the CPU's to the bit" if not differ else f"differ from the CPU's in {differ:,} of {count:,} bytes"
        )
        yield Line("quantized", state, f"4-bit values made here {comparison}.", "" if state == "ok" else _REPORT)
    largest = max(numbers.largest for numbers in here.values())
    if any(numbers.dtype == "float16" for numbers in here.values()):
        near = largest > _FP16_NEAR * _FP16_LARGEST
        message = f"fp16 is computed in: between layers of these small bases numbers reach {largest:,.0f} of 65,504."
        fix = "Real bases are larger: Gemma's and some of Qwen's may overflow; a run says when steps are skipped."
        yield Line("fp16", "warning" if near else "ok", message, fix)


def _packed_apart(here: dict[str, Numbers], cpu: dict[str, Numbers]) -> tuple[int, int]:
    differ = count = 0
    for name, numbers in here.items():
        for linear, part in numbers.packed.items():
            other = cpu[name].packed.get(linear)
            count += part.numel()
            differ += part.numel() if other is None or other.shape != part.shape else int((part != other).sum())
    return differ, count
