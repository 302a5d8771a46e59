"""Many runs from the page: queued behind a live one, reordered, taken out; a sweep typed in, queued, and read by what varies."""

import re
import time
from pathlib import Path
from typing import Any

import pytest

from qlora_gui.config import make
from qlora_gui.runs import launch, queue
from tests.browser.conftest import SLOW, Site
from tests.browser.page import expect, fill, fill_field, fill_small, shot, shot_of_both
from tests.conftest import TINY, wait_until_ended

pytestmark = pytest.mark.browser


@pytest.mark.slow
def test_runs_are_queued_moved_and_taken_out(open_page: Any, site: Site, llama: Path) -> None:
    first = site.store.create(make(TINY | {"base_model": str(llama), "name": "first", "max_steps": 400}))
    launch.start(first, site.store)
    page = open_page()
    fill_small(page, llama, max_steps=3)
    for name in ("second", "third"):
        expect(page.locator("#knob-name :is(input, textarea)").first).to_have_value("", timeout=SLOW)
        fill(page, "name", name)
        page.locator("#queue").click()
        expect(page.locator("#live-head")).to_contain_text(name, timeout=SLOW)
        expect(page.locator("#live-overview")).to_contain_text("is waiting for the GPU")
    assert [run.id for run in queue.waiting(site.store)] == ["second", "third"]
    page = open_page("?tab=runs&run=third")
    expect(page.locator("#runs-table")).to_contain_text("queued, 2.", timeout=SLOW)
    page.locator("#earlier").click()
    expect(page.locator("#runs-table")).to_contain_text(re.compile(r"third\s*queued, 1\."), timeout=SLOW)
    shot(page, "queue")
    page.locator("#leave").click()
    expect(page.locator("#runs-overview")).to_contain_text("Taken out of the queue", timeout=SLOW)
    page.close()
    first.request_stop()
    assert wait_until_ended(first) == "stopped"
    second = site.store.get("second")
    while second.state() == "queued":
        time.sleep(0.2)
    assert wait_until_ended(second) == "finished", second.log_tail()


@pytest.mark.slow
def test_a_sweep_is_typed_checked_and_read(open_page: Any, site: Site, llama: Path) -> None:
    page = open_page()
    fill_small(page, llama, max_steps=2)
    fill(page, "name", "grid")
    page.locator("#sweep button").first.click()
    grid = page.locator("#sweep-grid")
    for text, told in {
        "rank: [": "cannot be read",
        "ranks: 8, 16": "did you mean 'rank'",
        "rank: 8, many": "With rank many",
        "base_model: bigscience/bloom-7b1\nmax_length: 192, 8192\nbatch_size: 512, 1024": "cannot fit and will not be queued",
    }.items():
        fill_field(page, "#sweep-text", text)
        expect(grid).to_contain_text(told, timeout=SLOW)
    shot_of_both(page, "sweep-refused")
    fill_field(page, "#sweep-text", "rank: 4, 8\nbias: none, all")
    expect(page.locator("#sweep-start")).to_have_text("Queue 4 runs", timeout=SLOW)
    shot_of_both(page, "sweep")
    page.locator("#sweep-start").click()
    expect(page.locator("#runs-plots")).to_contain_text("The sweep, by what varies", timeout=SLOW)
    runs = [run for run in site.store.all() if run.id.startswith("grid")]
    assert len(runs) == 4
    for run in reversed(runs):
        while run.state() == "queued":
            page.wait_for_timeout(200)
        assert wait_until_ended(run) == "finished", run.log_tail()
    page = open_page("?tab=runs&run=grid-1")
    page.locator("#whole-sweep").click()
    plots = page.locator("#runs-plots")
    expect(plots).to_contain_text("Held-out loss at the end by rank", timeout=SLOW)
    expect(plots).to_contain_text("rank 8, bias all")
    shot_of_both(page, "sweep-read")
