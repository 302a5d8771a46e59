"""Whether what was exported is the model that was evaluated: the same rows read by both, one model after the other."""

import errno
import gc
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qlora_gui.data import tokenization
from qlora_gui.data.chat import Chat
from qlora_gui.data.formats import Example
from qlora_gui.errors import UserError, first_line
from qlora_gui.evaluation import stats
from qlora_gui.formatting import amount, counted
from qlora_gui.inference import score, whole_model
from qlora_gui.inference.clean_base import CleanBase
from qlora_gui.inference.columns import Columns
from qlora_gui.inference.multi_lora import BASE, MultiLora
from qlora_gui.inference.protocol import Answer
from qlora_gui.models import context
from qlora_gui.models import device as devices
from qlora_gui.system import files

_LEFT_FREE = 64 << 20  # bytes on the disk
_MUCH = 0.02  # of the loss: significant, and more than that, is worse where no evaluation says what is allowed
_NOT_FINITE = "The exported model computes no finite loss: do not use it."
_TRAINED = "merge onto the trained weights (--onto trained)"
_MUCH_OF_LOSSY = 0.1  # the same of a file that is meant to be coarser
Say = Callable[[str], None]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Read:
    """One row under one model: the summed loss of its reference in nats, and the tokens of its greedy answer."""

    loss: float
    answer: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Proof:
    """An exported model against the one that was trained, on the same rows.

    Losses are means of rows, in nats per token; `kl` is nats per token, from the trained to the exported one, on the first
    tokens of each reference, or, on prompts that were `given`, of each of the trained model's own answers: then there are no losses.
    `low` and `high` bound the mean difference of the losses (95%, paired). `identical` of
    `answers` greedy answers have the same tokens. `worse` is a sentence where it is, else "";
    `remark` one where it is measurably worse within what is allowed. `unread` rows or prompts more could not be read.
    """

    rows: int
    trained: float | None
    exported: float | None
    low: float | None
    high: float | None
    kl: float | None
    identical: int
    answers: int
    worse: str
    remark: str
    computed_in: str
    different: tuple[tuple[str, str, str], ...] = ()
    given: bool = False
    unread: int = 0

    def sentence(self, what: str) -> str:
        """What is said of it; `what` is how the exported model is called."""
        parts = []
        unread = f"{self.unread:,} more could not be read" if self.unread else ""
        if self.given:
            prompts = counted(self.rows, "given prompt") + f" ({unread})" * bool(unread)
            parts.append(f"Compared on {prompts} and not on held-out rows, so there is no loss")
        if self.trained is not None and self.exported is not None:
            parts.append(
                f"Held-out loss {self.exported:.3f} {what}, {self.trained:.3f} as trained "
                f"({'; '.join(filter(None, (counted(self.rows, 'row'), unread)))})"
            )
        if self.kl is not None:
            parts.append(f"KL {self.kl:.4f} nats per token")
        if self.answers:
            parts.append(f"{self.identical} of {self.answers} answers identical")
        return " ".join(filter(None, (f"{'; '.join(parts)}.", self.worse, self.remark)))


@dataclass(frozen=True)
class Asked:
    """The rows to compare on, encoded as they were trained, and how long answers may get.

    `unread` rows more could not be encoded. `answers` are the trained model's to given prompts, by row: they are the references.
    """

    rows: Sequence[tokenization.Encoded]
    chat: Chat
    new_tokens: int = 64
    unread: int = 0
    answers: Sequence[Answer] | None = None


def held_out(examples: Sequence[Example], chat: Chat, how: tuple[int, str], new_tokens: int) -> Asked:
    """Rows as in training, the first answer of each conversation; `how` is max_length and the system prompt.

    Raises UserError where none can be read.
    """
    max_length, system_prompt = how
    rows, _ = tokenization.encode_all(examples, chat, max_length, system_prompt)
    first: dict[int, tokenization.Encoded] = {}
    for row in rows:
        first.setdefault(row.row, row)
    if not first:
        raise UserError("none of the held-out rows can be read as they were trained.")
    return Asked(list(first.values()), chat, new_tokens, len(examples) - len(first))


