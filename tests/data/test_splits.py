"""No held-out row was trained on; without duplicates the split is the one it has always been."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from qlora_gui.config import make
from qlora_gui.data import splits
from qlora_gui.runs.history import RunHistory
from qlora_gui.runs.training_rows import rows_of


def rows(*texts: str) -> list[dict[str, Any]]:
    return [{"text": text, "row": number} for number, text in enumerate(texts, 1)]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5])
def test_the_split_without_duplicates_is_a_sample_by_seed(fraction: float, seed: int) -> None:
    found = rows(*map(str, range(60)))
    train, held_out = splits.split_held_out(found, fraction, seed)
    chosen = set(random.Random(seed).sample(range(60), round(60 * fraction)))
    assert held_out == [found[index] for index in sorted(chosen)]
    assert train == [row for index, row in enumerate(found) if index not in chosen]


@pytest.mark.parametrize("seed", range(30))
def test_copies_go_to_one_side_and_the_share_is_kept(seed: int) -> None:
    dice = random.Random(seed)
    texts = [str(number) for number in range(100)] + [str(dice.randrange(100)) for _ in range(100)]
    dice.shuffle(texts)
    found = rows(*texts)
    train, held_out = splits.split_held_out(found, 0.1, seed)
    assert not {row["text"] for row in train} & {row["text"] for row in held_out}
    assert sorted(row["row"] for row in train + held_out) == list(range(1, 201))
    assert train == sorted(train, key=lambda row: row["row"]) and 17 <= len(held_out) <= 20
    assert (train, held_out) == splits.split_held_out(found, 0.1, seed)


def test_rows_that_are_mostly_one_row_or_only_one() -> None:
    train, held_out = splits.split_held_out(rows(*["a"] * 50, "b"), 0.1, 1)
    assert [row["text"] for row in held_out] == ["b"] and len(train) == 50
    assert splits.split_held_out(rows(*["a"] * 50), 0.1, 1) == (rows(*["a"] * 50), [])
    train, held_out = splits.split_held_out(rows("a", "a", "b", "b"), 0.1, 1)
    assert len(train) == len(held_out) == 2 and train[0]["text"] != held_out[0]["text"]
    assert splits.split_held_out(rows("a", "a"), 0, 1)[1] == []


def test_what_makes_rows_equal() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    same = [{"messages": turns, "row": 1}, {"row": 2, "messages": [dict(reversed(turn.items())) for turn in turns]}]
    assert splits.duplicates(same) == 1
    others = [{"messages": turns, "tools": []}, {"messages": turns[:1]}, {"text": "Hi"}, same[0]]
    assert splits.duplicates(others) == 0


def test_a_run_from_before_keeps_the_rows_it_had(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": str(number % 7)}) for number in range(70)))
    config = make({"dataset": str(tmp_path / "a.jsonl"), "seed": 3})
    before_event = {
        "t": 0.0,
        "kind": "data",
        "used": 63,
        "held_out": 7,
        "truncated": 0,
        "dropped": 0,
        "dropped_rows": [],
    }
    before = rows_of(config, RunHistory([before_event])).held_out
    assert [row["row"] - 1 for row in before] == sorted(random.Random(3).sample(range(70), 7))
    now = rows_of(config, RunHistory([before_event | {"used": 60, "duplicates": 63}]))
    assert now == rows_of(config) and len({row["text"] for row in now.held_out}) == 1


def test_held_out_rows_of_the_datas_own_that_are_trained_on_are_left_out(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "completion": "Hello"}
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, [row, row, {**row, "prompt": "Ho"}])))
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, [row, {**row, "prompt": "Hey"}])))
    found = rows_of(make({"dataset": str(tmp_path)}))
    assert (len(found.train), found.duplicates, found.known) == (3, 1, 1)
    assert [one["row"] for one in found.held_out] == [2]
    counts = {"skipped": 0, "ignored": {}, "usable": 3, "duplicates": 1, "known": 1}
    assert found.event_fields() == counts | {"skipped_rows": [], "unused_files": []}
