"""Take along: one press at a run that finished, the export followed to its end, and its proof there to stay."""

from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import SLOW, Site
from tests.browser.page import expect, shot_of_both
from tests.conftest import train

pytestmark = pytest.mark.browser


@pytest.mark.slow
def test_a_run_is_exported_and_its_proof_stays(open_page: Any, site: Site, llama: Path) -> None:
    run = train(site.store, base_model=str(llama), name="taken", max_steps=2)
    page = open_page("?tab=runs&run=taken")
    page.locator("#export button").first.click()
    shot_of_both(page, "export")
    page.locator("#export-start").click()
    status = page.locator("#export-status")
    expect(status).to_contain_text("as exported", timeout=2 * SLOW)
    folder = run.path / "exports" / "taken-merged-bf16"
    expect(status).to_contain_text(str(folder))
    assert (folder / "model.safetensors").exists() and (folder / "README.md").exists()
    page.locator("#export-start").click()
    expect(page.locator(".toast-body").first).to_contain_text("is there already: delete it first")
    page.reload()
    page.locator("#export button").first.click()
    expect(status).to_contain_text("of 44 answers identical")
    shot_of_both(page, "exported")
