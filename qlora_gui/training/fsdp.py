"""FSDP QLoRA: every process keeps its share of the 4-bit weights and fetches a layer's others when it is used.

Only what is frozen and large is shared out, by torch's `fully_shard` (Zhao et al., 2304.11277). What trains, norms,
embeddings and head are whole in every process, and DistributedDataParallel averages gradients: a step is that of plain
data parallel to the bit, with trained biases, 8-bit optimizers and the fused LoRA as ever. Quantized weights are bytes,
which `fully_shard` gathers as they are: they need no other storage, as flat parameters would.
"""

from typing import Any

import bitsandbytes as bnb
import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from qlora_gui.errors import UserError


def install(model: Any, device: torch.device) -> dict[str, int]:
    """Move a PEFT model to `device`, with this process's share of the 4-bit weights of every layer.

    Gives the bytes of all of them, `weights_4bit`, and of its `share`. The model may lie on the CPU: layers come over one
    at a time. Raises UserError for a base whose layers are not known.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    base = model.get_base_model()
    layers = [part for part in base.modules() if isinstance(part, GradientCheckpointingLayer)]
    for linear in _linears(base):
        linear.quant_state.to(device)  # the statistics, which are small, are whole in every process
    packed = {weight for layer in layers for weight in _plain_weights(layer)}
    if not packed:
        raise UserError(
            f"FSDP needs to know the layers of a base, and {base.config.model_type} does not tell: go without."
        )
    whole = set(model.parameters()) - packed
    for part in (*whole, *model.buffers()):
        part.data = part.data.to(device)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    size = sum(weight.nbytes for weight in packed)
    del packed
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    fully_shard(base.base_model, mesh=mesh, ignored_params=whole)  # whose forward pass is each step's beginning
    mine = sum(weight.to_local().nbytes for weight in _shared(model).values())
    return {"weights_4bit": size, "share": mine}


def wrapped(model: Any, device: torch.device) -> Any:
    """The sharded model, with the gradients of what trains averaged over the processes."""
    parallel = nn.parallel.DistributedDataParallel
    parallel._set_params_and_buffers_to_ignore_for_model(model, list(_shared(model)))
    return parallel(model, device_ids=None if device.type == "cpu" else [device.index])


def _linears(part: nn.Module) -> list[Any]:
    return [module for module in part.modules() if isinstance(module, bnb.nn.Linear4bit)]


def _plain_weights(layer: nn.Module) -> list[nn.Parameter]:
    """The 4-bit weights of a layer, made plain parameters."""
    for linear in _linears(layer):
        linear.weight = nn.Parameter(linear.weight.data, requires_grad=False)
    return [linear.weight for linear in _linears(layer)]


def _shared(model: nn.Module) -> dict[str, Any]:
    """The parameters that are shared out, by name."""
    from torch.distributed.tensor import DTensor

    return {name: part for name, part in model.named_parameters() if isinstance(part, DTensor)}
