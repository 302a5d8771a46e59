"""The table of runs: a press on a heading sorts it, also by keyboard, it stays sorted, and a row is still its run."""

import os
import re
from typing import Any

import pytest

from tests.browser.conftest import PHONE, SLOW, Site
from tests.browser.page import expect, shot
from tests.factories import Made

pytestmark = pytest.mark.browser
LOSSES = {"run-2": [9.5, 2.0], "run-10": [10.25, 1.0], "run-1": [2.0, 1.9], "run-3": []}  # the first is the oldest


@pytest.fixture(scope="module")
def runs(site: Site) -> None:
    for number, (name, losses) in enumerate(LOSSES.items()):
        made = Made(site.store, name)
        if losses:
            made.trained(losses)
        stamp = 1_780_000_000 + 86_400 * number
        os.utime(made.run.path / "run.json", (stamp, stamp))


def shows(page: Any, *expected: str) -> None:
    expect(page.locator("#runs-table tbody button")).to_have_text(list(expected), timeout=SLOW)


def heading(page: Any, name: str) -> Any:
    return page.locator("#runs-table thead button", has_text=re.compile(f"^{name}"))


def sorted_by(page: Any) -> dict[str, str]:
    found = {
        one.inner_text().strip(" \n▲▼"): one.get_attribute("aria-sort") for one in page.locator("#runs-table th").all()
    }
    return {name: said for name, said in found.items() if said != "none"}


@pytest.mark.slow
@pytest.mark.usefixtures("runs")
def test_a_press_on_a_heading_sorts_and_a_row_stays_its_run(open_page: Any, site: Site) -> None:
    page = open_page("?tab=runs")
    shows(page, "run-3", "run-1", "run-10", "run-2")
    assert sorted_by(page) == {"Created": "descending"}
    heading(page, "Held-out loss, base").click()
    shows(page, "run-1", "run-2", "run-10", "run-3")  # numbers, not words, and what has none is last
    assert sorted_by(page) == {"Held-out loss, base": "ascending"}
    heading(page, "Held-out loss, base").click()
    shows(page, "run-10", "run-2", "run-1", "run-3")
    assert sorted_by(page) == {"Held-out loss, base": "descending"}
    shot(page, "runs-sorted")
    heading(page, "Created").click()
    shows(page, "run-2", "run-10", "run-1", "run-3")
    heading(page, "Run").click()
    shows(page, "run-1", "run-2", "run-3", "run-10")

    page.locator("#runs-table tr.chosen button").click()
    expect(page.locator("#runs-table tr.chosen")).to_have_count(0)
    page.locator("#runs-table tr", has_text="run-10").locator("td").nth(4).click()
    expect(page.locator("#runs-overview")).to_contain_text("run-10 · finished")
    expect(page.locator("#runs-table tr.chosen")).to_have_count(1)
    expect(page.locator("#runs-table tr.chosen button")).to_have_text("run-10")
    page.locator("#runs-table button", has_text=re.compile("^run-1$")).click()
    expect(page.locator("#runs-table tr.chosen")).to_have_count(2)
    expect(page.locator("#runs-plots")).to_contain_text("How they ended")
    shows(page, "run-1", "run-2", "run-3", "run-10")

    heading(page, "Held-out loss, now").focus()
    page.keyboard.press("Enter")
    shows(page, "run-10", "run-1", "run-2", "run-3")
    page.keyboard.press("Space")  # the heading still has the focus
    shows(page, "run-2", "run-1", "run-10", "run-3")
    new = Made(site.store, "new").trained([3.0, 1.95])
    shows(page, "run-2", "new", "run-1", "run-10", "run-3")  # what comes with a tick finds its place
    assert sorted_by(page) == {"Held-out loss, now": "descending"}
    expect(page.locator("#runs-table tr.chosen")).to_have_count(2)
    expect(heading(page, "Held-out loss, now")).to_be_focused()
    site.store.delete(new.run)
    shows(page, "run-2", "run-1", "run-10", "run-3")


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_table_of_runs_on_a_phone(open_page: Any, theme: str) -> None:
    page = open_page(f"?tab=runs&__theme={theme}", PHONE)
    shows(page, "run-3", "run-1", "run-10", "run-2")
    heading(page, "Held-out loss, now").click()
    shows(page, "run-10", "run-1", "run-2", "run-3")
    shot(page, f"phone-runs-sorted-{theme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
