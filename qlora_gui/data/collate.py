"""Encoded rows -> tensors for the trainer, with as little padding and repetition as the base allows."""

from collections.abc import Iterator, Sequence
from itertools import groupby, takewhile
from typing import Any, TypedDict

import torch
from torch.utils.data import Sampler

from qlora_gui.data.tokenization import IGNORED, Encoded

_SHORTEST_PREFIX = 4  # tokens: below, a shared beginning saves less than its mask costs


class Row(TypedDict, total=False):
    """What the trainer reads: an example, or several in one row, which then have their positions and blocks."""

    input_ids: list[int]
    labels: list[int]
    position_ids: list[int]
    blocks: list[int]  # 0: what examples of the row begin with; n: what the n-th of them has of its own
    tokens: int  # of its examples, each counted whole


# Fills the last batches of several processes up: nothing is learned from it, and a batch that has other rows drops it.
BLANK: Row = {"input_ids": [0, 0], "labels": [IGNORED, IGNORED], "tokens": 0}


class WholeSteps(Sampler[int]):
    """The rows in the order that one process has them in, then row number `rows` (`BLANK`) up to whole steps.

    `step` is how many rows all processes read together. accelerate deals the batches out in turn, so that the same
    rows make a step however many processes there are.
    """

    def __init__(self, rows: int, step: int, seed: int):
        self.rows, self.step, self.seed, self.epoch = rows, step, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate with the current epoch, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows + -self.rows % self.step

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)  # as accelerate's SeedableRandomSampler
        yield from torch.randperm(self.rows, generator=generator).tolist()
        yield from [self.rows] * (-self.rows % self.step)


class Collate:
    """Rows -> input_ids, labels, each [rows, tokens], right-padded to the longest, and `tokens`, a count.

    The count is a plain int: as a tensor it would be moved to the GPU, and reading it there would wait for the GPU.

    `multiple`: rows are padded up to a multiple of it. CUDA's attention with a bias wants rows of whole 16 bytes, and
    copies the bias in every layer where they are not.

    Where the base keeps packed examples apart, `shared_length` is above 0: then the examples of a batch share rows
    of at most that many tokens, with position_ids and blocks, [rows, tokens], and a beginning that is the same in
    all of them (a system prompt) stands once per row. It is the same step, with less to compute.
    """

    def __init__(self, pad_id: int, shared_length: int = 0, multiple: int = 1):
        self.pad_id, self.shared_length, self.multiple = pad_id, shared_length, multiple

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        rows = [row for row in rows if row.get("tokens") != 0] or rows
        if self.shared_length and not any("blocks" in row for row in rows):
            rows = level(rows, self.shared_length)
        longest = max(len(row["input_ids"]) for row in rows)
        longest += -longest % self.multiple

        def padded(values: list[int], filler: int) -> list[int]:
            return values + [filler] * (longest - len(values))

        batch = {
            "input_ids": [padded(row["input_ids"], self.pad_id) for row in rows],
            "labels": [padded(row["labels"], IGNORED) for row in rows],
        }
        if any("blocks" in row for row in rows):
            batch["position_ids"] = [padded(_positions(row), 0) for row in rows]
            batch["blocks"] = [padded(row.get("blocks", [1] * len(row["input_ids"])), -1) for row in rows]
        tensors = {key: torch.tensor(value) for key, value in batch.items()}
        return {**tensors, "tokens": sum(row.get("tokens", len(row["input_ids"])) for row in rows)}


def as_rows(examples: Sequence[Encoded], length: int = 0) -> list[Row]:
    """One row each; but where a conversation became several, one of at most `length` tokens, as far as that has room."""
    rows: list[Row] = []
    for _, group in groupby(examples, key=lambda example: example.row):
        parts: list[Row] = [{"input_ids": part.input_ids, "labels": part.labels} for part in group]
        rows += branched(parts, length) if length and len(parts) > 1 else parts
    return rows


