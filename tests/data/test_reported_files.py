"""What people reported on other tools, as small files: each reads as `../shared/data/reports/README.md` says."""

from pathlib import Path
from typing import Any

import pytest

from qlora_gui.data import load, splits
from qlora_gui.data.bad_rows import FaultyRows
from tests.conftest import SHARED_DATA, need

REPORTS = SHARED_DATA.parent / "reports"
WEATHER = {"type": "function", "function": {"name": "weather", "arguments": {}}}


def report(name: str, **how: Any) -> load.Dataset:
    need((REPORTS / name).is_file(), "the reports are not beside this checkout")
    return load.load(str(REPORTS / name), **how)


def faults_of(name: str) -> FaultyRows:
    with pytest.raises(FaultyRows) as error:
        report(name)
    return error.value


def turns(found: load.Dataset, row: int = 0) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in found.train[row]["messages"]]


@pytest.mark.parametrize(
    ("name", "rows", "roles"),
    [
        ("multi.jsonl", 12, "uauaua"),
        ("multi_system.jsonl", 12, "suaua"),
        ("single.jsonl", 12, "ua"),
        ("single_system.jsonl", 12, "sua"),
        ("gpt_first.jsonl", 12, "aua"),
        ("think.jsonl", 12, "ua"),
        ("latex.jsonl", 24, "ua"),
        ("same_answer.jsonl", 24, "ua"),
        ("blocks.jsonl", 12, "ua"),
    ],
)
def test_conversations_keep_every_turn(name: str, rows: int, roles: str) -> None:
    found = report(name)
    assert len(found.train) == rows and not found.ignored and not found.skipped
    for example in found.train:
        assert "".join(turn["role"][0] for turn in example["messages"]) == roles
        assert all(turn["content"].strip() and turn.keys() == {"role", "content"} for turn in example["messages"])


def test_some_conversations_begin_with_the_assistant() -> None:
    found = report("gpt_first_some.jsonl")
    assert {"".join(turn["role"][0] for turn in row["messages"]) for row in found.train} == {"ua", "aua"}


@pytest.mark.parametrize("name", ["weight.jsonl", "train_false.jsonl"])
def test_turns_that_are_not_to_be_learned_are_context(name: str) -> None:
    found = report(name)
    assert not found.ignored
    for example in found.train:
        bad, good = (turn for turn in example["messages"] if turn["role"] == "assistant")
        assert bad["content"].startswith("BAD") and bad["learn"] is False
        assert good["content"].startswith("Good") and "learn" not in good


def test_reasoning_is_kept() -> None:
    answer = report("reasoning_field.jsonl").train[0]["messages"][1]
    assert answer == {"role": "assistant", "content": "It is 1.", "reasoning_content": "I think of 1 first."}
    assert "<think>\nI take 1 and then 2.\n</think>\n\nIt is 2." in turns(report("think.jsonl"))[1]


def test_what_is_written_stays_as_written() -> None:
    assert turns(report("latex.jsonl"))[1][1] == "<think>a<b</think> $$x_1$$ or $$5 and $$10, **bold** `code`."


def test_history_stands_before_the_question() -> None:
    assert turns(report("history.json")) == [
        ("system", "Please answer."),
        ("user", "What is the next of 1?"),
        ("assistant", "It is 2."),
        ("user", "And the one after 1?"),
        ("assistant", "It is 3."),
    ]


@pytest.mark.parametrize("name", ["nan.json", "nan.parquet"])
def test_nan_is_an_empty_input(name: str) -> None:
    found = report(name)
    assert len(found.train) == 12 and not found.skipped
    assert not any("nan" in text.lower() for row in range(12) for _, text in turns(found, row))
    if name == "nan.json":
        assert [turns(found, row)[0][1] for row in (0, 1)] == ["What is it, 1?", "What is it, 2?\n\nthe parcel"]


def test_an_output_that_is_nan_is_a_fault_of_its_row() -> None:
    error = faults_of("nan_out.jsonl")
    assert [(fault.row, fault.reason) for fault in error.named] == [(3, "'output' is null")]
    assert [row["row"] for row in report("nan_out.jsonl", skip_bad_rows=True).train] == [1, 2, *range(4, 13)]


def test_tool_calls_results_and_tools() -> None:
    found = report("tools.jsonl").train[0]
    assert found["tools"] == [{"type": "function", "function": {"name": "weather"}}]
    assert [turn["role"] for turn in found["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert found["messages"][1] == {"role": "assistant", "content": "", "tool_calls": [WEATHER]}
    found = report("tool_role.jsonl").train[0]
    assert found["messages"][1]["tool_calls"] == [{**WEATHER, "id": "c1"}]
    assert found["messages"][2] == {"role": "tool", "content": "12 C", "tool_call_id": "c1"}
    found = report("tool_calls_beside.jsonl").train[0]
    assert found["messages"][1] == {
        "role": "assistant",
        "content": "I ask the tool.",
        "tool_calls": [{**WEATHER, "id": "c1"}],
    }


def test_empty_answers_can_be_left_out() -> None:
    error = faults_of("alpaca_like.json")
    assert [fault.row for fault in error.named] == [8, 9, 38, 68, 98, 128] and "6 of 205 rows" in str(error)
    found = report("alpaca_like.json", skip_bad_rows=True)
    assert (len(found.train), found.skipped) == (199, 6) and found.skipped_rows == error.named


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_no_held_out_row_equals_a_trained_one(fraction: float, seed: int) -> None:
    rows = report("dups.jsonl").train
    train, held_out = splits.split_held_out(rows, fraction, seed)
    assert splits.duplicates(rows) == 36 and len(train) + len(held_out) == 40 and train and held_out
    assert splits.without(held_out, train) == held_out


def test_places_are_those_in_the_file() -> None:
    [fault] = faults_of("bad_byte.csv").named
    assert (REPORTS / "bad_byte.csv").read_bytes()[600000] == 0xFF
    assert (fault.row, fault.line) == (18301, 18302) and "byte 600000" in fault.reason
    [fault] = faults_of("quote_line5.csv").named
    assert (fault.row, fault.line) == (2, 5)
    assert "row 2 (line 5): a quotation mark" in str(faults_of("quote_line5.csv"))


def test_semicolons_are_recognized() -> None:
    found = report("semicolon.csv")
    assert found.separator == ";"
    assert turns(found, 1) == [("user", "And that?"), ("assistant", "The order.")]


def test_every_report_is_read(tmp_path: Path) -> None:
    need(REPORTS.is_dir(), "the reports are not beside this checkout")
    for path in sorted(REPORTS.iterdir()):
        if path.suffix in load.SUFFIXES:
            found = load.load(str(path), skip_bad_rows=True)
            assert found.train and found.format != "auto", path.name
