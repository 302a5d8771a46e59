"""Compare with a whole model as one more column: a merged export of the chosen run, offered by name."""

from pathlib import Path
from typing import Any

import pytest

from qlora_gui.export import work
from qlora_gui.export.job import Settings
from tests.browser.conftest import SLOW, Site
from tests.browser.page import expect, fill_field, shot_of_both
from tests.conftest import train

pytestmark = pytest.mark.browser


@pytest.mark.slow
def test_a_merged_export_answers_beside_its_adapter(open_page: Any, site: Site, llama: Path, tmp_path: Path) -> None:
    run = train(site.store, base_model=str(llama), name="ibis", max_steps=3)
    work.export(run.path, Settings("merged", rows=0), lambda text: None, lambda done, of: None)
    page = open_page(f"?tab=compare&run={run.id}")
    expect(page.locator("#column-title-1")).to_contain_text("ibis", timeout=SLOW)
    page.locator("#decoding button").first.click()
    fill_field(page, "#decoding-max_new_tokens", 8)
    page.locator("#whole-model input").click()
    page.get_by_role("option", name="ibis-merged-bf16").click()
    expect(page.locator("#column-title-2")).to_contain_text("ibis-merged-bf16", timeout=SLOW)
    page.locator("#prompt textarea").fill("Name two colours")
    page.locator("#send").click()
    for column in range(3):
        expect(page.locator(f"#column-title-{column}")).to_contain_text("tokens", timeout=SLOW)
    page.locator("#proof-2 button").first.click()
    expect(page.locator("#proof-2")).to_contain_text("a whole model of its own")
    shot_of_both(page, "whole-model")

    page.locator("#prompt textarea").fill("And two more")  # the conversation goes on in all three
    page.locator("#send").click()
    expect(page.locator("#chat-2")).to_contain_text("And two more", timeout=SLOW)
    expect(page.locator("#send")).to_be_enabled(timeout=SLOW)

    field = page.locator("#whole-model input")
    field.fill(str(tmp_path))
    field.press("Enter")
    field.blur()
    page.locator("#prompt textarea").fill("hi")
    page.locator("#send").click()
    expect(page.locator("#compare-status")).to_contain_text("is no folder of a whole model", timeout=SLOW)
    page.locator("#blind input").check()
    expect(page.locator("#whole-model")).to_be_hidden()
