"""Checks of the tokenized data: is the right text learned, to its end, and often enough."""

from math import ceil
from typing import Any

from qlora_gui.config import RunConfig
from qlora_gui.diagnostics.evidence import Seen
from qlora_gui.diagnostics.finding import TINKER, UNSLOTH_TROUBLES, Check, Finding
from qlora_gui.diagnostics.settings import MOST_EPOCHS
from qlora_gui.runs.event_text import VERY_FEW_STEPS

FEW_STEPS = 100
MANY_TRUNCATED = 0.05  # of the rows
MANY_SPELLED = 0.5  # of the rows: then it is no accident
_LONGEST = 131_072  # what max_length allows


def looked_at(seen: Seen) -> str:
    """How many rows the evidence is of."""
    rows = f"{seen.facts['rows']:,} rows"
    return rows if seen.facts.get("whole", True) else f"the first {rows}"


def nothing_learned(seen: Seen) -> Finding | None:
    """A mask that leaves nothing to learn."""
    if not seen.facts or (seen.facts["rows"] and seen.facts["supervised_share"] > 0):
        return None
    return Finding(
        "nothing_learned",
        "bad",
        "No token of the data is trained on (0%).",
        "The loss is taken on answers only; where none is left, nothing can be learned.",
        "TRL's documentation of completion-only and assistant-only loss",
        "See why rows are dropped, then fix the data or raise max_length.",
    )


def prompts_learned(seen: Seen) -> Finding | None:
    """A mask that leaves out nothing, though the data are conversations."""
    facts = seen.facts
    if not facts or facts.get("format") == "text" or not facts["rows"] or facts["supervised_share"] < 1:
        return None
    return Finding(
        "prompts_learned",
        "warn",
        f"All tokens are trained on (100% of {looked_at(seen)}), the prompts too.",
        "The adapter then learns to write prompts as much as to answer them; right for plain text, not for answers.",
        "TRL's documentation of completion-only and assistant-only loss",
        "Put prompts and answers in separate columns, not in one text.",
    )


def eos_not_supervised(seen: Seen) -> Finding | None:
    """Answers whose end is not learned, beyond those that were cut."""
    facts = seen.facts
    if not facts or not facts["rows"]:
        return None
    without = round((1 - facts["eos_supervised"]) * facts["rows"]) - facts["truncated_answers"]
    if without <= 0:
        return None
    same = " Padding is the same token here, which other trainers mask together with it." if facts["pad_is_eos"] else ""
    return Finding(
        "eos_not_supervised",
        "warn",
        f"In {without:,} of {looked_at(seen)} the last token learned is not an end mark.",
        f"A model that never learns to end an answer keeps writing until the length limit.{same}",
        "trl issues 976, 1623 and 3091; transformers issue 23530",
        "Use a base whose chat template ends an answer with its EOS token, or fix the template.",
    )


def answers_not_learned(seen: Seen) -> Finding | None:
    """Answers that the chat template cannot show as they would be asked for."""
    turns = seen.facts.get("turns") or {}
    if not turns.get("lost"):
        return None
    share = turns["lost"] / max(turns["present"], 1)
    first = next(iter(seen.facts.get("lost", [])), None)
    reason = f" First: row {first['row']}, {first['reason']}." if first else ""
    return Finding(
        "answers_not_learned",
        "bad" if share > 0.5 else "warn",
        f"{turns['lost']:,} of {turns['present']:,} answers ({share:.1%}) are not learned.{reason}",
        "The chat template of the base refuses them or leaves part of them out, so they could not be asked for either.",
        "Hugging Face's documentation of chat templates",
        "Choose a base or chat_template made for such data, or change those rows.",
    )


def answers_beyond_max_length(seen: Seen) -> Finding | None:
    """Later answers of conversations that are longer than a row may be."""
    turns, config = seen.facts.get("turns") or {}, seen.config
    if not turns.get("cut"):
        return None
    share, longer = turns["cut"] / max(turns["present"], 1), min(2 * config.max_length, _LONGEST)
    return Finding(
        "answers_beyond_max_length",
        "warn" if share > MANY_TRUNCATED else "note",
        f"{turns['cut']:,} of {turns['present']:,} answers ({share:.1%}) begin beyond {config.max_length:,} tokens and are "
        "not learned.",
        "Conversations are cut at max_length, from their end.",
        "TRL's documentation of max_length",
        f"Allow {longer:,} tokens, if memory permits, or shorten the conversations.",
        {"max_length": longer} if longer > config.max_length else {},
    )


def reasoning_not_learned(seen: Seen) -> Finding | None:
    """Reasoning in the data that a template does not show, or that is left out."""
    notes, turns = seen.facts.get("notes") or {}, seen.facts.get("turns") or {}
    dropped, off = notes.get("reasoning_dropped", 0), notes.get("reasoning_off", 0)
    if not turns or not (dropped or off):
        return None
    why = "the chat template does not show it" if dropped else "thinking is off"
    return Finding(
        "reasoning_not_learned",
        "warn" if dropped + off > turns["present"] / 2 else "note",
        f"{dropped + off:,} of {turns['present']:,} answers carry reasoning that is not learned: {why}.",
        "The adapter then learns the answers without what led to them.",
        "The chat templates of Qwen3 and DeepSeek-R1",
        "Write it into the answers' text, or take a base that reasons." if dropped else "Turn thinking on to learn it.",
        {} if dropped else {"thinking": "on"},
    )


