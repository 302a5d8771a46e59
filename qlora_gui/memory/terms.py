"""The terms of a memory plan in bytes, for every moment of a step that can be its peak."""

from collections.abc import Iterator
from dataclasses import dataclass

from qlora_gui.memory import activations
from qlora_gui.memory.step_sizes import Step
from qlora_gui.optimizers import OPTIMIZERS
from qlora_gui.runs import several
from qlora_gui.step_rules import BLOCK, BLOCK2, chunk_rows, keeps_unpacked

# Layers that a process holds whole beside its share: one in use, the next being gathered, and its buffer.
_WHOLE_LAYERS = 3
MIB = 2**20
# Assumed: what CUDA and its libraries hold besides tensors (context, kernels), 0.4 to 0.6 GB on current cards.
CUDA_CONTEXT = 512 * MIB
# Measured: torch, transformers, peft and bitsandbytes imported, resident.
CPU_LIBRARIES = 474 * MIB

LABELS = {
    "weights_4bit": "4-bit weights",
    "weights": "Unquantized weights",
    "lora": "LoRA, gradients, optimizer",
    "biases": "Trained biases",
    "boundaries": "Checkpoint boundaries",
    "activations": "Activations kept",
    "working": "One layer's working set",
    "dequantized": "Dequantization buffer",
    "loss": "Loss",
    "framework": "Framework and context",
}
MOMENTS = {
    "forward": "in the first layer's forward pass",
    "attention": "in the last layer's attention",
    "loss": "in the loss",
    "last": "in the last layer's backward pass",
    "first": "in the first layer's backward pass",
    "optimizer": "in the optimizer step",
}


@dataclass(frozen=True)
class Trained:
    """Numbers trained by LoRA and as biases, and the bytes of their optimizer states."""

    lora: int
    biases: int
    lora_states: int
    bias_states: int


def trained(step: Step) -> Trained:
    """Trained parameters and the states of their optimizer."""
    shape, rank = step.shape, step.config.rank
    counts = [rank * size for linear in step.lora for size in (linear.inputs, linear.outputs)] * shape.layers
    inside = [linear.outputs for linear in shape.linears if step.trains_bias(linear)]
    inside += [norm.size for norm in shape.norms if step.trains_bias(norm)]
    biases = inside * shape.layers + [norm.size for norm in shape.outer_norms if step.trains_bias(norm)]
    states = OPTIMIZERS[step.config.optimizer].state_bytes
    return Trained(sum(counts), sum(biases), sum(map(states, counts)), sum(map(states, biases)))


