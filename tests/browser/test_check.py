"""The check on the page: offered until a run has finished, its lines as they come."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.conftest import DESK, PHONE, Site, served
from tests.browser.page import expect, shot
from tests.conftest import TINY

_PAGE = """
import sys, time
from qlora_gui.check import client
from qlora_gui.check.lines import Line
from qlora_gui.runs.store import RunStore
from qlora_gui.serving.address import Address
from qlora_gui.ui.app import launch_page

def lines(store):
    yield Line("torch", "ok", "torch 2.13.0, built for CUDA 13.0; NVIDIA driver 580.82.07.")
    yield Line("hub", "warning", "The model hub does not answer.", "Check network and proxy.")
    time.sleep(2)
    yield Line("llama-text", "failed", "Llama: greedy answers differ.", "Report this, with the lines above.")

client.run = lines
launch_page(RunStore(sys.argv[1]), Address())
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from served(tmp_path_factory.mktemp("check"), ["-c", _PAGE])


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_lines_come_one_by_one_and_can_be_pasted(open_page: Any, size: dict[str, int]) -> None:
    page = open_page("", size)
    page.locator("#check-start").click()
    told = page.locator("#check-report")
    expect(told).to_contain_text("Still checking")
    expect(told).to_contain_text("✓ torch 2.13.0")
    expect(told).to_contain_text("1 of 3 checks failed, 1 warning")
    expect(page.locator("#check-start")).to_be_enabled()
    told.locator("summary").click()
    expect(told.locator("pre")).to_contain_text("FAILED   Llama: greedy answers differ.")
    shot(page, f"check-{size['width']}")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_it_is_gone_where_a_run_has_finished(open_page: Any, site: Site) -> None:
    from qlora_gui.config import make
    from qlora_gui.runs.events import EventLog

    page = open_page()
    expect(page.locator("#check-start")).to_be_visible()
    run = site.store.create(make(TINY | {"name": "done"}))
    EventLog(run.events_file).append("finished", step=1, loss_before=None, loss_after=None)
    page.goto(site.url + "?tab=runs")
    page.goto(site.url)
    expect(page.locator("#check-start")).not_to_be_visible()
