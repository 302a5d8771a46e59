"""The program as its own processes use it, in this process: a whole run, and the compare worker's requests."""

import os
import zlib
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import bitsandbytes as bnb
import torch
from transformers import Trainer, TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer

from qlora_gui.config import make
from qlora_gui.errors import UserError
from qlora_gui.inference import protocol, worker
from qlora_gui.inference.client import CompareClient
from qlora_gui.inference.columns import Columns
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.training.run import train

DTYPE = "QLORA_GUI_COMPUTE_DTYPE"


class Late(Exception):
    """A refusal that came only after the training, or in it."""


@dataclass
class Recorded:
    """What a run's first step saw and did."""

    run: Run
    loss: float = float("nan")
    gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    shapes: list[tuple[int, ...]] = field(default_factory=list)  # of input_ids, a micro-batch each
    shared: bool = False  # several examples in a row
    streams: set[str] = field(default_factory=set)  # number formats that the layers give
    weights: tuple[int, int] = (0, 0)  # in 4 bits, and all

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.run.events()[0] if event["kind"] == kind]

    def said(self) -> str:
        """What the run told before its first step."""
        texts = []
        for event in self.run.events()[0]:
            if event["kind"] == "step":
                break
            texts += [str(value) for key, value in event.items() if key in ("text", "message", "warning")]
        return " ".join(texts)


def run(store: RunStore, exact: bool, **knobs: Any) -> Recorded:
    """Train a run to its end, in bf16. `exact`: in fp32, one step of next to nothing, from weights that say something.

    Raises what the run raises, but Late where it refuses after its first step.
    """
    knobs = {"logging_steps": 1, "gradient_accumulation": 1, "gradient_checkpointing": "none"} | knobs
    if exact:
        knobs = {"max_steps": 1, "learning_rate": 1e-9, "dropout": 0.0, "max_grad_norm": 0.0, "rank": 8} | knobs
    created = store.create(make(knobs))
    recorded = Recorded(created)
    original = Trainer.train

    def recording(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        trainer.add_callback(_Recorder(recorded, stir=exact))
        taken = trainer.training_step

        def step(model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> torch.Tensor:
            recorded.shapes.append(tuple(inputs["input_ids"].shape))
            recorded.shared |= "blocks" in inputs
            loss: torch.Tensor = taken(model, inputs, *rest, **more)
            recorded.loss = float(loss)
            return loss

        trainer.training_step = step
        return original(trainer, *args, **kwargs)

    environment = {DTYPE: "float32" if exact else "bfloat16"}
    with mock.patch.object(Trainer, "train", recording), mock.patch.dict(os.environ, environment):
        try:
            train(created, EventLog(created.events_file), False)
        except UserError as error:
            if recorded.events("step"):
                raise Late(str(error)) from error
            raise
    return recorded


class _Recorder(TrainerCallback):
    def __init__(self, recorded: Recorded, stir: bool):
        self.recorded, self.stir = recorded, stir

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        for part in model.modules():
            if isinstance(part, GradientCheckpointingLayer):
                part.register_forward_hook(self._layer)
        self.recorded.weights = weights(model)
        if self.stir:
            stir(model)

    def _layer(self, module: Any, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if torch.is_tensor(first):
            self.recorded.streams.add(str(first.dtype).removeprefix("torch."))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        grown = [(name, part) for name, part in model.named_parameters() if part.requires_grad]
        self.recorded.gradients = {name: part.grad.clone() for name, part in grown if part.grad is not None}


def weights(model: Any) -> tuple[int, int]:
    """How many weights are in 4 bits, and how many there are; an adapter's do not count."""
    linears = {name: part for name, part in model.named_modules() if isinstance(part, bnb.nn.Linear4bit)}
    packed = {f"{name}.weight" for name in linears}
    plain = [part for name, part in model.named_parameters() if name not in packed and "lora_" not in name]
    in_4_bits = sum(part.in_features * part.out_features for part in linears.values())
    return in_4_bits, in_4_bits + sum(part.numel() for part in plain)


@torch.no_grad()
def stir(model: Any) -> None:
    """Trained weights that say something, the same for the same name: B is not zero, and biases have moved."""
    for name, part in model.named_parameters():
        if part.requires_grad:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            noise = torch.randn(part.shape, generator=generator)
            if "lora_" in name:
                part.copy_(noise * (0.05 if "lora_B" in name else 0.1))
            else:
                part.add_((noise * 0.1).to(part.dtype))


class InProcess(CompareClient):
    """A compare client whose worker is this process: as exact, and without seconds of importing."""

    def __init__(self) -> None:
        super().__init__()
        self._columns = Columns()

    @property
    def is_loaded(self) -> bool:
        return True

    def _exchange(self, request: protocol.Request) -> Generator[protocol.Event]:
        lines: list[str] = []
        with mock.patch.dict(os.environ, {DTYPE: "float32"}):
            request = protocol.to_request(protocol.to_line(request))
            worker.do(request, self._columns, lambda event: lines.append(protocol.to_line(event)), lambda: False)
        for line in lines:
            event = protocol.to_event(line)
            assert event is not None
            yield event
