"""A base of few layers on fake tensors: the real modules, with 4-bit weights that have shapes and no values."""

import copy
import logging
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert

from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.models import chunked_loss, text_part
from qlora_gui.step_rules import BLOCK, BLOCK2

COMPUTE = torch.bfloat16
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def read_config(base: dict[str, Any]) -> Any:
    """config.json as transformers reads it. Raises UserError for an architecture that it does not know."""
    kind = base.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise UserError(
            f"This base is of the type '{kind}', which this version of transformers does not know: update it."
        )
    values = {key: value for key, value in base.items() if key != "quantization_config"}
    # infinity, which JSON has no word for, is an object in it
    return CONFIG_MAPPING[kind].from_dict(PreTrainedConfig._decode_special_floats(values))


def with_layers(config: Any, layers: int) -> Any:
    """The same architecture with fewer layers of its text part; lists that hold one entry per layer are cut."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    whole = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == whole:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    return short


def own_logits(config: Any) -> bool:
    """Whether the logits are more than head(hidden): tested on a real model without layers and with a small vocabulary."""
    small = with_layers(config, 0)
    text = small.get_text_config()
    text.vocab_size = 16
    text.pad_token_id = text.bos_token_id = text.eos_token_id = 0
    return chunked_loss.install(_model(small, torch.float32).requires_grad_(False)) != ""


def base_on_meta(config: Any, run: RunConfig) -> Any:
    """A base in 4 bits as it is after loading, on the meta device."""
    with torch.device("meta"):
        model = _model(config, COMPUTE)
        _quantize(model, run)
    return model


def _model(config: Any, dtype: torch.dtype) -> Any:
    """A base with this config as it is trained, without what text does not pass."""
    kind, config = text_part.model_class(config)
    model = kind._from_config(config, dtype=dtype)
    text_part.drop_the_rest(model)
    return model


def _quantize(model: Any, run: RunConfig) -> None:
    """Replace linears as transformers' bitsandbytes loader does."""
    skipped = get_keys_to_not_convert(model)
    for name, part in list(model.named_modules()):
        if (type(part) is nn.Linear or isinstance(part, Conv1D)) and not any(key in name for key in skipped):
            outputs, inputs = part.weight.t().shape if isinstance(part, Conv1D) else part.weight.shape
            linear = bnb.nn.Linear4bit(inputs, outputs, bias=False, compute_dtype=COMPUTE)
            linear.bias = part.bias
            linear.weight = bnb.nn.Params4bit(
                torch.empty((part.weight.numel() + 1) // 2, 1, dtype=torch.uint8),
                requires_grad=False,
                quant_state=_quant_state(torch.Size((outputs, inputs)), run),
                compress_statistics=run.double_quant,
                quant_type=run.quant_type,
                bnb_quantized=True,
                module=linear,
            )
            model.set_submodule(name, linear)
    model.is_loaded_in_4bit = True


def _quant_state(shape: torch.Size, run: RunConfig) -> QuantState:
    """What bitsandbytes keeps beside a weight: one absmax per block, itself quantized where `double_quant` is on."""
    blocks = -(-shape.numel() // BLOCK)
    state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8 if run.double_quant else torch.float32),
        shape=shape,
        code=torch.empty(16),
        blocksize=BLOCK,
        quant_type=run.quant_type,
        dtype=COMPUTE,
    )
    if run.double_quant:
        absmaxes = torch.empty(-(-blocks // BLOCK2))
        state.offset, state.nested = torch.empty(()), True
        state.state2 = QuantState(absmax=absmaxes, code=torch.empty(256), blocksize=BLOCK2, dtype=torch.float32)
    return state


def to_fake(model: nn.Module) -> None:
    """Give every meta tensor of `model` a fake one of its size on the CPU; call it inside a FakeTensorMode."""
    made: dict[int, nn.Parameter] = {}
    for part in model.modules():
        for name, old in part._parameters.items():
            if old is not None:
                made[id(old)] = made.get(id(old)) or _fake_parameter(old)
                part._parameters[name] = made[id(old)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = _fake(buffer)


def _fake(old: torch.Tensor) -> torch.Tensor:
    return torch.empty(old.shape, dtype=old.dtype)


def _fake_parameter(old: nn.Parameter) -> nn.Parameter:
    """A plain parameter, for a 4-bit one too: Params4bit cannot wrap a fake tensor, and only its state is asked for."""
    new = nn.Parameter(_fake(old), requires_grad=old.requires_grad)
    state = getattr(old, "quant_state", None)
    if state is not None:
        new.quant_state = state  # type: ignore[attr-defined]
    while state is not None:
        for name in ("absmax", "code", "offset"):
            if (value := getattr(state, name)) is not None:
                setattr(state, name, _fake(value))
        state = state.state2
    return new


def tensors_of(model: nn.Module) -> list[torch.Tensor]:
    """Everything a model keeps: parameters, buffers, and the constants its 4-bit weights are dequantized with."""
    tensors = [*model.parameters(), *model.buffers()]
    for weight in model.parameters():
        state = getattr(weight, "quant_state", None)
        while state is not None:
            tensors += [part for part in (state.absmax, state.code, state.offset) if part is not None]
            state = state.state2
    return tensors
