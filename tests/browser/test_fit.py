"""Will it fit, on the page: the plan follows the form, a press changes the form, and a run that died is retried."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from qlora_gui import config as configs
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.store import Run
from tests.browser.conftest import PHONE, SLOW, Site
from tests.browser.page import expect, fill, shot, shot_of_both, until
from tests.conftest import TINY, wait_until_ended
from tests.small_models import NEOX

pytestmark = pytest.mark.browser
NASTY = "<img src=x onerror=alert(1)> & co"
GB = 2**30


def choose(page: Any, where: str, value: str) -> None:
    page.locator(f"{where} input").click()
    page.get_by_role("option", name=value, exact=True).click()
    expect(page.locator(f"{where} input")).to_have_value(value)


def died_of_memory(site: Site, base: Path, name: str) -> Run:
    """A run whose last word is the one that the trainer writes for torch.OutOfMemoryError."""
    run = site.store.create(configs.make(TINY | {"base_model": str(base), "name": name, "batch_size": 4}))
    events = EventLog(run.events_file)
    events.append("started")
    fitted = {"batch_size": 2, "gradient_accumulation": 2, "gradient_checkpointing": "all"}
    events.append("fit", text="Micro-batch 4 did not fit: it is 2 with accumulation 2 now.", knobs=fitted)
    changes = [
        {"knobs": {"rank": 8}, "text": "Rank 8: -0.1 GB", "saves": GB // 10, "fits": False},
        {
            "knobs": {"batch_size": 1, "gradient_accumulation": 4},
            "text": "Micro-batch 1 with accumulation 4: -6.1 GB",
            "saves": 6 * GB,
            "fits": True,
        },
    ]
    autopsy = {
        "phase": "in the loss",
        "step": 2,
        "predicted": 14 * GB,
        "measured": 15 * GB,
        "total": 16 * GB,
        "free": GB // 2,
        "held_by": [{"pid": 4711, "name": NASTY, "bytes": 3 * GB}],
        "changes": changes,
    }
    events.append("failed", message="The GPU ran out of memory in the loss.", bug=False, autopsy=autopsy)
    return run


def test_the_plan_follows_the_form_and_a_press_makes_it_fit(open_page: Any) -> None:
    page = open_page()
    verdict = page.locator("#fit-body .fit-verdict")
    expect(verdict).to_contain_text("free on")
    choose(page, "#preset", "experiment-2")
    expect(page.locator("#knob-base_model textarea")).to_have_value(re.compile("bloom"))
    choose(page, "#fit-target", "8 GB")
    fill(page, "batch_size", 16)
    expect(verdict).to_contain_text(re.compile("Does not fit .* of 8.0 GB; .* too much"))
    expect(page.locator("#fit-line")).to_be_hidden()  # the whole panel stands beside the form
    shot(page, "fit-over")
    first = page.locator("#fit-change-0")
    expect(first).to_contain_text("fits then")
    top = page.locator("#start").bounding_box()
    first.click()
    expect(verdict).not_to_contain_text("Does not fit")
    page.wait_for_timeout(1500)  # a press fills in all fields, one after the other: nobody types faster than that
    assert page.locator("#start").bounding_box() == top, "the form jumped"
    shot(page, "fit-made-to-fit")
    page.locator("#fit-table button").first.click()
    expect(page.locator("#fit-table")).to_contain_text("4-bit weights")
    before = verdict.inner_text()
    fill(page, "rank", 64)
    expect(verdict).not_to_have_text(before)
    expect(page.locator("#fit-table td").first).to_be_visible()  # it stays unfolded
    fill(page, "rank", 0)
    expect(page.locator("#fit-body.stale")).to_be_attached()
    shot(page, "fit-stale")


def test_a_base_that_cannot_be_planned_is_one_sentence_and_escaped(open_page: Any, tmp_path: Path) -> None:
    page = open_page()
    fill(page, "base_model", "nobody/knows-this-base")
    fill(page, "rank", 9)  # a look while the hub is still being asked
    expect(page.locator("#fit-body")).to_contain_text("No estimate of the memory", timeout=SLOW)
    expect(page.locator("#fit-body")).to_contain_text("hub does not answer", timeout=SLOW)
    expect(page.locator("#fit-changes")).to_be_hidden()
    shot(page, "fit-unknown")
    folder = tmp_path / "<b>odd & base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    fill(page, "base_model", folder)
    expect(page.locator("#fit-body")).to_contain_text("No estimate of the memory")
    assert page.locator("#fit-body b").count() == 0


@pytest.mark.slow
def test_a_base_of_another_kind_is_simulated(open_page: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NEOX))
    page = open_page()
    choose(page, "#fit-target", "8 GB")
    fill(page, "base_model", tmp_path)
    expect(page.locator("#fit-body")).to_contain_text("Simulating a step")
    expect(page.locator("#fit-body")).to_contain_text("From a simulated step", timeout=SLOW)
    shot(page, "fit-simulated")


@pytest.mark.slow
def test_a_run_that_died_of_memory_says_why_and_is_retried(open_page: Any, site: Site, llama: Path) -> None:
    died_of_memory(site, llama, "died")
    page = open_page("?tab=runs&run=died")
    expect(page.locator("#runs-autopsy")).to_contain_text("in the loss")
    page.wait_for_timeout(1000)
    shot_of_both(page, "autopsy-runs")
    page.goto(f"{site.url}?tab=train&run=died")
    autopsy = page.locator("#live-autopsy")
    expect(autopsy).to_contain_text(NASTY)
    expect(autopsy).to_contain_text("15.0 GB")
    expect(page.locator("#live-overview")).to_contain_text("accumulation 2 now")
    expect(page.locator("#live-retry-2")).to_be_hidden()
    page.wait_for_timeout(1000)
    shot_of_both(page, "autopsy-train")
    before = {run.id for run in site.store.all()}
    page.locator("#live-retry-0").click()  # the one that fits comes first
    until(page, "finished")
    expect(autopsy).to_be_hidden()
    (new,) = [run for run in site.store.all() if run.id not in before]
    assert wait_until_ended(new) == "finished"
    config = new.config()
    assert (config.batch_size, config.gradient_accumulation, config.name) == (1, 4, "")
    assert config.gradient_checkpointing == "all"  # what the preflight had changed stays
    page.locator("#close").click()
    expect(page.locator("#fit-body .fit-verdict")).to_be_visible()


def test_a_phone_shows_the_verdict_above_start(open_page: Any) -> None:
    page = open_page("", PHONE)
    expect(page.locator("#fit-line")).to_be_in_viewport()
    expect(page.locator("#fit-line")).to_contain_text("GB")
    shot(page, "phone-fit")
    page.locator("#fit-details").click()
    expect(page.locator("#fit-body")).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_dark_mode(open_page: Any) -> None:
    page = open_page("?__theme=dark")
    choose(page, "#fit-target", "8 GB")
    fill(page, "batch_size", 64)
    expect(page.locator("#fit-body")).to_contain_text("of 8.0 GB")
    unfold_table = page.locator("#fit-table button").first
    unfold_table.click()
    page.wait_for_timeout(500)
    shot(page, "fit-dark")


def test_kept_bases_are_listed_and_cleared(open_page: Any, site: Site) -> None:
    entry = site.cache / "quantized" / "demo-nf4-double-cpu"
    entry.mkdir(parents=True, exist_ok=True)
    (entry / "model.safetensors").write_bytes(b"0" * 2**20)
    page = open_page("?tab=runs")
    page.locator("#disk button").first.click()
    expect(page.locator("#disk-contents")).to_contain_text("demo-nf4-double-cpu")
    expect(page.locator("#disk-contents")).to_contain_text(str(site.cache))
    page.locator("#disk-clear").click()
    expect(page.locator("#disk-confirm")).to_contain_text("of cached quantized models?")
    shot(page, "disk")
    assert entry.exists()
    page.locator("#disk-sure").click()
    expect(page.locator("#disk-contents")).to_contain_text("freed")
    assert not entry.exists()
