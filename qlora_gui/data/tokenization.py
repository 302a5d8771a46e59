"""Examples -> token ids with a loss mask: learned are the assistant's answers and their end marks, in every turn.

Needs a tokenizer (fast, with a chat template), not a model; imports no torch.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qlora_gui.data import special_tokens
from qlora_gui.data.chat import Answer, Chat
from qlora_gui.data.formats import Example
from qlora_gui.data.special_tokens import Span, Text
from qlora_gui.errors import UserError, first_line

IGNORED = -100  # the label that torch's cross entropy skips


@dataclass(frozen=True)
class Encoded:
    """One row. `input_ids` and `labels` have one entry per token; a label is the id or IGNORED.

    `row` is the number of its example: a conversation whose earlier turns the chat template rewrites is several rows.
    `turn` is the message that the row ends with (-1: plain text), `turns` how many answers of the data it learns, and
    `ended` whether the last of them is learned to its end mark.
    """

    row: int
    input_ids: list[int]
    labels: list[int]
    truncated: bool
    spelled: bool = False  # somebody spelled out a special token in it
    turn: int = -1
    turns: int = 0
    ended: bool = True

    @property
    def supervised(self) -> int:
        """How many tokens are learned from; the first of a row has nothing before it to predict it."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass
class Report:
    """What became of the examples: `used` includes `truncated`; `dropped` says row and reason.

    Of the assistant turns `present`, `learned` are learned, `context_only` are not meant to be, `cut` are beyond
    max_length, and `lost` (row and reason) cannot be; `split` counts conversations that became several rows. `notes`
    counts what the chat template left out or had changed (`chat.NOTES`).
    """

    used: int = 0
    truncated: int = 0
    dropped: list[tuple[int, str]] = field(default_factory=list)
    tokens: int = 0
    supervised: int = 0
    present: int = 0
    learned: int = 0
    context_only: int = 0
    cut: int = 0
    lost: list[tuple[int, str]] = field(default_factory=list)
    split: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    def turns(self) -> dict[str, int]:
        """The counts of assistant turns, and of split conversations, as plain values for an event."""
        return {
            "present": self.present,
            "learned": self.learned,
            "context_only": self.context_only,
            "cut": self.cut,
            "lost": len(self.lost),
            "split": self.split,
        }


def encode_all(
    examples: Sequence[Example], chat: Chat, max_length: int, system_prompt: str = ""
) -> tuple[list[Encoded], Report]:
    """Encode every example; rows that have nothing left to learn are dropped, with the reason."""
    report, encoded = Report(), []
    for example in examples:
        rows = encode(example, chat, max_length, report, system_prompt)
        encoded += rows
        report.used += bool(rows)
        report.truncated += any(row.truncated for row in rows)
        report.split += len(rows) > 1
        report.learned += sum(row.turns for row in rows)
        report.tokens += sum(len(row.input_ids) for row in rows)
        report.supervised += sum(row.supervised for row in rows)
    return encoded, report


def encode(example: Example, chat: Chat, max_length: int, report: Report, system_prompt: str = "") -> list[Encoded]:
    """The rows of one example, cut to `max_length` tokens; what became of its turns goes into `report`.

    [] for an example that cannot be used: the report then has its row and the reason.
    """
    spelled = special_tokens.spelled(example, chat.tokenizer)
    if "text" in example:
        rows = [_plain_text(example, chat, max_length, spelled)]
        if not rows[0].supervised:
            report.dropped.append((example["row"], "its text is a single token: there is nothing to learn"))
            return []
        return rows
    report.present += sum(turn["role"] == "assistant" for turn in example["messages"])
    messages = with_system(example["messages"], system_prompt)
    try:
        answers = chat.answers(messages, example.get("tools"))
    except UserError:  # a template without an end
        raise
    except Exception as error:  # templates are programs; they raise what they like on turns they dislike
        reason = f"the chat template refuses it: {first_line(error)}"
        answers_here = [turn for turn in example["messages"] if turn["role"] == "assistant"]
        meant = sum(bool(turn.get("learn", True)) for turn in answers_here)
        report.context_only += len(answers_here) - meant
        report.lost += [(example["row"], reason)] * meant
        report.dropped.append((example["row"], reason))
        return []
    report.context_only += answers.context_only
    report.lost += [(example["row"], reason) for _, reason in answers.lost]
    report.notes.update(answers.notes)
    shift = len(messages) - len(example["messages"])
    rows, begins = [], max_length
    for tokens in _grouped(answers.learnable, chat.tokenizer):
        row = _row(example["row"], tokens, chat, max_length, spelled, shift)
        begins = min(begins, *(first for first, _ in tokens.spans))
        if row.supervised:
            rows.append(row)
    covered = sum(answer.covers for answer in answers.learnable)
    report.cut += covered - sum(row.turns for row in rows)
    if not rows:
        report.dropped.append((example["row"], _why_nothing(answers.lost, begins, max_length, bool(answers.learnable))))
    return rows


def _why_nothing(lost: Sequence[tuple[int, str]], begins: int, max_length: int, has_answers: bool) -> str:
    if has_answers:
        return f"its answer begins at token {begins + 1}, beyond the {max_length} tokens of max_length"
    return lost[0][1] if lost else "none of its answers is to be learned"


