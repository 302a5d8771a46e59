"""An adapter made elsewhere in the page: added, listed, compared on the base that is typed, measured, deleted."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.adapters import made_adapter
from tests.browser.conftest import SLOW, Site
from tests.browser.page import expect, fill_field, shot_of_both
from tests.elsewhere import copied

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def foreign(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_adapter(llama, tmp_path_factory.mktemp("foreign") / "plain", 1, target_modules=["q_proj", "v_proj"])
    return copied(folder, folder.with_name("from-a-friend"), "/content/models/theirs", new_setting=True)


def add(page: Any, prefix: str, named: object) -> None:
    page.locator(f"#{prefix}-bring button").first.click()
    fill_field(page, f"#{prefix}-bring-name", named)
    page.locator(f"#{prefix}-bring-add").click()


@pytest.mark.slow
def test_one_is_added_and_listed_and_deleted(open_page: Any, site: Site, foreign: Path) -> None:
    page = open_page("?tab=runs")
    expect(page.locator("#no-runs")).to_contain_text("add an adapter below that was made elsewhere")
    add(page, "runs", foreign / "nothing-there")
    expect(page.locator("#runs-bring-status")).to_contain_text("neither a folder nor a run")
    fill_field(page, "#runs-bring-name", foreign)
    page.locator("#runs-bring-add").click()
    expect(page.locator("#runs-bring-status")).to_contain_text("Fetched into")
    row = page.locator('#runs-table tr[data-run="from-a-friend"]')
    expect(row).to_contain_text("made elsewhere")
    expect(row).to_have_class("chosen")
    overview = page.locator("#runs-overview")
    expect(overview).to_contain_text("it has no training history here")
    expect(overview).to_contain_text("'/content/models/theirs', a folder that is not on this machine")
    for button in ("Open in Train", "Train again with changes", "Resume"):
        expect(page.get_by_role("button", name=button, exact=True)).to_be_hidden()
    shot_of_both(page, "elsewhere-runs")
    page = open_page("?tab=train&run=from-a-friend")  # nothing to follow, and nothing breaks
    expect(page.locator("#live-head")).to_contain_text("made elsewhere")
    page = open_page("?tab=runs&run=from-a-friend")
    page.locator("#delete").click()
    expect(page.locator("#question")).to_contain_text("Delete the adapter 'from-a-friend'")
    page.locator("#sure").click()
    expect(page.locator("#no-runs")).to_be_visible()
    assert not (site.store.root / "from-a-friend").exists() and foreign.is_dir()


@pytest.mark.slow
def test_one_is_compared_and_measured_on_the_base_that_is_typed(
    open_page: Any, site: Site, foreign: Path, llama: Path, tmp_path: Path
) -> None:
    page = open_page("?tab=compare")
    add(page, "compare", foreign)
    expect(page.locator("#column-title-1")).to_contain_text("from-a-friend")
    page.locator("#decoding button").first.click()
    fill_field(page, "#decoding-max_new_tokens", 8)
    page.locator("#prompt textarea").fill("Hello")
    page.locator("#send").click()
    expect(page.locator(".toast-body").first).to_contain_text("type a hub id or a folder into Base")
    fill_field(page, "#base", llama)
    expect(page.locator("#column-title-1")).to_contain_text("from-a-friend")
    page.locator("#prompt textarea").fill("Hello")
    page.locator("#send").click()
    expect(page.locator("#column-title-1")).to_contain_text("tokens/s", timeout=2 * SLOW)
    page.locator("#proof-1 button").first.click()
    proof = page.locator("#proof-1")
    expect(proof).to_contain_text("/content/models/theirs; on")
    expect(proof).to_contain_text("because it was chosen; all shapes fit")
    expect(proof).to_contain_text("does not know and leaves out: new_setting")
    shot_of_both(page, "elsewhere-compared")

    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": f"{n}?", "completion": f"It is {n}."}) for n in range(6)))
    page = open_page("?tab=runs&run=from-a-friend")
    page.locator("#evaluate-how button").first.click()
    for field, value in (("tokens", 0), ("data", rows), ("base", llama)):
        fill_field(page, f"#evaluate-{field}", value)
    page.locator("#evaluate").click()
    expect(page.locator("#runs-judged")).to_contain_text("rows.jsonl", timeout=2 * SLOW)
    assert (site.store.root / "from-a-friend" / "evaluation.json").is_file()
    shot_of_both(page, "elsewhere-measured")
