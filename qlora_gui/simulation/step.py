"""One optimizer step as the trainer makes it, with the bytes alive at every point of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from qlora_gui.config import RunConfig
from qlora_gui.optimizers import OPTIMIZERS
from qlora_gui.simulation.fake_model import tensors_of
from qlora_gui.simulation.live_bytes import CUDA_BLOCK, LiveBytes, Place

Way = Literal["ours", "stock"]


@dataclass(frozen=True)
class Peaks:
    """Bytes: the highest sum of live storages at every place, and what stays between two steps."""

    layers: int
    places: dict[Place, int]
    resident: int


def peak_of_step(
    model: Any, batch: dict[str, torch.Tensor], run: RunConfig, way: Way = "ours", block: int = CUDA_BLOCK
) -> Peaks:
    """Take one step with `model` (real or fake tensors, on the CPU, within `cuda_rules`) and give its peaks.

    The optimizer's states exist already, as from the second step on; with gradient accumulation two micro-batches
    run, for the second starts with the gradients of the first. `way` is ours or stock.
    """
    trained = [part for part in model.parameters() if part.requires_grad]
    with LiveBytes(block) as tracker:
        tracker.watch(tensors_of(model))
        optimizer = make_optimizer(trained, run)
        for part in trained:
            part.grad = torch.zeros_like(part)
        optimizer.step()
        optimizer.zero_grad()
        resident = tracker.live
        tracker.watch(batch.values())
        tracker.peaks.clear()
        layers = _name_places(model, tracker)
        for _ in range(min(run.gradient_accumulation, 2)):
            tracker.at("forward")
            loss = model(**batch).loss if way == "ours" else _under_autocast(model, batch)
            backward(loss)
            del loss
        tracker.at("optimizer")
        if run.max_grad_norm:
            nn.utils.clip_grad_norm_(trained, run.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return Peaks(layers, tracker.peaks, resident)


def make_optimizer(trained: Iterable[nn.Parameter], run: RunConfig) -> torch.optim.Optimizer:
    """The optimizer as transformers makes it for a GPU."""
    row = OPTIMIZERS[run.optimizer]
    module, _, name = row.implementation.rpartition(".")
    made: torch.optim.Optimizer = getattr(import_module(module), name)(trained, **row.options)
    return made


def backward(loss: torch.Tensor) -> None:
    """loss.backward(), which would leave `cuda_rules` while layers are computed again."""
    torch.autograd.graph._engine_run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _under_autocast(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The loss as accelerate gives it with bf16 on: forward under autocast, then every output made fp32."""

    def run() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return model(**batch)

    loss: torch.Tensor = convert_outputs_to_fp32(run)()["loss"]
    return loss


def _name_places(model: nn.Module, tracker: LiveBytes) -> int:
    """Let the tracker know which layer the step is in; returns the number of layers."""
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]

    def enter(number: int) -> Any:
        return lambda *_: tracker.at("forward", number)

    def leave(number: int) -> Any:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            hidden = out[0] if isinstance(out, tuple) else out
            if hidden.requires_grad:
                hidden.register_hook(lambda _: tracker.at("backward", number))
            if number == len(layers) - 1:
                tracker.at("loss")

        return hook

    for number, layer in enumerate(layers):
        layer.register_forward_pre_hook(enter(number))
        layer.register_forward_hook(leave(number))
    return len(layers)
