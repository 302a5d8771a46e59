"""Rows that cannot be used: named at the data field before the start, left out by one press, counted in the run."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import SLOW, Site
from tests.browser.page import expect, fill, fill_small, shot_of_both, unfold, until
from tests.conftest import wait_until_ended

pytestmark = pytest.mark.browser


def a_file_with_faults(folder: Path) -> Path:
    """40 rows: 5 without an answer, one whose answer is an image, one that is not JSON, and 8 copies."""
    rows: list[Any] = [
        {"instruction": f"What is {number % 32}?", "output": f"It is {number % 32}."} for number in range(40)
    ]
    for number in (2, 7, 11, 19, 23):
        rows[number]["output"] = ""
    rows[30] = {"instruction": "And this?", "output": {"image": "<b>a.png</b>"}}
    lines = [json.dumps(row | {"id": number, "images": []}) for number, row in enumerate(rows)]
    lines[35] = lines[35][:-3]
    path = folder / "tickets.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_faulty_rows_are_named_and_one_press_leaves_them_out(
    open_page: Any, site: Site, llama: Path, tmp_path: Path
) -> None:
    page = open_page()
    fill_small(page, llama, name="left-out", max_steps=2)
    fill(page, "dataset", a_file_with_faults(tmp_path))
    said = page.locator("#bad-rows")
    expect(said).to_contain_text("Rows that cannot be used (7)", timeout=SLOW)
    expect(said.locator("li")).to_have_count(7)
    expect(said).to_contain_text("row 3: 'output' is empty")
    expect(said).to_contain_text("row 31: 'output' is an object, not a text")
    expect(said).to_contain_text("row 36: it is not JSON")
    expect(page.locator("#knob-dataset")).to_contain_text("7 rows cannot be used")
    expect(page.locator("#preview mark").last).to_be_visible(timeout=SLOW)  # of the rows that can be used
    shot_of_both(page, "bad-rows")
    page.locator("#start").click()
    expect(page.locator(".toast-body").first).to_contain_text("7 rows cannot be used")
    assert "left-out" not in {run.id for run in site.store.all()}

    page.locator("#leave-out").click()
    expect(page.locator("#leave-out")).to_be_hidden(timeout=SLOW)
    expect(page.locator("#knob-skip_bad_rows input")).to_be_checked()
    expect(page.locator("#knob-dataset")).not_to_contain_text("cannot be used")
    expect(page.locator("#command")).to_contain_text("--skip-bad-rows")
    expect(said).to_contain_text("Rows that are left out (7)")
    expect(page.locator("#preview")).to_contain_text("7 rows that cannot be used are left out")
    expect(page.locator("#preview")).to_contain_text("equal an earlier one")
    shot_of_both(page, "bad-rows-left-out")

    page.locator("#start").click()
    until(page, "left-out.*finished")
    expect(page.locator("#live-log")).to_contain_text("tickets.jsonl row 3 left out: 'output' is empty")
    run = site.store.get("left-out")
    assert wait_until_ended(run) == "finished"
    [event] = [event for event in run.events()[0] if event["kind"] == "data"]
    assert event["skipped"] == 7 and [row["row"] for row in event["skipped_rows"]] == [3, 8, 12, 20, 24, 31, 36]
    assert event["used"] + event["held_out"] == 33 == event["usable"] and event["ignored"] == {"id": 33}
    shot_of_both(page, "bad-rows-run")


@pytest.mark.slow
def test_another_file_takes_the_named_rows_away(open_page: Any, llama: Path, tmp_path: Path) -> None:
    page = open_page()
    fill(page, "base_model", llama)
    fill(page, "dataset", a_file_with_faults(tmp_path))
    expect(page.locator("#leave-out")).to_have_text("Leave out these 7 rows", timeout=SLOW)
    fill(page, "dataset", "demo")
    expect(page.locator("#bad-rows")).to_be_empty(timeout=SLOW)
    expect(page.locator("#leave-out")).to_be_hidden()
    fill(page, "dataset", a_file_with_faults(tmp_path))
    expect(page.locator("#leave-out")).to_be_visible(timeout=SLOW)
    unfold(page, "what-to-train")
    page.locator("#knob-skip_bad_rows input").check()
    expect(page.locator("#leave-out")).to_be_hidden(timeout=SLOW)
    page.locator("#knob-skip_bad_rows input").uncheck()
    expect(page.locator("#leave-out")).to_be_visible(timeout=SLOW)
