"""The table of runs without a page: what each column is sorted by."""

import math
from typing import Any

import pytest

from qlora_gui.ui.runs import table
from qlora_gui.ui.runs.summary import COLUMNS, Summary

NASTY = "<script>alert('x')</script> & \"q\""


def run_as(name: str, **more: Any) -> Summary:
    told = {"state": "finished", "config": None, "step": 1, "before": None, "after": None, "adapter": True}
    return Summary(id=name, **(told | {"checkpoint": False, "place": 0, "verdict": "", "made": 0.0} | more))


@pytest.mark.parametrize(
    ("column", "up"),
    [
        ("Run", "2 3 10 20"),
        ("State", "20 2 3 10"),  # the queue by its places
        ("Steps", "3 2 10 20"),
        ("Held-out loss, base", "10 2 3 20"),
        ("Change, %", "10 2 3 20"),
        ("Verdict", "3 2 10 20"),  # the best first
        ("Created", "10 20 2 3"),
    ],
)
def test_runs_are_sorted_by_what_a_column_means_and_the_empty_are_last(column: str, up: str) -> None:
    found = [
        run_as("run-2", state="queued", place=2, step=9, before=2.0, after=1.0, verdict="worse", made=3.0),
        run_as("run-10", state="queued", place=10, step=10, before=1.5, after=0.1, made=1.0),
        run_as("run-3", state="queued", place=3, step=0, before=math.nan, after=1.0, verdict="better", made=30.0),
        run_as("run-20", step=100, made=2.0),
    ]
    place = COLUMNS.index(column)
    names = [one.id.removeprefix("run-") for one in table.ordered(found, (place, False))]
    assert " ".join(names) == up
    known = [one for one in found if column not in ("Held-out loss, base", "Change, %") or one.before is not None]
    known = [one for one in known if column != "Verdict" or one.verdict]
    down = [one.id for one in table.ordered(found, (place, True))]
    assert down[: len(known)] == [f"run-{name}" for name in names[: len(known)]][::-1]
    assert sorted(down[len(known) :]) == sorted(f"run-{name}" for name in names[len(known) :])


def test_a_heading_turns_its_own_order_round_and_names_are_text() -> None:
    assert table.pressed(table.NEWEST_FIRST, 0) == (0, False)
    assert table.pressed((0, False), 0) == (0, True) and table.pressed((0, True), 0) == (0, False)
    shown = table.drawn([run_as(NASTY)], (0, True), [NASTY])
    assert "<script" not in shown and 'aria-sort="descending"' in shown and 'aria-pressed="true"' in shown
    assert table.drawn([], (0, True), []) == ""
