"""Tokens per second of one decoder layer in 4 bits with LoRA, forward and backward, as training computes it."""

import statistics
import time
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.nn import Params4bit
from transformers import LlamaConfig, LlamaForCausalLM

from qlora_gui.config import RunConfig
from qlora_gui.memory.run_time import LayerSpeed, Speed
from qlora_gui.models import device as devices
from qlora_gui.models import lora, lora_kernel

# Layers of SmolLM2-135M and of a 7B base: hidden, intermediate, heads, heads of keys.
_SHAPES = ((576, 1536, 9, 3), (4096, 11008, 32, 32))
_SECONDS = 0.5


def measured(device: torch.device) -> Speed:
    """The speed of a small and of a large layer on this device; the small one first."""
    dtype = devices.compute_dtype(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    on_gpu = device.type != "cpu"
    layers = [_measured(device, dtype, shape, on_gpu) for shape in _SHAPES]
    return Speed(name, str(dtype).removeprefix("torch."), torch.__version__, tuple(layers))


def _measured(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], on_gpu: bool) -> LayerSpeed:
    """From two lengths: what a pass costs for each token, and what it costs by itself (weights are unpacked once)."""
    model, weights = _layer(device, dtype, shape)
    few, many = (256, 2048) if on_gpu else (64, 256) if shape[0] < 1024 else (16, 48)
    short, long = (
        _seconds(model, torch.randn(1, count, shape[0], device=device, dtype=dtype)) for count in (few, many)
    )
    each = max(long - short, 0.2 * long) / (many - few)  # where noise is larger than the difference
    return LayerSpeed(shape[0], weights, 1 / each, max(long - many * each, 0.0))


def _seconds(model: Any, x: torch.Tensor) -> float:
    """Seconds of a pass, the median of some."""
    _pass(model, x)  # the first one makes plans and buffers
    seconds: list[float] = []
    while not seconds or sum(seconds) < _SECONDS:
        began = time.monotonic()
        _pass(model, x)
        seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


def _layer(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Any, int]:
    """A model of one layer with a LoRA of rank 16 on its 4-bit linears, and how many weights those have."""
    hidden, intermediate, heads, of_keys = shape
    sizes = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=of_keys,
        num_hidden_layers=1,
        vocab_size=128,
    )
    with torch.device(device):
        model = LlamaForCausalLM(sizes).to(dtype)
    weights = 0
    for name, part in list(model.model.layers.named_modules()):
        if isinstance(part, torch.nn.Linear):
            weights += part.weight.numel()
            packed = bnb.nn.Linear4bit(
                part.in_features, part.out_features, bias=False, compute_dtype=dtype, quant_type="nf4"
            )
            packed.weight = Params4bit(
                part.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
            )
            parent, _, leaf = name.rpartition(".")
            setattr(model.model.layers.get_submodule(parent), leaf, packed.to(device))
    config = RunConfig(dropout=0.05, gradient_checkpointing="none")
    lora.prepare(model, config)
    wrapped = lora.attach(model, config)
    if hidden < 1024:
        lora_kernel.keep_dense(wrapped)  # as a run on a CPU does with a small base
    return wrapped.train(), weights


def _pass(model: Any, x: torch.Tensor) -> None:
    inputs = x.detach().requires_grad_()  # as every layer but the first has it
    out = model.get_base_model().model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    out.float().square().mean().backward()
    if x.device.type != "cpu":
        torch.accelerator.synchronize(x.device)
