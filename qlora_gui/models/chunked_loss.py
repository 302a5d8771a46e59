"""The loss of a causal LM in one pass over chunks: logits -> loss -> gradient at once, supervised tokens only.

The head is frozen, so the gradient of the hidden states is all that a chunk has to leave; its logits are
freed before the next one. The stock loss keeps several copies of all logits, about 12 bytes x tokens x vocabulary.
"""

import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch.nn import functional
from transformers.modeling_outputs import CausalLMOutput

from qlora_gui.data.tokenization import IGNORED
from qlora_gui.models import attention
from qlora_gui.step_rules import chunk_rows

_PROBE_TOKENS = 8
# Of the largest number of the hidden states, from one pass to the next; at least one step of their format.
_ROUNDING = 1e-3


class _SummedLoss(torch.autograd.Function):
    """Summed cross entropy of hidden [tokens, width] under a frozen head; its gradient is made in the forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
    ) -> torch.Tensor:
        rows = chunk_rows(weight.shape[0], weight.device.type)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None  # [tokens, width]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), rows):
            part, wanted = hidden[start : start + rows], targets[start : start + rows, None]  # [rows, width], [rows, 1]
            total += _chunk(part, weight, bias, wanted, None if gradient is None else gradient[start : start + rows])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors  # [tokens, width]; grads[0] is that of the sum, one number
        return (gradient * grads[0]).to(gradient.dtype), None, None, None


def _chunk(
    part: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    wanted: torch.Tensor,
    gradient: torch.Tensor | None,
) -> torch.Tensor:
    """The summed loss of some rows, their gradient written to `gradient`; a call of its own, so that logits are freed.

    part and gradient: [rows, width]; weight: [vocabulary, width]; bias: [vocabulary]; wanted: [rows, 1]. The logits are
    written over, first by their exponentials and then by their gradient: one such tensor in fp32 is the peak of a chunk.
    """
    logits = functional.linear(part, weight, bias).float()  # [rows, vocabulary]
    largest = logits.amax(-1, keepdim=True)  # [rows, 1], as `losses` and `normalizer`
    losses = largest - logits.gather(1, wanted)
    # in these steps because torch.softmax on a CPU sums less exactly: 1e-5 off with 300,000 words
    normalizer = logits.sub_(largest).exp_().sum(-1, keepdim=True)
    losses += normalizer.log()
    if gradient is not None:
        # softmax - onehot, left unscaled so that fp16 does not underflow
        logits.div_(normalizer).scatter_add_(1, wanted, torch.full_like(normalizer, -1.0))
        _product(logits.to(part.dtype), weight, gradient)  # a second copy where the model computes in 16 bits
    return losses.sum()


def _product(rows: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """out = rows @ weight; on a CPU for a multiple of eight rows, for of others some kernels are less exact.

    Seen in fp32 on an EPYC, 300,000 words: 1 and 7 rows 5e-5 off, 4, 8, 16 and 32 rows below 1e-6.
    """
    lacking = -len(rows) % 8
    if lacking and rows.device.type == "cpu":
        out.copy_((functional.pad(rows, (0, 0, 0, lacking)) @ weight)[: len(rows)])
    else:
        torch.mm(rows, weight, out=out)


def summed_loss(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor
) -> torch.Tensor:
    """Cross entropy of the next token, summed over the labels that are not IGNORED, in fp32.

    hidden: [rows, tokens, width]; weight: [vocabulary, width], frozen; bias: [vocabulary] or None;
    labels: [rows, tokens], not shifted. Exact: equals torch's cross entropy of all logits at once.
    """
    targets = labels[:, 1:]  # [rows, tokens - 1]
    places = (targets != IGNORED).flatten().nonzero().squeeze(1)
    chosen = hidden[:, :-1].flatten(0, 1).index_select(0, places)  # [supervised tokens, width]
    total: torch.Tensor = _SummedLoss.apply(
        chosen.to(weight.dtype), weight, bias, targets.flatten().index_select(0, places)
    )
    return total


def install(model: Any) -> str:
    """Give a causal LM with a frozen base the chunked loss: `model(input_ids, labels=...)` then returns only a loss.

    It is the mean over the labels that are not IGNORED, or their sum / `num_items_in_batch` where that is given.
    Checked on a few tokens first: where the logits are not plainly head(hidden), or the head is trained, the loss
    is that of all logits at once. Returns "" or the reason for that.
    """
    reason = _unsuited(model)
    summed = _of_all_logits if reason else _chunked
    plain_forward: Callable[..., Any] = model.forward

    def forward(
        self: Any, *args: Any, labels: torch.Tensor | None = None, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        if labels is None:
            return plain_forward(*args, **kwargs)
        count = num_items_in_batch if num_items_in_batch is not None else (labels[:, 1:] != IGNORED).sum()
        kwargs.pop("return_dict", None)
        return CausalLMOutput(loss=summed(self, plain_forward, labels, *args, **kwargs) / count)

    forward.__signature__ = _with_rest(inspect.signature(plain_forward))  # type: ignore[attr-defined]
    model.forward = MethodType(forward, model)
    return reason


def _with_rest(signature: inspect.Signature) -> inspect.Signature:
    """A bound forward's signature for the function behind it, which takes any keyword besides.

    generate() reads from it whether a base takes position_ids, without which prompts padded on the left go wrong.
    """
    kind = inspect.Parameter
    given = [part for part in signature.parameters.values() if part.kind is not kind.VAR_KEYWORD]
    return signature.replace(parameters=[kind("self", kind.POSITIONAL_ONLY), *given, kind("kwargs", kind.VAR_KEYWORD)])


def _chunked(model: Any, plain_forward: Any, labels: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    head = model.get_output_embeddings()
    hidden = model.base_model(*args, **kwargs).last_hidden_state  # [rows, tokens, width]
    return summed_loss(hidden, head.weight, head.bias, labels)


def _of_all_logits(model: Any, plain_forward: Any, labels: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    with attention.handed_blocks(kwargs):
        logits = (
            plain_forward(*args, **kwargs).logits[:, :-1].flatten(0, 1).float()
        )  # [rows * (tokens - 1), vocabulary]
    return functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")


def _unsuited(model: Any) -> str:
    head = model.get_output_embeddings()
    if head is not None and any(part.requires_grad for part in head.parameters()):
        return "its head is trained"
    return not_plain(model)


@torch.no_grad()
def not_plain(model: Any) -> str:
    """Why the logits of a causal LM are not head(hidden), tested on a few tokens; "" where they are."""
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:
        return "its head is not a plain linear layer"
    if model.base_model is model:
        return "its decoder cannot be called without its head"
    was_training = model.training
    model.eval()
    ids = torch.arange(_PROBE_TOKENS, device=head.weight.device)[None]
    made: list[torch.Tensor] = []
    hook = head.register_forward_hook(lambda module, args, out: made.extend((args[0], out)))
    try:
        expected = model(input_ids=ids, use_cache=False).logits
        hook.remove()
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        hook.remove()
        model.train(was_training)
    # Of one pass the logits are the head's to the bit. The decoder is asked again, and a GPU may sum in another order.
    plain = len(made) == 2 and torch.equal(expected.to(made[1].dtype), made[1]) and alike(made[0], hidden)
    return "" if plain else "its logits are more than head(hidden)"


def alike(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two results of the same pass differ by rounding alone, in another order of sums."""
    if actual.shape != expected.shape:
        return False
    rounding = max(_ROUNDING, torch.finfo(expected.dtype).eps)
    actual, expected = actual.float(), expected.float()
    return bool((actual - expected).abs().max() <= rounding * expected.abs().max())