def no_end_mark(seen: Seen) -> Finding | None:
    """A template that does not say where an answer ends."""
    facts = seen.facts
    if facts.get("end_from") != "eos" or facts.get("format") == "text" or facts.get("refuses"):
        return None
    return Finding(
        "no_end_mark",
        "note",
        "The chat template writes nothing at the end of an answer, so the EOS token is learned there.",
        "Other programs that use this template put no EOS into a conversation; answers end by it all the same.",
        "trl issues 976 and 1623",
        "Nothing, or choose a chat_template that ends its turns.",
    )


def truncated_answers(seen: Seen) -> Finding | None:
    """Answers that lost their end to max_length."""
    facts, config = seen.facts, seen.config
    if not facts or not facts["truncated_answers"]:
        return None
    share = facts["truncated_answers"] / max(facts["rows"], 1)
    longer = min(2 * config.max_length, _LONGEST)
    return Finding(
        "truncated_answers",
        "warn" if share > MANY_TRUNCATED else "note",
        f"{facts['truncated_answers']:,} of {looked_at(seen)} ({share:.1%}) are cut at {config.max_length:,} tokens "
        "before their answer ends.",
        "From such rows the adapter learns answers without an end.",
        "TRL's documentation of max_length",
        f"Allow {longer:,} tokens, if memory permits, or shorten the rows.",
        {"max_length": longer} if longer > config.max_length else {},
    )


def double_bos(seen: Seen) -> Finding | None:
    """Two beginnings of a sequence, in training or where the adapter was measured."""
    if not (seen.facts.get("double_bos") or seen.part("adapter_facts").get("double_bos")):
        return None
    return Finding(
        "double_bos",
        "warn",
        "Rows begin with two BOS tokens.",
        "The base never saw that; training with two and answering with one, or the other way round, gives worse answers.",
        UNSLOTH_TROUBLES,
        "Remove BOS from the texts, or from the chat template: the tokenizer adds its own.",
    )


def spelled_tokens(seen: Seen) -> Finding | None:
    """Data made for another program may bring its template, special tokens and all, as text."""
    count = seen.facts.get("spelled", 0)
    if not count or seen.config.control:
        return None
    return Finding(
        "spelled_tokens",
        "warn" if count > MANY_SPELLED * seen.facts["rows"] else "note",
        f"{count:,} of {looked_at(seen)} spell out a special token, like </s>; it is read as text.",
        "Right if people wrote it. If the texts contain their own chat template, the adapter would learn to spell it out.",
        "Hugging Face's documentation of tokenizers: split_special_tokens",
        "If they are meant as tokens, set special_tokens to control.",
        {"special_tokens": "control"},
    )


def few_steps(seen: Seen) -> Finding | None:
    """Too few optimizer steps to learn much."""
    steps = seen.optimizer_steps()
    if steps is None or steps >= FEW_STEPS:
        return None
    config, rows = seen.config, seen.rows()
    size = config.batch_size * config.gradient_accumulation
    passes = f", {rows:,} rows" if rows else ""
    return Finding(
        "few_steps",
        "warn" if steps < VERY_FEW_STEPS else "note",
        f"The run has {steps} optimizer steps ({size} rows per step{passes}).",
        "Every step moves the adapter by about the learning rate, from zero; usually at least 100 are "
        "needed, and small batches do LoRA no harm.",
        f"{TINKER}, which calls its figure uncertain",
        f"Use {FEW_STEPS} steps or more: fewer rows per step, more epochs, or more data.",
        _more_steps(seen),
    )


def _more_steps(seen: Seen) -> dict[str, Any]:
    """Less accumulation, then up to three epochs: the mildest change that gives steps enough, or else the largest."""
    config = seen.config
    if config.max_steps:
        return {"max_steps": FEW_STEPS}
    if seen.steps_per_epoch() is None:
        return {}
    for epochs in (config.epochs, max(config.epochs, MOST_EPOCHS)):
        for accumulation in range(config.gradient_accumulation, 0, -1):
            if ceil(epochs * (seen.steps_per_epoch(accumulation) or 0)) >= FEW_STEPS:
                return _changed(config, epochs, accumulation)
    return _changed(config, max(config.epochs, MOST_EPOCHS), 1)


def _changed(config: RunConfig, epochs: float, accumulation: int) -> dict[str, Any]:
    knobs = {"epochs": epochs, "gradient_accumulation": accumulation}
    return {name: value for name, value in knobs.items() if value != getattr(config, name)}


CHECKS: tuple[Check, ...] = (
    nothing_learned,
    prompts_learned,
    answers_not_learned,
    answers_beyond_max_length,
    reasoning_not_learned,
    eos_not_supervised,
    no_end_mark,
    truncated_answers,
    double_bos,
    spelled_tokens,
    few_steps,
)
