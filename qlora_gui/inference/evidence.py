"""The worker's side of an evaluation: rows encoded as in training, measured under all columns; what is known about each adapter."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from qlora_gui.data import chat_template, prompts, tokenization
from qlora_gui.data.chat import Chat
from qlora_gui.data.formats import Example
from qlora_gui.errors import UserError
from qlora_gui.inference import clean_base, protocol, score
from qlora_gui.inference.adapter_file import Adapter
from qlora_gui.inference.clean_base import CleanBase
from qlora_gui.inference.columns import Columns
from qlora_gui.inference.sampling import Decoding
from qlora_gui.models import context, lora_kernel

Emit = Callable[[protocol.Event], None]


def evaluate(columns: Columns, request: protocol.Evaluate, emit: Emit, cancelled: Callable[[], bool]) -> None:
    """Measure what the request asks for: emits `Facts`, `Rows`, then `Measured`, `Foreign` and `General`. Raises UserError."""
    base, multi_lora = columns.base, columns.multi_lora
    if base is None or multi_lora is None:
        raise UserError("No base is loaded: choose one first.")
    if columns.wholes:
        name = next(iter(columns.wholes.values())).name
        raise UserError(
            f"'{name}' is a whole model, and only adapters are evaluated: compare it, or export its adapter, which measures both "
            "on the same rows."
        )
    count = len(columns.adapters) + 1
    emit(protocol.Facts([facts(columns, adapter) for adapter in columns.adapters]))
    chat = _chat(columns, request.control)
    how = chat, request.max_length, request.system_prompt
    encoded, report = tokenization.encode_all(request.examples, *how)
    foreign, _ = tokenization.encode_all(request.foreign, *how)
    base.check_ids(row.input_ids for row in (*encoded, *foreign))
    context.check([*encoded, *foreign], base.located.path, base.located.name)
    bos = base.tokenizer.bos_token_id
    by_row = {example["row"]: example for example in request.examples}
    emit(
        protocol.Rows(
            rows=[row.row for row in encoded],
            tokens=[row.supervised for row in encoded],
            dropped=report.dropped,
            truncated=report.truncated,
            turns=report.turns(),
            prompts=[_prompt(base, row) for row in encoded],
            questions=[prompts.latest(_turns(by_row[row.row], row.turn), "user") for row in encoded],
            references=[prompts.latest(_turns(by_row[row.row], row.turn + 1), "assistant") for row in encoded],
            double_bos=bool(bos is not None and any(row.input_ids[:2] == [bos, bos] for row in encoded)),
        )
    )
    chatting = all("messages" in example for example in request.examples)
    task = score.Task(request.max_new_tokens if chatting else 0, chat.stops)
    measured = replace(base, eos=chat.ends)
    begins = [score.answer_begins(row) for row in encoded]
    context.check_answers(begins, task.max_new_tokens, base.located.path, base.located.name)
    score.rows(measured, multi_lora, count, encoded, task, emit, cancelled)

    def as_foreign(measured: protocol.Measured) -> None:
        row = foreign[measured.number]
        emit(protocol.Foreign(row.row, row.supervised, measured.loss))

    score.rows(measured, multi_lora, count, foreign, score.Task(0), as_foreign, cancelled)
    if request.general:
        emit(score.text_loss(base, multi_lora, count, request.general))


def _chat(columns: Columns, control: bool) -> Chat:
    """The chat that all adapters were trained with. Raises UserError where they differ."""
    asked = [columns.chat(adapter, Decoding(control_tokens=control)) for adapter in columns.adapters or (None,)]
    if len({(chat.template, chat.thinking) for chat in asked}) > 1:
        raise UserError(
            "These adapters were trained with different chat templates or thinking, so their losses are on different "
            "tokens: evaluate them one at a time."
        )
    return asked[0]


def _turns(example: Example, end: int) -> list[dict[str, Any]]:
    """The turns before turn number `end`."""
    return [*example.get("messages", [])[: max(end, 0)]]


def _prompt(base: CleanBase, row: tokenization.Encoded) -> str:
    return str(base.tokenizer.decode(row.input_ids[: score.answer_begins(row)]))


def facts(columns: Columns, adapter: Adapter) -> dict[str, Any]:
    """What an adapter's tensors and folder say about its fit to the loaded base, for the diagnostics."""
    base = columns.base
    assert base is not None
    modules: dict[str, Any] = dict(base.model.named_modules())
    trained_on, config = adapter.trained_on, adapter.config
    on_biases = any(getattr(modules[name], "bias", None) is not None for name in adapter.loras)
    quantization = clean_base.trained_in(base, trained_on)
    plain = not adapter.beyond  # else the LoRA pairs are not the whole update, and it has no size by them
    replaced = (*adapter.beyond.modules, *adapter.beyond.tokens)
    return {
        "b_zero_share": _share([not lora.b.any() for lora in adapter.loras.values()]) if plain else None,
        "delta_ratio": _delta_ratio(modules, adapter) if plain else None,
        "linears": len(adapter.loras),
        "linears_available": _linears(base.model),
        "trained_biases": len(adapter.biases),
        "lora_only_lost": config.get("bias") == "lora_only" and not adapter.biases and on_biases,
        "embeddings_in_file": any(_is_embedding(base.model, modules.get(name)) for name in (*adapter.loras, *replaced)),
        "vocab_differs": trained_on.get("vocabulary") not in (None, base.model.get_input_embeddings().num_embeddings),
        "template_differs": adapter.template is not None and adapter.template != base.tokenizer.chat_template,
        "no_base_template": base.tokenizer.chat_template == chat_template.PLAIN,
        "quantization_differs": quantization not in (None, base.quantization),
        "revision_differs": trained_on.get("revision") not in (None, base.located.revision),
    }


def _is_embedding(model: Any, part: Any) -> bool:
    """The embedding, or the head, which often is the embedding."""
    return part is model.get_output_embeddings() or isinstance(part, torch.nn.Embedding)


def _share(marks: Sequence[bool]) -> float:
    return sum(marks) / len(marks) if marks else 0.0


def _linears(model: torch.nn.Module) -> int:
    """Linears that could carry LoRA: all but the head."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return sum(hasattr(part, "in_features") and part is not head for part in model.modules())


def _delta_ratio(modules: dict[str, Any], adapter: Adapter) -> float:
    """The median over linears of ||scaling B A|| / ||W||, Frobenius: ||B A||^2 = trace(A A^T B^T B), both small."""
    ratios = []
    for name, lora in adapter.loras.items():
        square = torch.trace((lora.a @ lora.a.T) @ (lora.b.T @ lora.b)).clamp_min(0)
        ratios.append(float(abs(lora.scaling) * square.sqrt() / _norm(modules[name]).cpu()))
    return float(torch.tensor(ratios).median()) if ratios else 0.0


def _norm(linear: Any) -> torch.Tensor:
    packed = getattr(linear.weight, "quant_state", None) is not None
    weight = lora_kernel.dense(linear, torch.float32) if packed else linear.weight
    return weight.float().norm().clamp_min(1e-12)