def weights_4bit(step: Step) -> int:
    """Half a byte per weight and one absmax per block of 64: fp32, or one byte and one fp32 per block of 256 of them.

    That is 0.515869 or 0.5625 bytes per weight (QLoRA, 2305.14314, section 3). Sharded by FSDP it is a share of the
    halves and a few whole layers.
    """
    packed = statistics = 0
    double = step.config.double_quant if step.shape.stored_double is None else step.shape.stored_double
    for linear in step.shape.linears:
        blocks = -(-linear.weights // BLOCK)
        packed += -(-linear.weights // 2)
        statistics += blocks + 4 * -(-blocks // BLOCK2) if double else 4 * blocks
    layers, sharers = step.shape.layers, several.sharers(step.config)
    held = layers if sharers == 1 else min(-(-layers // sharers) + _WHOLE_LAYERS, layers + 1)
    size = packed * held + statistics * layers
    return size * step.shape.linear_weights // step.shape.listed_weights if step.shape.counted else size


def weights(step: Step) -> int:
    """Embedding, head, frozen linear biases, experts and the like in the compute dtype (fp32 the stock way), norms in fp32."""
    shape = step.shape
    wide = 4 if step.stock else step.number
    in_linears = sum(part.outputs for part in shape.linears if part.bias and not step.trains_bias(part)) * shape.layers
    of_norms = shape.norm_biases if step.config.bias == "all" else 0  # counted with the trained biases
    frozen = shape.embedding + shape.head + in_linears + shape.beyond
    return frozen * wide + 4 * (shape.norm_parameters - of_norms)


def moments(step: Step) -> Iterator[tuple[str, dict[str, int]]]:
    """Every moment that can be the peak, with its terms in bytes.

    Steps after the first are meant: the optimizer's states exist. Gradients exist where the micro-batch is not the
    first of its step, else each appears in its layer's backward pass.
    """
    shape, sums, held = step.shape, trained(step), activations.count_kept(step)
    constant = {"weights_4bit": weights_4bit(step), "weights": weights(step), "framework": _framework(step)}
    constant["dequantized"] = unpacked = _unpacked(step)
    whole, recomputed = shape.layers, step.recomputed
    in_all = {
        "boundaries": recomputed * held.boundary,
        "activations": (whole - recomputed) * held.total + _shared(step),
    }
    in_first = {
        "boundaries": held.boundary if step.first_is_recomputed else 0,
        "activations": _shared(step) + (0 if step.first_is_recomputed else held.total),
    }
    accumulated = step.config.gradient_accumulation > 1

    def at(gradients: float, **terms: int) -> dict[str, int]:
        share = 1.0 if accumulated else gradients
        lora = sums.lora * 4 + round(sums.lora * 4 * share) + sums.lora_states
        biases = sums.biases * 4 + round(sums.biases * 4 * share) + sums.bias_states
        return constant | {"lora": lora, "biases": biases} | terms

    yield "forward", at(0.0, activations=_making_mask(step, held))
    yield (
        "attention",
        at(0.0, **in_all, working=activations.eager_forward(step, held) - (whole > recomputed) * held.total),
    )
    yield "loss", at(0.0, **in_all, **_loss(step))
    for moment in activations.backward(step, held):
        again = held.again if step.last_is_recomputed else 0
        yield (
            "last",
            at(1 / whole, **in_all, working=again + moment.working, dequantized=unpacked or moment.dequantized),
        )
        again = held.again if step.first_is_recomputed else 0
        yield "first", at(1.0, **in_first, working=again + moment.working, dequantized=unpacked or moment.dequantized)
    yield "optimizer", at(1.0, working=_optimizer(step, sums))


def _unpacked(step: Step) -> int:
    """On a CPU with memory to spare, linears with LoRA are kept unpacked as well (models/lora_kernel.py)."""
    count = step.shape.layers * sum(linear.weights for linear in step.lora)
    return 0 if step.cuda or step.stock or not keeps_unpacked(count, step.free) else count * step.number


def _framework(step: Step) -> int:
    return CUDA_CONTEXT if step.cuda else CPU_LIBRARIES


def _shared(step: Step) -> int:
    """What all layers share: the mask, and the input of the final norm."""
    return step.tokens * step.shape.hidden * step.stream + _mask(step) * step.number


def _mask(step: Step) -> int:
    """Numbers of the additive mask: one per head where positions are a bias, and packed rows have a mask each."""
    if step.stock:
        return 0  # made anew in every layer
    square = step.length**2 * (step.rows if step.masked else 1)  # [rows or 1, 1, tokens, tokens]
    if step.family.bias_per_head:
        return square * step.shape.heads if step.masked or not step.eager else 0
    return square if step.masked else 0


def _making_mask(step: Step, held: activations.Kept) -> int:
    """A bias per head is made in fp32 from distances, and masked into a second copy before it is cast."""
    if not step.family.bias_per_head or not _mask(step):
        return 0
    square = _mask(step) // step.shape.heads * (8 + 1 + step.number)  # int64 distances, bools, transformers' own mask
    return _mask(step) * 8 + square + held.boundary + held.attention


def _loss(step: Step) -> dict[str, int]:
    """The chunked loss: final hidden states, the supervised ones, their gradient, and one chunk of logits.

    All logits at once: about 12 bytes x tokens x vocabulary (log-probabilities, their gradient and that of the logits,
    in fp32), capped logits where there are such, and stock the head that was upcast to fp32 again in 16 bits.
    """
    hidden = step.tokens * step.shape.hidden
    logits = step.tokens * step.shape.vocab  # [tokens, vocabulary]
    if not step.own_logits:
        return {"working": 3 * hidden * step.number, "loss": _chunk(step)}
    head = step.shape.vocab * step.shape.hidden * step.number if step.stock else 0
    capped = logits * step.number if step.capped else 0
    return {"working": hidden * step.stream, "loss": 12 * logits + capped + head}


def _chunk(step: Step) -> int:
    """Logits of a chunk in fp32, and in the compute dtype where that is another."""
    rows = chunk_rows(step.shape.vocab, "cuda" if step.cuda else "cpu")
    return min(rows, step.tokens) * step.shape.vocab * (4 + (step.number if step.number < 4 else 0))


def _optimizer(step: Step, sums: Trained) -> int:
    """What an optimizer makes on a GPU of all parameters at once."""
    return OPTIMIZERS[step.config.optimizer].scratch * (sums.lora + sums.biases) if step.cuda else 0