def given(
    columns: Columns, prompts: Sequence[Sequence[dict[str, Any]]], chat: Chat, system_prompt: str, new_tokens: int
) -> Asked:
    """Conversations that somebody gave, answered greedily by the trained model: its answers are the references.

    Those that the chat template refuses, or that are too long, are counted. Raises UserError where no prompt is left.
    """
    assert columns.base is not None and columns.multi_lora is not None
    room, _ = context.size(columns.base.located.path)
    end = min(chat.ends)
    asked: list[tokenization.Encoded] = []
    reason = ""
    for turns in prompts:
        try:
            ids = chat.prompt(tokenization.with_system(turns, system_prompt)).ids(columns.base.tokenizer)
        except Exception as error:  # templates are programs; they raise what they like on turns they dislike
            reason = first_line(error)
            continue
        if room is not None and len(ids) + new_tokens > room:
            reason = f"one has {len(ids):,} tokens, its answer may have {new_tokens:,}, and the model reads {room:,}."
            continue
        # read with an end mark for a reference, the answer goes on from the prompt
        labels = [*[tokenization.IGNORED] * len(ids), end]
        asked.append(tokenization.Encoded(len(asked) + 1, [*ids, end], labels, truncated=False))
    if not asked:
        raise UserError(f"none of the given prompts can be read: {reason}")
    columns.base.check_ids(row.input_ids for row in asked)
    task = Asked(asked, chat, new_tokens)
    found = {row.number: row.answer for row in _readings(columns.base, columns.multi_lora, 0, task, new_tokens)}
    answers = [found[number] for number in range(len(asked))]
    rows = [_with(row, answer, end) for row, answer in zip(asked, answers, strict=True)]
    return Asked(rows, chat, new_tokens, len(prompts) - len(asked), answers)


def _with(row: tokenization.Encoded, answer: Answer, end: int) -> tokenization.Encoded:
    """A prompt with an answer for its reference, and the end mark where that ended it; which of several does not matter to a KL."""
    ids = [*answer.ids, *[end] * (answer.ended == "eos" or not answer.ids)]
    prompt = row.input_ids[:-1]
    return replace(row, input_ids=prompt + ids, labels=[tokenization.IGNORED] * len(prompt) + ids)


class Kept:
    """Log-probabilities of the first tokens of each row, in a file: they are too many for memory. fp16, as they are only compared."""

    def __init__(self, file: Path, rows: int, vocabulary: int):
        shape = (rows, score.FIRST, vocabulary)
        _allocate(file, 2 * math.prod(shape))
        self.values = np.memmap(file, dtype=np.float16, mode="r+", shape=shape)
        self.counts = [0] * rows

    def close(self) -> None:
        """Let go of the file: Windows removes no file that is mapped."""
        mapped: Any = self.values._mmap  # type: ignore[attr-defined]
        del self.values
        mapped.close()

    def keep(self, number: int, logs: torch.Tensor) -> None:
        """Keep [tokens, vocabulary] of row `number`."""
        count = min(logs.shape[0], score.FIRST)
        self.values[number, :count, : logs.shape[1]] = logs[:count].half().cpu().numpy()
        self.counts[number] = count

    def kl(self, number: int, logs: torch.Tensor) -> float:
        """The sum over these tokens of KL(kept || logs), in nats."""
        count = self.counts[number]
        kept = torch.from_numpy(np.array(self.values[number, :count])).float().to(logs.device)
        common = min(kept.shape[1], logs.shape[1])  # a merged embedding may be padded
        kept = kept[:, :common].log_softmax(-1)
        return float((kept.exp() * (kept - logs[:count, :common])).sum())


def _allocate(file: Path, size: int) -> None:
    """A file with real room for so many bytes: a mapped file on a full disk ends the process. Raises UserError where there is none."""
    free = shutil.disk_usage(file.parent).free
    try:
        with file.open("wb") as body:
            if free < size + _LEFT_FREE:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            files.allocate(body, size)
    except OSError:
        file.unlink(missing_ok=True)
        raise UserError(
            f"the disk of '{file.parent.parent}' has {amount(free)} free, and the comparison keeps {amount(size)} there: free some "
            "space, or compare fewer rows (--rows)."
        ) from None


@contextmanager
def keeping(file: Path, rows: int, vocabulary: int) -> Iterator[Kept]:
    """`Kept` in a file that is gone afterwards. Raises UserError where the disk has no room for it."""
    kept = Kept(file, rows, vocabulary)
    try:
        yield kept
    finally:
        kept.close()
        file.unlink(missing_ok=True)


def as_trained(columns: Columns, asked: Asked, kept: Kept, progress: Progress) -> dict[int, Read]:
    """What the adapter answers on its 4-bit base, as Compare and the evaluation compute it; distributions go into `kept`."""
    assert columns.base is not None and columns.multi_lora is not None
    found: dict[int, Read] = {}
    begins, located = [score.answer_begins(row) for row in asked.rows], columns.base.located
    context.check_answers(begins, asked.new_tokens, located.path, located.name)
    for row in _readings(columns.base, columns.multi_lora, 0, asked, 0 if asked.answers else asked.new_tokens):
        kept.keep(row.number, row.first)
        answer = asked.answers[row.number] if asked.answers else row.answer
        found[row.number] = Read(row.loss, tuple(answer.ids), answer.text)
        progress(len(found), 2 * len(asked.rows))
    return found


