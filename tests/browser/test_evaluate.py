"""Evaluating in the page: pressed, followed, and its verdict read, also after a reload."""

from pathlib import Path
from typing import Any

import pytest

from qlora_gui.evaluation import job
from tests.browser.conftest import DESK, PHONE, SLOW, Site
from tests.browser.page import expect, shot
from tests.conftest import train

pytestmark = pytest.mark.browser


@pytest.mark.slow
def test_a_run_is_evaluated_and_its_verdict_stays(open_page: Any, site: Site, llama: Path) -> None:
    run = train(site.store, base_model=str(llama), name="judged", probe_prompts=2, probe_tokens=12)
    page = open_page("?tab=runs&run=judged")
    expect(page.locator("#runs-plots")).to_contain_text("Probe answers over time", timeout=SLOW)
    page.locator("#evaluate").click()
    expect(page.locator("#runs-judged")).to_contain_text("Evaluating", timeout=SLOW)
    expect(page.locator("#evaluate")).to_be_disabled()
    shot(page, "evaluating")
    expect(page.locator("#runs-judged")).to_contain_text("on 44 held-out rows", timeout=SLOW)
    expect(page.locator("#evaluate")).to_be_enabled(timeout=SLOW)
    found = job.result(run)
    assert found and found.examples
    for size, name in ((DESK, "evaluated"), (PHONE, "phone-evaluated")):
        page = open_page("?tab=runs&run=judged", size)
        expect(page.locator("#runs-judged")).to_contain_text(found.verdict.text, timeout=SLOW)
        page.locator("#runs-judged summary", has_text="Figures").click()
        expect(page.locator("#runs-judged")).to_contain_text("held-out loss (nats per token)")
        page.locator("#runs-judged summary", has_text="Answers side by side").click()
        expect(page.locator("#runs-judged")).to_contain_text(found.examples[0].reference[:40])
        shot(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
