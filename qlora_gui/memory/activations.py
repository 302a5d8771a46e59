"""Activations of one layer in bytes: what a forward pass saves for the backward, and what the backward needs besides.

Counted from the code that runs: transformers' modeling_bloom.py and modeling_llama.py with models/lora_kernel.py (one copy
of the input and x @ A per linear), models/norms.py (the input) and models/attention.py; the stock way with PEFT's
lora/bnb.py under autocast, where every linear keeps a 16-bit copy of its own. tests/memory/test_estimate.py compares it with
the simulated step.
"""

from dataclasses import dataclass

from qlora_gui.families.family import Linear, Norm
from qlora_gui.memory.step_sizes import Step


@dataclass(frozen=True)
class Moment:
    """A moment of one layer's backward pass: bytes besides what the forward kept, and the weight dequantized for it."""

    working: int
    dequantized: int = 0


@dataclass(frozen=True)
class Kept:
    """What one layer keeps, in bytes, by the part that keeps it.

    `boundary` is the layer's input, `first` what its first norm keeps: the same tensor, or an fp32 copy of it.
    `last_input` is the part of `mlp` that the last linear keeps: the first thing the backward pass gives back.
    """

    boundary: int
    first: int
    attention: int
    mlp: int
    last_input: int

    @property
    def total(self) -> int:
        return self.first + self.attention + self.mlp

    @property
    def again(self) -> int:
        """What recomputing the layer adds to its boundary."""
        return self.total - (self.boundary if self.first == self.boundary else 0)


def count_kept(step: Step) -> Kept:
    """What one layer keeps for its backward pass when it is not recomputed."""
    shape = step.shape
    attention = [linear for linear in shape.linears if "mlp" not in linear.name]
    mlp = [linear for linear in shape.linears if "mlp" in linear.name]
    before, inside = [norm for norm in shape.norms if not _on_heads(norm)], [n for n in shape.norms if _on_heads(n)]
    norms = [_norm(step, norm) for norm in before]
    half = len(norms) // 2
    return Kept(
        boundary=step.tokens * shape.hidden * step.stream,
        first=norms[0],
        attention=sum(norms[1:half])
        + sum(_norm(step, norm) for norm in inside)
        + _inputs(step, attention[:-1])
        + _own(step, attention[-1])
        + _attended(step),
        mlp=sum(norms[half:]) + _inputs(step, mlp[:-1]) + _activated(step) + _last_input(step, mlp[-1]),
        last_input=_last_input(step, mlp[-1]),
    )


def backward(step: Step, held: Kept) -> list[Moment]:
    """The moments of a layer's backward pass that can be its largest; `working` is relative to `held.total`."""
    gradient = step.tokens * step.shape.hidden * step.stream  # of the layer's output, kept for the residual
    return [
        _last_linear(step, gradient),
        _activation(step, held, gradient),
        _attention(step, held, gradient),
        _first_linear(step, held, gradient),
    ]


def eager_forward(step: Step, held: Kept) -> int:
    """Eager attention in the forward pass: scores, with the mask added, in fp32, and their softmax."""
    if not step.eager:
        return 0
    in_fp32 = 2 * 4  # [rows, heads, tokens, tokens], twice
    return held.attention - _probabilities(step) + _scores(step) * (in_fp32 + step.family.eager_copies * step.number)


def _on_heads(norm: Norm) -> bool:
    return norm.name.startswith("self_attn.")


def _norm(step: Step, norm: Norm) -> int:
    """A norm keeps its input: as it came, or in fp32 where the stock code widens it first."""
    size = 4 if step.stock or step.family.own_norms else step.stream
    count = norm.size
    if _on_heads(norm) and norm.size == step.shape.head_dim:
        count *= step.shape.heads if norm.name.endswith("q_norm") else step.shape.kv_heads
    return step.tokens * count * size


def _own(step: Step, linear: Linear) -> int:
    """What a linear keeps for its LoRA besides the input: the dropout mask and x @ A."""
    if not step.has_lora(linear):
        return 0
    mask = linear.inputs if step.config.dropout else 0
    return step.tokens * (mask + step.config.rank * step.number)


