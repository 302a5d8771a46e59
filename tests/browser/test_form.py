"""What a person has typed and what the page shows stays there, whatever else is pressed meanwhile."""

import re
from pathlib import Path
from typing import Any

import pytest

from qlora_gui import config as configs
from tests.browser.conftest import PHONE, SLOW, Site
from tests.browser.page import expect, fill, shot, unfold
from tests.conftest import train

pytestmark = pytest.mark.browser


@pytest.mark.slow
def test_the_preview_stays_when_a_field_is_left_unchanged(open_page: Any) -> None:
    page = open_page()
    preview = page.locator("#preview")
    expect(preview.locator("mark").last).to_be_visible(timeout=SLOW)
    shown = preview.inner_text()
    for knob in ("dataset", "base_model"):
        page.locator(f"#knob-{knob} textarea").focus()
        page.locator(f"#knob-{knob} textarea").blur()
        page.wait_for_timeout(1500)
        assert preview.inner_text() == shown
    page.locator("#preset input").click()
    page.get_by_role("option", name="demo", exact=True).click()
    page.wait_for_timeout(1500)
    assert preview.inner_text() == shown


@pytest.mark.slow
def test_the_rows_of_a_preset_chosen_at_once_are_not_replaced_by_those_of_the_first(open_page: Any) -> None:
    page = open_page()
    page.locator("#preset input").click()
    page.get_by_role("option", name="experiment-3").click()
    expect(page.locator("#knob-base_model textarea")).to_have_value("bigscience/bloom-560m")
    told = page.locator("#preview")
    expect(told).to_contain_text("bloom-560m", timeout=SLOW)  # it is not here, and there is no hub
    page.wait_for_timeout(15_000)  # the demo's rows take less to be marked
    assert "bloom-560m" in told.inner_text() and "of 256" not in told.inner_text()


def test_more_processes_than_the_machine_has_are_told_at_the_field_before_start(open_page: Any, site: Site) -> None:
    page = open_page()
    unfold(page, "several-gpus")
    fill(page, "num_processes", 1000)
    said = re.compile(r"This machine has (no GPU, and \d+ cores|\d+ GPUs?), but num_processes is 1000: set it to")
    expect(page.locator("#knob-num_processes")).to_contain_text(said)
    page.locator("#start").click()
    expect(page.locator("#form-status")).to_contain_text(said)
    assert site.store.all() == []
    fill(page, "num_processes", 1)
    expect(page.locator("#knob-num_processes")).not_to_contain_text("This machine has")


@pytest.mark.parametrize("size", [None, PHONE], ids=["desk", "phone"])
def test_the_warnings_and_the_live_runs_name_keep_the_form(open_page: Any, site: Site, size: Any) -> None:
    page = open_page("", *([size] if size else []))
    fill(page, "learning_rate", 0.01)
    line = page.locator("#findings-line a")
    expect(line).to_contain_text("1 warning", timeout=SLOW)
    line.click()
    expect(page.locator("#form-findings")).to_be_in_viewport()
    expect(page.locator("#knob-learning_rate input")).to_have_value("0.01")
    run = site.store.create(configs.make({"base_model": "demo", "dataset": "demo", "name": f"busy-{bool(size)}"}))
    with run.lock():
        page.get_by_role("tab", name="Runs").click()
        page.locator("#topbar a").click()
        expect(page).to_have_url(re.compile(rf"\?tab=train&run={run.id}$"))
        expect(page.locator("#live-head")).to_be_visible()
        expect(page.locator("#live-head")).to_contain_text(f"{run.id} · running")
        expect(page.locator("#knob-learning_rate input")).to_have_value("0.01")
        shot(page, f"live-name-{bool(size)}")
    site.store.delete(run)


@pytest.mark.slow
def test_a_written_report_stays_while_the_tabs_are_changed(open_page: Any, site: Site, llama: Path) -> None:
    run = train(site.store, base_model=str(llama), name="told", max_steps=2)
    page = open_page("?tab=report")
    expect(page.locator("#report")).to_contain_text("Press Write the report")
    page.get_by_role("tab", name="Runs").click()
    page.locator("#run-actions").get_by_role("button", name="Open in Train").click()
    expect(page.locator("#live-head")).to_contain_text("told")
    page.get_by_role("tab", name="Report").click()
    expect(page.locator("#report")).to_contain_text("Press Write the report")
    page.locator("#write-report").click()
    expect(page.locator("#report h1")).to_be_visible()
    page.get_by_role("tab", name="Runs").click()
    page.locator("#run-actions").get_by_role("button", name="Open in Train").click()
    expect(page.locator("#live-head")).to_contain_text(run.id)
    page.wait_for_timeout(1500)
    page.get_by_role("tab", name="Report").click()
    expect(page.locator("#report h1")).to_be_visible()
    page.locator('#report a[href^="#"]').first.click()
    assert "?tab=report" in page.url
    expect(page.locator("#report h1")).to_have_count(1)