def branched(parts: Sequence[Row], length: int) -> list[Row]:
    """Rows of one conversation as one: the longest is block 0, of the others only what differs stands after it.

    A block of its own begins one token before the first that is learned in it, for what predicts that one stands there
    too. What would make the row longer than `length`, or saves less than it costs, stays a row of its own.
    """
    *others, trunk = sorted(parts, key=lambda part: len(part["input_ids"]))
    size = len(trunk["input_ids"])
    joined: Row = {
        "input_ids": list(trunk["input_ids"]),
        "labels": [IGNORED, *trunk["labels"][1:]],
        "position_ids": list(range(size)),
        "blocks": [0] * size,
        "tokens": size,
    }
    apart: list[Row] = []
    for part in others:
        first = next((place for place, label in enumerate(part["labels"]) if label != IGNORED), 0)
        skip = min(_alike(part["input_ids"], trunk["input_ids"]), first - 1)
        if skip < _SHORTEST_PREFIX or len(joined["input_ids"]) + len(part["input_ids"]) - skip > length:
            apart.append(part)
        else:
            _append(joined, part, skip)
    return [*apart, joined if len(apart) < len(others) else trunk]


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """The length of the common prefix of two rows."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def share(rows: Sequence[Row], length: int) -> list[Row]:
    """Fill rows of at most `length` tokens, longest example first, each into the fullest row that has room.

    The first label of every example is ignored: nothing of its own precedes it.
    """
    prefix = common_prefix(rows)
    filled: list[Row] = []
    for row in _longest_first(rows):
        size = len(row["input_ids"]) - len(prefix)
        open_rows = [item for item in filled if len(item["input_ids"]) + size <= length]
        place = max(open_rows, key=lambda item: len(item["input_ids"]), default=None)
        if place is None:
            place = _begun(prefix)
            filled.append(place)
        _append(place, row, len(prefix))
    return filled


def level(rows: Sequence[Row], length: int) -> Sequence[Row]:
    """The examples of a batch in fewer rows of at most `length` tokens, as even as can be, where that saves tokens."""
    best, least = rows, len(rows) * max(len(row["input_ids"]) for row in rows)
    prefix = common_prefix(rows)
    for count in range(len(rows) - 1, 0, -1):
        filled = [_begun(prefix) for _ in range(count)]
        for row in _longest_first(rows):
            _append(min(filled, key=lambda item: len(item["input_ids"])), row, len(prefix))
        longest = max(len(item["input_ids"]) for item in filled)
        if longest > length:
            break
        if count * longest < least:
            best, least = filled, count * longest
    return best


def common_prefix(rows: Sequence[Row]) -> list[int]:
    """The tokens that all rows begin with, where nothing is learned from them; [] where that is too few to matter.

    The token after it is not learned either: what predicts it, the prefix's last token, is shared.
    """
    if len(rows) < 2:
        return []
    unlearned = [next((i for i, label in enumerate(row["labels"]) if label != IGNORED), 0) for row in rows]
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*(row["input_ids"] for row in rows), strict=False))
    prefix = [column[0] for column in alike][: max(min(unlearned) - 1, 0)]
    return prefix if len(prefix) >= _SHORTEST_PREFIX else []


def packed_length(rows: Sequence[Row], hidden: int, max_length: int) -> int:
    """Tokens of a packed row: as many as keep attention small beside the linears, and no fewer than the longest.

    A layer's linears take about 24 hidden^2 operations per token, attention over rows of L tokens 4 L hidden: at
    L = hidden / 2 that is a twelfth.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    return min(max_length, max(longest, hidden // 2 // 64 * 64, 128))


def _longest_first(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -len(row["input_ids"]))


def _begun(prefix: list[int]) -> Row:
    """A row that holds only the shared beginning."""
    size = len(prefix)
    return {
        "input_ids": list(prefix),
        "labels": [IGNORED] * size,
        "position_ids": list(range(size)),
        "blocks": [0] * size,
        "tokens": 0,
    }


def _append(place: Row, row: Row, skip: int) -> None:
    """Put an example at the end of a row, without its first `skip` tokens, which the row begins with."""
    size = len(row["input_ids"])
    number = max(place["blocks"], default=0) + 1
    place["input_ids"] += row["input_ids"][skip:]
    place["labels"] += [IGNORED, *row["labels"][skip + 1 :]]
    place["position_ids"] += range(skip, size)
    place["blocks"] += [number] * (size - skip)
    place["tokens"] += size


def _positions(row: Row) -> list[int]:
    return row.get("position_ids", list(range(len(row["input_ids"]))))