def _inputs(step: Step, linears: list[Linear]) -> int:
    """Linears that read the same tensor: it is kept once, or by the stock way in a 16-bit copy for each."""
    targeted = [linear for linear in linears if step.has_lora(linear)]
    copies = targeted if step.stock else targeted[:1]
    values = step.tokens * step.number * sum(linear.inputs for linear in copies)
    return values + sum(_own(step, linear) for linear in targeted)


def _last_input(step: Step, linear: Linear) -> int:
    values = step.tokens * linear.inputs * step.number if step.has_lora(linear) else 0
    return values + _own(step, linear)


def _scores(step: Step) -> int:
    return step.rows * step.shape.heads * step.length**2  # [rows, heads, tokens, tokens]


def _probabilities(step: Step) -> int:
    """Eager attention keeps its probabilities in fp32 and in the compute dtype, and capped scores."""
    return _scores(step) * (4 + step.number * (2 if step.capped else 1))


def _attended(step: Step) -> int:
    """Queries, keys, values, output; SDPA also a sum for every query, eager attention its probabilities."""
    shape = step.shape
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    numbers = step.tokens * step.number
    spread = 3 * queries if step.repeats else queries + 2 * keys
    fused = queries + keys if step.family.fused_qkv else 0  # what stands beside the values in the one output
    output = numbers * queries
    if step.eager:
        return numbers * (spread + fused) + output + _probabilities(step)
    sums = 4 * step.rows * shape.heads * step.length  # [rows, heads, tokens] in fp32
    mask = step.rows * step.length**2 * step.number if step.stock else 0  # made anew in every layer
    return numbers * (spread + fused) + output + sums + mask


def _activated(step: Step) -> int:
    """A gated MLP keeps both projections and the activation; a plain one what the activation was given."""
    size = 4 if step.stock else step.number  # linears give back fp32 where they are given fp32
    return step.tokens * step.shape.intermediate * size * (3 if step.shape.gated else 1)


def _dense(step: Step, linear: Linear) -> int:
    """A dequantized weight, with its absmax in fp32."""
    return linear.weights * step.number + linear.weights // 16


def _last_linear(step: Step, gradient: int) -> Moment:
    linear = step.shape.linears[-1]
    to_input = step.tokens * linear.inputs * step.number  # bytes of [tokens, in]
    after = to_input if step.config.dropout and step.has_lora(linear) and not step.stock else 0
    weight = _dense(step, linear)
    if after > weight:  # the LoRA's share of the gradient, which dropout keeps apart from the rest
        return Moment(gradient + to_input + after)
    return Moment(gradient + to_input, weight)


def _activation(step: Step, held: Kept, gradient: int) -> Moment:
    size = 4 if step.stock else step.number
    numbers = step.tokens * step.shape.intermediate * size  # bytes of [tokens, intermediate]
    plain = step.family.activation_temporaries if step.stock else 1
    temporaries = 2 if step.shape.gated else plain
    return Moment(gradient + (1 + temporaries) * numbers - held.last_input)


def _attention(step: Step, held: Kept, gradient: int) -> Moment:
    shape = step.shape
    queries = step.tokens * shape.heads * shape.head_dim  # [tokens, heads * head_dim]
    # eager, the softmax: gradient and result in fp32, and the 16-bit probabilities have been given back
    eager = _scores(step) * (8 - step.number)
    # fused: gradients of query, key and value for every query head, and that of the query summed in fp32
    fused = queries * (3 * step.number + 4)
    return Moment(gradient + queries * step.number + (eager if step.eager else fused) - held.mlp)


def _first_linear(step: Step, held: Kept, gradient: int) -> Moment:
    """The first linears of the MLP: their weight is as large as the last linear's and less is kept by then."""
    first = max((x for x in step.shape.linears if "mlp" in x.name), key=lambda x: x.outputs)
    to_outputs = step.tokens * first.outputs * step.number * (2 if len(step.shape.linears) == 7 else 1)
    to_input = step.tokens * first.inputs * step.number
    return Moment(gradient + to_outputs + to_input - held.last_input - _activated(step), _dense(step, first))
