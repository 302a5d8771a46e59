"""The page as a person meets it: a real Chromium, a real training child, a real compare worker, a small model."""

import re
from pathlib import Path
from typing import Any

import pytest

from qlora_gui import config as configs
from qlora_gui.runs import launch
from tests.browser.conftest import PHONE, SLOW, Site
from tests.browser.page import expect, fill, fill_field, fill_small, shot, step_shown, until
from tests.conftest import SHARED_DATA, TINY, need, wait_until_ended

pytestmark = pytest.mark.browser


def test_it_opens_on_a_filled_in_demo_and_shows_what_is_learned(open_page: Any) -> None:
    page = open_page()
    expect(page.locator("#preset input")).to_have_value("demo")
    expect(page.locator("#start")).to_be_in_viewport()
    expect(page.locator("#preview")).to_contain_text("Row 1")
    expect(page.locator("#preview mark").last).to_be_visible(timeout=SLOW)
    expect(page.locator("#command")).to_contain_text("--headless-train --preset demo")
    expect(page.locator("#topbar")).to_contain_text("idle")
    shot(page, "train-demo")


def test_wrong_input_is_told_at_the_field_and_start_is_refused(open_page: Any, site: Site) -> None:
    page = open_page()
    fill(page, "rank", 0)
    expect(page.locator("#knob-rank")).to_contain_text("greater than or equal to 1 (it is 0)")
    fill(page, "dataset", "/nope/missing.json")
    expect(page.locator("#knob-dataset")).to_contain_text("does not exist: check the path")
    page.locator("#start").click()
    expect(page.locator("#form-status")).to_contain_text("Rank should be greater")
    expect(page.locator(".toast-body").first).to_contain_text("Rank should be greater")
    shot(page, "train-faults")
    assert site.store.all() == []
    fill(page, "rank", 4)
    expect(page.locator("#knob-rank")).to_contain_text("how much the adapter can learn")
    expect(page.locator("#form-status")).not_to_contain_text("Rank")


def test_empty_places_say_what_to_do(open_page: Any, site: Site) -> None:
    page = open_page("?tab=runs")
    expect(page.locator("#no-runs")).to_contain_text("Open Train and press Start")
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#no-adapters")).to_contain_text("Train one")


def test_from_a_data_file_to_the_comparison(open_page: Any, site: Site, llama: Path) -> None:
    need(SHARED_DATA.is_file(), "the shared data set is not beside this checkout")
    page = open_page()
    fill_small(page, llama, name="first", max_steps=120, logging_steps=2, eval_steps=30, save_steps=30)
    with page.expect_file_chooser() as chooser:
        page.locator("#upload").click()
    chooser.value.set_files(SHARED_DATA)
    expect(page.locator("#knob-dataset textarea")).to_have_value(re.compile(r"uploads/.*-instructions\.json$"))
    expect(page.locator("#preview")).to_contain_text("1,100 rows (alpaca)", timeout=SLOW)
    page.locator("#start").click()

    until(page, r"first.*running.*step \d+ of 120 .* left")
    expect(page.locator("#topbar")).to_contain_text("first is running", timeout=SLOW)
    before, curve = step_shown(page), page.locator("#live-plots svg path").nth(1)
    drawn = curve.get_attribute("d")
    page.wait_for_function(
        "before => parseInt((document.querySelector('#live-head').innerText.match(/step (\\d+) of/) || [0, 0])[1]) > before",
        arg=before,
    )
    assert page.locator("#live-plots svg path").nth(1).get_attribute("d") != drawn, "the curve stands still"
    shot(page, "train-live")

    assert page.url.endswith("?tab=train&run=first")
    page.reload()
    until(page, r"first.*step \d+ of 120")
    assert step_shown(page) >= before
    expect(page.locator("#live-plots svg path").nth(1)).to_be_attached()
    expect(page.locator("#live-log")).to_contain_text(re.compile(r"step \d+/120"))
    expect(page.locator("#knob-base_model textarea")).to_have_value(str(llama))

    until(page, "first · finished")
    expect(page.locator("#live-overview")).to_contain_text(re.compile(r"Held-out loss went from .* \(the adapter\)"))
    shot(page, "train-finished")
    run = site.store.get("first")
    assert run.state() == "finished" and run.has_adapter()
    assert run.config().rank == 16 and run.config().max_steps == 120

    page.locator("#to-compare").click()
    expect(page.locator("#column-title-1")).to_contain_text("first")
    assert page.url.endswith("?tab=compare&run=first")
    page.locator("#decoding button").first.click()
    page.locator("#decoding-greedy input").check()
    fill_field(page, "#decoding-max_new_tokens", 12)
    fill_field(page, "#prompt", "Name <b>two</b> colours & {{one}} ${number}")
    page.locator("#send").click()
    for column in (0, 1):
        expect(page.locator(f"#column-title-{column}")).to_contain_text("tokens/s", timeout=SLOW)
        expect(page.locator(f"#chat-{column}")).to_contain_text("Name <b>two</b> colours & {{one}} ${number}")
        page.locator(f"#proof-{column} button").first.click()
        expect(page.locator(f"#proof-{column}")).to_contain_text("fingerprint")
        expect(page.locator(f"#proof-{column}")).to_contain_text("greedy")
    expect(page.locator("#proof-1")).to_contain_text("first")
    answers = [page.locator(f"#chat-{column}").inner_text() for column in (0, 1)]
    fill_field(page, "#prompt", "And two more?")
    expect(page.locator("#send")).to_be_enabled(timeout=SLOW)
    page.locator("#send").click()
    for column in (0, 1):
        expect(page.locator(f"#proof-{column}")).to_contain_text("And two more?", timeout=SLOW)
        assert page.locator(f"#chat-{column}").inner_text().startswith(answers[column]), "the history is lost"
    shot(page, "compare")
    expect(page.locator("#clear")).to_be_enabled(timeout=SLOW)
    page.locator("#clear").click()
    expect(page.locator("#chat-1")).not_to_contain_text("colours")


