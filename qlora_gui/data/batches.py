"""Encoded rows -> tensors for the trainer, with as little padding as the base allows."""

from collections.abc import Sequence

import torch

from qlora_gui.data.tokens import IGNORED, Encoded

Row = dict[str, list[int]]  # input_ids, labels, and for packed rows position_ids


class Collate:
    """Rows -> input_ids, labels, attention_mask, each [rows, tokens], right-padded to the longest.

    Where the base keeps packed examples apart, `shared_length` is above 0: then the examples of a batch share rows
    of at most that many tokens, and there are position_ids that restart at every example. It is the same step
    without most of its padding. Rows that are packed already stay as they are.
    """

    def __init__(self, pad_id: int, shared_length: int = 0):
        self.pad_id, self.shared_length = pad_id, shared_length

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        if self.shared_length and not any("position_ids" in row for row in rows):
            rows = level(rows, self.shared_length)
        longest = max(len(row["input_ids"]) for row in rows)
        batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
        positions = []
        for row in rows:
            size = len(row["input_ids"])
            room = longest - size
            batch["input_ids"].append(row["input_ids"] + [self.pad_id] * room)
            batch["labels"].append(row["labels"] + [IGNORED] * room)
            batch["attention_mask"].append([1] * size + [0] * room)
            positions.append(row.get("position_ids", list(range(size))) + list(range(room)))
        if any("position_ids" in row for row in rows):
            batch["position_ids"] = positions
        return {key: torch.tensor(value) for key, value in batch.items()}


def as_rows(examples: Sequence[Encoded]) -> list[Row]:
    """One row an example."""
    return [{"input_ids": example.input_ids, "labels": example.labels} for example in examples]


def share(rows: Sequence[Row], length: int) -> list[Row]:
    """Fill rows of at most `length` tokens, longest example first, each into the fullest row that has room.

    The first label of every example is ignored: nothing of its own precedes it.
    """
    filled: list[Row] = []
    for row in _longest_first(rows):
        size = len(row["input_ids"])
        open_rows = [item for item in filled if len(item["input_ids"]) + size <= length]
        place = max(open_rows, key=lambda item: len(item["input_ids"]), default=None)
        if place is None:
            place = _empty()
            filled.append(place)
        _append(place, row)
    return filled


def level(rows: Sequence[Row], length: int) -> Sequence[Row]:
    """The examples of a batch in fewer rows of at most `length` tokens, as even as can be, where that saves padding."""
    best, least = rows, len(rows) * max(len(row["input_ids"]) for row in rows)
    for count in range(len(rows) - 1, 0, -1):
        filled = [_empty() for _ in range(count)]
        for row in _longest_first(rows):
            _append(min(filled, key=lambda item: len(item["input_ids"])), row)
        longest = max(len(item["input_ids"]) for item in filled)
        if longest > length:
            break
        if count * longest < least:
            best, least = filled, count * longest
    return best


def _longest_first(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: -len(row["input_ids"]))


def _empty() -> Row:
    return {"input_ids": [], "labels": [], "position_ids": []}


def _append(place: Row, row: Row) -> None:
    place["input_ids"] += row["input_ids"]
    place["labels"] += [IGNORED, *row["labels"][1:]]
    place["position_ids"] += range(len(row["input_ids"]))


def packed_length(rows: Sequence[Row], hidden: int, max_length: int) -> int:
    """Tokens of a packed row: as many as keep attention small beside the linears, and no fewer than the longest.

    A layer's linears take about 24 hidden^2 operations a token, attention over rows of L tokens 4 L hidden: at
    L = hidden / 2 that is a twelfth.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    return min(max_length, max(longest, hidden // 2 // 64 * 64, 128))
