"""Findings on the page: they follow the form and the rows, one press fixes, and a run shows what went wrong."""

import time
from pathlib import Path
from typing import Any

import pytest

from qlora_gui import config as configs
from qlora_gui.runs.events import EventLog
from tests.browser.conftest import SLOW, Site
from tests.browser.page import expect, fill, shot, shot_of_both, unfold
from tests.conftest import train, wait_until_ended
from tests.factories import healthy_events, held_out_losses, of_kind

pytestmark = pytest.mark.browser


@pytest.mark.slow
def test_findings_follow_the_form_and_a_press_fixes(open_page: Any) -> None:
    page = open_page()
    said = page.locator("#form-findings")
    expect(said).to_contain_text("No problems found in settings and data", timeout=SLOW)
    fill(page, "learning_rate", 0.01)
    fill(page, "gradient_accumulation", 4)
    expect(said).to_contain_text("The learning rate is 0.01")
    expect(said).to_contain_text("29 optimizer steps (16 rows per step, 301 rows)")
    expect(page.locator("#findings-line")).to_contain_text("2 warnings")
    said.locator("summary").first.click()
    expect(said).to_contain_text("Fix: Start at 0.0002")
    shot_of_both(page, "findings-form")
    page.locator("#form-fix-0").click()
    expect(page.locator("#knob-learning_rate input")).to_have_value("0.0002")
    expect(said).not_to_contain_text("is 0.01")
    expect(page.locator("#form-fix-1")).to_be_hidden()
    page.locator("#form-fix-0").click()
    expect(page.locator("#knob-gradient_accumulation input")).to_have_value("1")
    expect(said).to_contain_text("No problems found in")
    expect(page.locator("#findings-line")).to_be_empty()


@pytest.mark.slow
def test_what_the_rows_say_is_found_when_they_are_marked(open_page: Any) -> None:
    page = open_page()
    expect(page.locator("#preview mark").last).to_be_visible(timeout=SLOW)
    unfold(page, "what-to-train")
    fill(page, "max_length", 96)
    expect(page.locator("#form-findings")).to_contain_text("are cut at 96 tokens", timeout=SLOW)
    page.locator("#form-fix-0").click()
    expect(page.locator("#knob-max_length input")).to_have_value("192")
    expect(page.locator("#form-findings")).to_contain_text("No problems found in settings and data", timeout=SLOW)


def test_a_run_shows_what_went_wrong(open_page: Any, site: Site) -> None:
    run = site.store.create(configs.resolve({"name": "overfit"}, preset="demo"))
    events, log = healthy_events(), EventLog(run.events_file)
    held_out_losses(1.62, 0.86, 0.71, 0.79)(events)
    of_kind(events, "data")[0]["dropped_rows"] = []
    for event in events:
        log.append(event["kind"], **{key: value for key, value in event.items() if key not in ("kind", "t")})
    page = open_page("?tab=train&run=overfit")
    expect(page.locator("#live-findings")).to_contain_text("was 0.710 at step 76 and is 0.790 at step 114")
    expect(page.locator("#live-fix-0")).to_have_text("Train again: Max steps → 76")
    shot(page, "findings-run")


@pytest.mark.slow
def test_what_is_found_after_a_run_is_fixed_from_runs(open_page: Any, site: Site, llama: Path) -> None:
    """An adapter that did nothing: Runs offers a change, and a press trains the run again with it."""
    run = train(site.store, base_model=str(llama), name="idle", learning_rate=1e-9, max_steps=2)
    page = open_page("?tab=runs&run=idle")
    expect(page.locator("#runs-judged")).to_contain_text("Diagnostics", timeout=SLOW)
    known = {one.id for one in site.store.all()}
    shot(page, "findings-after")
    page.get_by_role("button", name="Train again: Learning rate → 0.0002").click()
    expect(page.locator("#live-head")).to_be_visible(timeout=SLOW)
    deadline = time.monotonic() + 60
    while not (new := [one for one in site.store.all() if one.id not in known]) and time.monotonic() < deadline:
        time.sleep(0.2)
    [again] = new
    changed = {key for key, value in again.config().model_dump().items() if value != run.config().model_dump()[key]}
    assert changed == {"learning_rate", "name"}
    wait_until_ended(again)