@pytest.mark.slow
def test_a_run_started_elsewhere_is_shown_live_and_can_be_stopped_and_resumed(
    open_page: Any, site: Site, llama: Path
) -> None:
    page = open_page()
    expect(page.locator("#preview")).to_be_visible()
    run = site.store.create(configs.make(TINY | {"base_model": str(llama), "name": "elsewhere", "max_steps": 5000}))
    launch.start(run, site.store)
    until(page, r"elsewhere.*step \d+ of 5000")
    page.locator("#stop").click()
    until(page, "elsewhere · stopped")
    expect(page.locator("#live-overview")).to_contain_text("Press Resume")
    assert wait_until_ended(run) == "stopped"
    reached = max(event["step"] for event in run.events()[0] if event["kind"] == "step")
    page.locator("#resume").click()
    page.wait_for_function(
        "reached => parseInt((document.querySelector('#live-head').innerText.match(/step (\\d+) of/) || [0, 0])[1]) > reached",
        arg=reached,
    )
    page.locator("#stop").click()
    until(page, "elsewhere · stopped")
    assert wait_until_ended(run) == "stopped"


@pytest.mark.slow
def test_runs_are_listed_opened_repeated_and_deleted(open_page: Any, site: Site, llama: Path) -> None:
    for name, rank in (("old", 3), ("new", 5)):
        run = site.store.create(configs.make(TINY | {"base_model": str(llama), "name": name, "rank": rank}))
        launch.start(run, site.store)
        assert wait_until_ended(run) == "finished"
    page = open_page("?tab=runs&run=old")
    expect(page.locator("#runs-overview")).to_contain_text("old · finished")
    page.locator("#runs-table tbody button", has_text=re.compile("^new$")).click()
    expect(page.locator("#runs-plots")).to_contain_text("Where their settings differ")
    expect(page.locator("#runs-plots")).to_contain_text("rank")
    shot(page, "runs-two")
    page.locator("#runs-table tbody button", has_text=re.compile("^new$")).click()
    expect(page.locator("#runs-overview")).to_contain_text("old · finished")

    page.locator("#again").click()
    expect(page.locator("#knob-rank input")).to_have_value("3")
    expect(page.locator("#knob-name textarea")).to_have_value("")
    expect(page.locator("#preset input")).to_have_value("own settings")

    page.get_by_role("tab", name="Runs").click()
    page.locator("#delete").click()
    expect(page.locator("#question")).to_contain_text("Delete the run 'old'")
    shot(page, "runs-delete")
    assert site.store.get("old")
    page.locator("#sure").click()
    expect(page.locator("#runs-table tbody button", has_text=re.compile("^old$"))).to_have_count(0)
    assert "old" not in [run.id for run in site.store.all()]


@pytest.mark.parametrize("tab", ["train", "runs", "compare"])
def test_a_phone_shows_every_tab_without_scrolling_sideways(open_page: Any, tab: str) -> None:
    page = open_page(f"?tab={tab}", PHONE)
    expect(page.get_by_role("tab", name=tab.capitalize())).to_have_attribute("aria-selected", "true")
    page.wait_for_timeout(1500)
    shot(page, f"phone-{tab}")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    too_wide = page.evaluate(
        "[...document.querySelectorAll('button, input, textarea')].filter(e => e.offsetParent && !e.closest('#runs-table')"
        " && e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML.slice(0, 120))"
    )
    assert not too_wide
