"""Examples -> token ids with a loss mask: learned are the assistant's tokens and its EOS, in every turn.

Needs a tokenizer (fast, with a chat template), not a model; imports no torch.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_gui.data import literal
from qlora_gui.data.formats import Example
from qlora_gui.errors import first_line

IGNORED = -100  # the label that torch's cross entropy skips


@dataclass(frozen=True)
class Encoded:
    """One example. `input_ids` and `labels` have one entry a token; a label is the id or IGNORED."""

    row: int
    input_ids: list[int]
    labels: list[int]
    truncated: bool
    spelled: bool = False  # somebody spelled out a special token in it

    @property
    def supervised(self) -> int:
        """How many tokens are learned from; the first of a row has nothing before it to predict it."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass
class Report:
    """What became of the rows: `used` includes `truncated`; `dropped` says row and reason."""

    used: int = 0
    truncated: int = 0
    dropped: list[tuple[int, str]] = field(default_factory=list)
    tokens: int = 0
    supervised: int = 0


def encode_all(
    examples: Sequence[Example], tokenizer: Any, max_length: int, system_prompt: str = "", control: bool = False
) -> tuple[list[Encoded], Report]:
    """Encode every example; rows that have nothing left to learn are dropped, with the reason.

    Special tokens spelled out in an example are text; `control` lets them be what they spell.
    """
    report, kept = Report(), []
    for example in examples:
        encoded = encode(example, tokenizer, max_length, system_prompt, control)
        if isinstance(encoded, str):
            report.dropped.append((example["row"], encoded))
            continue
        kept.append(encoded)
        report.used += 1
        report.truncated += encoded.truncated
        report.tokens += len(encoded.input_ids)
        report.supervised += encoded.supervised
    return kept, report


def encode(
    example: Example, tokenizer: Any, max_length: int, system_prompt: str = "", control: bool = False
) -> Encoded | str:
    """One example, cut to `max_length` tokens, or the reason why it cannot be used."""
    if "text" in example:
        ids = literal.ids_with_added(example["text"], tokenizer, control)
        if not ids or ids[-1] != tokenizer.eos_token_id:
            ids = [*ids, tokenizer.eos_token_id]
        labels = list(ids)
    else:
        messages = with_system(example["messages"], system_prompt)
        try:
            text, spans = render(messages, tokenizer, control)
        except Exception as error:  # templates are programs; they raise what they like on turns they dislike
            return f"the chat template refuses it: {first_line(error)}"
        if not spans:
            return "the chat template does not show where the answer begins"
        ids, labels = _mask(text, spans, tokenizer)
    spelled = literal.spelled(example, tokenizer)
    encoded = Encoded(example["row"], ids[:max_length], labels[:max_length], len(ids) > max_length, spelled)
    if not encoded.supervised:
        begins = next((i for i, label in enumerate(labels) if label != IGNORED), len(labels))
        return f"its answer begins at token {begins + 1}, beyond the {max_length} tokens of max_length"
    return encoded


def with_system(messages: list[dict[str, str]], system_prompt: str) -> list[dict[str, str]]:
    """The messages, led by `system_prompt` unless they bring a system turn of their own."""
    if system_prompt and messages[0]["role"] != "system":
        return [{"role": "system", "content": system_prompt}, *messages]
    return messages


def render(
    messages: list[dict[str, str]], tokenizer: Any, control: bool = False
) -> tuple[literal.Text, list[literal.Span]]:
    """The whole conversation as text, and the character span of each assistant turn with its end mark.

    A span is found by rendering the conversation up to the turn: where a template rewrites earlier turns
    (some drop old reasoning), those turns are left out of the spans, and so not learned.
    """
    conversation = literal.Conversation(messages, tokenizer, control)
    whole = conversation.render()
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = conversation.render(number, add_generation_prompt=True).text
        after = conversation.render(number + 1).text.rstrip()
        if whole.text.startswith(before) and whole.text.startswith(after):
            spans.append((len(before), len(after)))
    return whole, spans


def _mask(text: literal.Text, spans: list[literal.Span], tokenizer: Any) -> tuple[list[int], list[int]]:
    """Tokenize once; label the tokens that begin inside a span."""
    ids, places = text.tokens(tokenizer)
    labels = [IGNORED] * len(ids)
    for position, (start, end) in enumerate(places):
        if start < end and any(first <= start < last for first, last in spans):
            labels[position] = ids[position]
    return ids, labels


def split_held_out(rows: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Split rows into (train, held out), at random by `seed`; both keep their order. At least one is trained on."""
    count = min(round(len(rows) * fraction), len(rows) - 1)
    if fraction > 0 and len(rows) > 1:
        count = max(count, 1)
    chosen = set(random.Random(seed).sample(range(len(rows)), count))
    train = [row for index, row in enumerate(rows) if index not in chosen]
    return train, [rows[index] for index in sorted(chosen)]