def _plain_text(example: Example, chat: Chat, max_length: int, spelled: bool) -> Encoded:
    ids = special_tokens.ids_with_added(example["text"], chat.tokenizer, chat.control)
    eos = chat.tokenizer.eos_token_id
    if not ids or ids[-1] != eos:
        ids = [*ids, eos]
    cut = ids[:max_length]
    return Encoded(example["row"], cut, list(cut), len(ids) > max_length, spelled, ended=len(ids) <= max_length)


def with_system(messages: Sequence[Mapping[str, Any]], system_prompt: str) -> list[dict[str, Any]]:
    """The messages, led by `system_prompt` unless they bring a system turn of their own."""
    if system_prompt and messages[0]["role"] != "system":
        return [{"role": "system", "content": system_prompt}, *map(dict, messages)]
    return [dict(message) for message in messages]


@dataclass(frozen=True)
class _Tokens:
    """One row before it is cut: its tokens, and the answers in it, each with the tokens it has, [first, after last]."""

    ids: list[int]
    answers: list[Answer]
    spans: list[Span]


def _grouped(answers: Sequence[Answer], tokenizer: Any) -> list[_Tokens]:
    """The fewest rows in which every answer stands once, after exactly the tokens that ask for it; shortest row first.

    An answer stands in the row of a later one where that begins with its context and all of it.
    """
    rows: list[_Tokens] = []
    waiting = list(answers)
    while waiting:
        last = waiting.pop()
        here = [answer for answer in waiting if last.whole.startswith(answer.whole)]
        tokens, stand_elsewhere = _tokenized([*here, last], tokenizer)
        rows.append(tokens)
        waiting = [answer for answer in waiting if answer not in here or answer in stand_elsewhere]
    return rows[::-1]


def _tokenized(answers: Sequence[Answer], tokenizer: Any) -> tuple[_Tokens, list[Answer]]:
    """The tokens of the last answer with all that leads to it, and those of `answers` that are tokenized otherwise there."""
    *earlier, last = answers
    text = last.whole
    ids, places = text.tokens(tokenizer)
    begin = _boundary(tokenizer, text, ids, places, len(last.context.text))
    if begin is None:
        context = last.context.ids(tokenizer)
        ids = context + _continued(last.learned, tokenizer)
        return _Tokens(ids, [last], [(len(context), len(ids))]), earlier
    placed, spans, elsewhere = [], [], []
    for answer in earlier:
        first = _boundary(tokenizer, text, ids, places, len(answer.context.text))
        after = _place(places, len(answer.whole.text))
        if first is None or after is None:
            elsewhere.append(answer)
        else:
            placed.append(answer)
            spans.append((first, after))
    return _Tokens(ids, [*placed, last], [*spans, (begin, len(ids))]), elsewhere


def _place(places: Sequence[Span], character: int) -> int | None:
    """The first token at or after a character; None where a token lies across it."""
    number = next((n for n, (first, last) in enumerate(places) if first >= character and last > first), len(places))
    before = next((places[n] for n in range(number - 1, -1, -1) if places[n][1] > places[n][0]), (0, 0))
    return number if before[1] <= character else None


def _boundary(tokenizer: Any, text: Text, ids: Sequence[int], places: Sequence[Span], character: int) -> int | None:
    """The token that begins at a character, where what stands before it is tokenized as it is when it stands alone.

    That is how a prompt is tokenized. Only the text after the last special token is checked: no token crosses one.
    """
    number = _place(places, character)
    if number is None:
        return None
    special = set(tokenizer.all_special_ids)
    start = next((n for n in range(number - 1, -1, -1) if ids[n] in special), 0)
    alone = text[places[start][0] : character].ids(tokenizer) if number else []
    return number if alone == list(ids[start:number]) else None


def _continued(text: Text, tokenizer: Any) -> list[int]:
    """The tokens of a text that goes on after another one: no space is put before it, as some tokenizers do."""
    led = Text("\n") + text
    lead, ids = Text("\n").ids(tokenizer), led.ids(tokenizer)
    return ids[len(lead) :] if ids[: len(lead)] == lead else text.ids(tokenizer)


def _row(number: int, tokens: _Tokens, chat: Chat, max_length: int, spelled: bool, shift: int) -> Encoded:
    labels = [IGNORED] * len(tokens.ids)
    for first, last in tokens.spans:
        labels[first:last] = tokens.ids[first:last]
    here = [n for n, (first, _) in enumerate(tokens.spans) if max(first, 1) < max_length]
    truncated = len(tokens.ids) > max_length
    last = here[-1] if here else -1
    return Encoded(
        number,
        tokens.ids[:max_length],
        labels[:max_length],
        truncated,
        spelled,
        turn=tokens.answers[last].turn - shift,
        turns=sum(tokens.answers[n].covers for n in here),
        ended=bool(here)
        and tokens.spans[last][1] <= max_length
        and _is_ended(tokens.ids[: tokens.spans[last][1]], chat),
    )


def _is_ended(ids: Sequence[int], chat: Chat) -> bool:
    """Whether tokens end with what ends an answer."""
    if ids[-1] in chat.ends:
        return True
    text = chat.tokenizer.decode(ids[-32:]).rstrip()
    return any(text.endswith(stop.rstrip()) for stop in chat.stops)
