"""A quantized base -> a model that trains: LoRA on its linears, and the biases asked for, in fp32."""

from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError, first_line
from qlora_gui.models import attention, families, lora_kernel, lora_targets, norms
from qlora_gui.step_rules import checkpoint_interval


class TrainedBiasLinear4bit(bnb.nn.Linear4bit):
    """A Linear4bit whose bias stays in fp32 while it is trained.

    bitsandbytes casts `bias.data` to the compute dtype in place on the first forward; an optimizer step of
    2e-4 on a bf16 bias is mostly rounded away. Here the bias is added to the output instead.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self._parameters["bias"]
        self._parameters["bias"] = None
        try:
            out = super().forward(x)
        finally:
            self._parameters["bias"] = bias
        return out if bias is None else out + bias.to(out.dtype)


class TrainedBiasLinear(torch.nn.Linear):
    """A linear in 16 bits, a head mostly, whose trained bias is in fp32 and cast where it is used."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.linear(input, self.weight, self.bias.to(self.weight.dtype))


def prepare(model: Any, config: RunConfig) -> None:
    """Freeze the base, make its norms fp32, choose attention and checkpointing. Embeddings and head stay as they are.

    PEFT's own preparation casts every 16-bit parameter to fp32, which costs BLOOM-7B1 1.9 GiB for its
    embedding alone. `gradient_checkpointing` must be resolved: auto counts as all.
    """
    model.requires_grad_(False)
    model.config.use_cache = model.config.get_text_config().use_cache = False
    norms.widen(model)
    if code := families.code_of(model):
        code.prepare(model)
    attention.install(model, config.attention)
    checkpoint(model, config.gradient_checkpointing)


def checkpoint(model: Any, which: str) -> None:
    """Recompute the activations of `all` layers, of `every-k`-th layer, or of `none`.

    The non-reentrant kind: it needs no gradient on its inputs.
    """
    every = checkpoint_interval(which)
    if not every:
        return
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    layers = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = number % every == every - 1


def settings(config: RunConfig, modules: str | list[str] | None = None) -> LoraConfig:
    """The adapter of a run in PEFT's terms; `modules` where not all that target_modules means can get LoRA."""
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT declares int and computes with any number
        lora_dropout=config.dropout,
        bias=config.bias,
        target_modules=modules or config.target_modules,
        use_rslora=config.use_rslora,
        task_type="CAUSAL_LM",
    )


def attach(model: Any, config: RunConfig, targets: lora_targets.Targets | None = None) -> PeftModel:
    """Wrap a prepared base with a fresh LoRA adapter as `config` says, in its fused form.

    `targets` as lora_targets.resolve gave them, where they are known already. Raises UserError when target_modules
    names linears that the base does not have, and for what else PEFT refuses.
    """
    targets = targets or lora_targets.resolve(model, config.target_modules, config.dropout)
    try:
        wrapped = get_peft_model(model, settings(config, targets.modules))
    except ValueError as error:
        raise UserError(f"LoRA cannot be put on {config.target_modules}: {first_line(error)}") from error
    freeze_other_biases(wrapped)
    keep_trained_biases_exact(wrapped)
    lora_kernel.install(wrapped)
    return wrapped


def freeze_other_biases(model: torch.nn.Module) -> None:
    """Leave out what PEFT counts among the biases for its name, and which is not added to what a linear or norm gives.

    Convolutions, routers, experts and time steps use theirs within a kernel of their own, in 16 bits; Chameleon has norms with
    a bias for each head.
    """
    for module in model.modules():
        plain = isinstance(module, torch.nn.Linear) or "norm" in type(module).__name__.lower()
        for name, part in module.named_parameters(recurse=False):
            if "bias" in name and not (plain and name == "bias" and part.ndim == 1):
                part.requires_grad_(False)


def keep_trained_biases_exact(model: torch.nn.Module) -> None:
    """Make every trained bias fp32, and keep bitsandbytes from casting it back."""
    for module in model.modules():
        bias = getattr(module, "bias", None)
        if isinstance(bias, torch.nn.Parameter) and bias.requires_grad:
            bias.data = bias.data.float()
            if type(module) is bnb.nn.Linear4bit:
                module.__class__ = TrainedBiasLinear4bit
            elif type(module) is torch.nn.Linear:
                module.__class__ = TrainedBiasLinear


def counts(model: torch.nn.Module) -> dict[str, int]:
    """How many parameters are trained, how many of those are biases, and how many called a bias are not trained."""
    trained = [(name, part) for name, part in model.named_parameters() if part.requires_grad]
    return {
        "trained": sum(part.numel() for _, part in trained),
        "biases": sum(part.numel() for name, part in trained if _is_bias(name)),
        "frozen_biases": sum(
            part.numel() for name, part in model.named_parameters() if _is_bias(name) and not part.requires_grad
        ),
        "layers": sum(name.endswith("lora_A.default.weight") for name, _ in trained),
    }


def _is_bias(name: str) -> bool:
    return "bias" in name.rpartition(".")[2]