def exported(model: CleanBase, asked: Asked, kept: Kept, progress: Progress) -> tuple[dict[int, Read], float]:
    """What a whole model answers to the same rows, and the sum of its KLs to what was kept."""
    found: dict[int, Read] = {}
    kl = 0.0
    for row in _readings(model, MultiLora(model.model, []), BASE, asked, asked.new_tokens):
        kl += kept.kl(row.number, row.first)
        found[row.number] = Read(row.loss, tuple(row.answer.ids), row.answer.text)
        progress(len(asked.rows) + len(found), 2 * len(asked.rows))
    return found, kl


def _readings(base: CleanBase, adapters: MultiLora, adapter: int, asked: Asked, new: int) -> Iterator[score.Reading]:
    ending = replace(base, eos=asked.chat.ends)
    return score.readings(ending, adapters, adapter, asked.rows, score.Task(new, asked.chat.stops))


def compared(
    asked: Asked,
    trained: dict[int, Read],
    other: dict[int, Read],
    kl: float,
    kept: Kept,
    allowed: float | None,
    computed_in: str,
    lossy: str = "",
) -> Proof:
    """Both models side by side. `allowed` is how much worse the loss may be, by the evaluation's interval, if there is one.

    `lossy` is the type of a file that is meant to be coarser than the model: that it differs is then no fault, unless by much.
    """
    numbers = sorted(trained.keys() & other.keys())
    each = [max(asked.rows[number].supervised, 1) for number in numbers]
    one = [trained[number].loss / count for number, count in zip(numbers, each, strict=True)]
    two = [other[number].loss / count for number, count in zip(numbers, each, strict=True)]
    apart = [b - a for a, b in zip(one, two, strict=True)]
    difference = stats.paired(apart) if len(apart) > 1 and all(map(math.isfinite, apart)) else None
    same = [number for number in numbers if trained[number].answer == other[number].answer]
    different = tuple(
        (asked_text(asked, number), trained[number].text, other[number].text)
        for number in numbers
        if number not in same
    )
    mean_one, mean_two = _mean(one), _mean(two)
    worse = _worse(mean_one, mean_two, difference, allowed, lossy)
    remark = "" if worse or difference is None or difference.low <= 0 else _remark(difference, lossy)
    if asked.answers is not None:  # how likely its own answers are to the trained model is no loss
        mean_one = mean_two = difference = None
        remark, worse = "", "" if math.isfinite(kl) else _NOT_FINITE
    return Proof(
        len(numbers),
        mean_one,
        mean_two,
        difference.low if difference else None,
        difference.high if difference else None,
        max(kl / max(sum(kept.counts), 1), 0.0),  # below by rounding: what is kept is in fp16
        len(same),
        len(numbers) if asked.new_tokens else 0,
        worse,
        remark,
        computed_in,
        different[:5],
        asked.answers is not None,
        asked.unread,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _worse(
    trained: float | None, other: float | None, difference: stats.Paired | None, allowed: float | None, lossy: str
) -> str:
    if trained is None or other is None:
        return ""
    if not math.isfinite(other):
        return _NOT_FINITE
    if lossy:
        if difference is None or difference.low <= _MUCH_OF_LOSSY * trained:
            return ""
        return f"{lossy} costs this model much (loss {_interval(difference)}): take a larger type."
    if allowed is not None and other - trained > allowed:
        return (
            f"It is worse than the evaluation's interval allows (loss {other - trained:+.3f}, allowed {allowed:+.3f}): "
            f"{_TRAINED}, or evaluate it before you use it."
        )
    if allowed is None and difference is not None and difference.low > _MUCH * trained:
        return f"It is worse than as trained (loss {_interval(difference)}): {_TRAINED}."
    return ""


def _remark(difference: stats.Paired, lossy: str) -> str:
    if lossy:
        return f"{lossy} is lossy, so some difference is expected: here the loss is higher by {_interval(difference)}."
    return f"The loss is measurably higher than as trained ({_interval(difference)}): {_TRAINED} for the very model that was evaluated."


def _interval(difference: stats.Paired) -> str:
    return f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def asked_text(asked: Asked, number: int) -> str:
    """The prompt of a row, as text."""
    row = asked.rows[number]
    return str(asked.chat.tokenizer.decode(row.input_ids[: score.answer_begins(row)]))


@contextmanager
def loaded(folder: Path, tokenizer: Any, say: Say, gguf: tuple[Path, Path] | None = None) -> Iterator[CleanBase]:
    """The exported model, of a merged folder or of a GGUF file (`whole_model.load`). Raises UserError where it fits nowhere."""
    model = whole_model.load(folder, tokenizer, "the exported model", say, gguf)
    try:
        yield model
    finally:
        del model
        gc.collect()
        devices.release()
