"""Encoded rows -> tensors for the trainer: padded, or packed."""

from collections.abc import Sequence
from typing import Any

import torch

from qlora_gui.data.tokens import IGNORED, Encoded


class Padded:
    """Collate Encoded rows, right-padded to the longest.

    Gives input_ids, labels, attention_mask, each [rows, tokens].
    """

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
        for row in rows:
            room = longest - len(row["input_ids"])
            batch["input_ids"].append(row["input_ids"] + [self.pad_id] * room)
            batch["labels"].append(row["labels"] + [IGNORED] * room)
            batch["attention_mask"].append([1] * len(row["input_ids"]) + [0] * room)
        return {key: torch.tensor(value) for key, value in batch.items()}


class Packed:
    """Collate packed rows: no attention mask but position_ids that restart at every example.

    From those transformers builds a mask without attention across examples; padding is one more example.
    """

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
        for row in rows:
            room = longest - len(row["input_ids"])
            batch["input_ids"].append(row["input_ids"] + [self.pad_id] * room)
            batch["labels"].append(row["labels"] + [IGNORED] * room)
            batch["position_ids"].append(row["position_ids"] + list(range(room)))
        return {key: torch.tensor(value) for key, value in batch.items()}


def as_rows(examples: Sequence[Encoded]) -> list[dict[str, list[int]]]:
    """One row an example."""
    return [{"input_ids": example.input_ids, "labels": example.labels} for example in examples]


def pack(examples: Sequence[Encoded], length: int) -> list[dict[str, list[int]]]:
    """Fill rows of at most `length` tokens, longest example first, each into the fullest row that has room.

    The first label of every example is ignored: nothing of its own precedes it.
    """
    rows: list[dict[str, list[int]]] = []
    for example in sorted(examples, key=lambda item: -len(item.input_ids)):
        size = len(example.input_ids)
        open_rows = [row for row in rows if len(row["input_ids"]) + size <= length]
        row = max(open_rows, key=lambda item: len(item["input_ids"]), default=None)
        if row is None:
            row = {"input_ids": [], "labels": [], "position_ids": []}
            rows.append(row)
        row["input_ids"] += example.input_ids
        row["labels"] += [IGNORED, *example.labels[1:]]
        row["position_ids"] += range(size)
    return rows


def token_count(batch: dict[str, Any]) -> int:
    """Tokens of a batch that are not padding."""
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return int(batch["input_ids"].numel())
