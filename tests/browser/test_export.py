"""Take along: one press at a run that finished, the export followed to its end, its proof there to stay; and to the hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.adapters import finished_run, made_to_push
from tests.browser.conftest import PAGE, SLOW, Site, served
from tests.browser.page import expect, fill_field, shot_of_both
from tests.conftest import train
from tests.push_server import READ, WRITE, HubServer, Repo, serving

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    """A hub, there before the page begins, on which somebody is logged in who may only read."""
    with serving() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_TOKEN", READ)
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        yield hub


@pytest.fixture(scope="module")
def site(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from served(tmp_path_factory.mktemp("page"), ["-c", PAGE])


@pytest.mark.slow
def test_a_run_is_exported_and_its_proof_stays(open_page: Any, site: Site, hub: HubServer, llama: Path) -> None:
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
    page.locator("#hub button").first.click()
    page.locator("#hub-what input").click()
    page.get_by_role("option", name="The export taken-merged-bf16").click()
    fill_field(page, "#hub-repo", "me/merged")
    fill_field(page, "#hub-token", WRITE)
    page.locator("#hub-push").click()
    expect(page.locator("#hub-status")).to_contain_text("me/merged (private)", timeout=SLOW)
    assert hub.repos["me/merged"].files["model.safetensors"] == (folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_an_adapter_is_pushed_to_the_hub(open_page: Any, site: Site, hub: HubServer, llama: Path) -> None:
    """The login is shown when it is asked for, a typed token is for one push, and a repository that exists is asked about."""
    run = finished_run(made_to_push(llama, site.store.root.parent / "source"), site.store.root / "pushed")
    hub.repos["me/open"] = Repo(False, {"x": b""})
    hub.asked.clear()
    page = open_page("?tab=runs&run=pushed")
    page.locator("#export button").first.click()
    expect(page.locator("#hub")).to_be_visible()
    assert not hub.count("GET")
    page.locator("#hub button").first.click()
    expect(page.locator("#hub-account")).to_contain_text("Logged in as me.")
    push, status, warned = page.locator("#hub-push"), page.locator("#hub-status"), page.locator(".toast-body")
    push.click()
    expect(warned.last).to_contain_text("give owner/name")
    fill_field(page, "#hub-repo", "me/mine")
    push.click()
    expect(warned.last).to_contain_text("The token of 'me' may only read")
    fill_field(page, "#hub-repo", "other/mine")
    fill_field(page, "#hub-token", WRITE)
    push.click()
    expect(status).to_contain_text("Not pushed: The token may not write to 'other/mine'", timeout=SLOW)
    expect(page.locator("#hub-token input")).to_have_value("")
    fill_field(page, "#hub-repo", "me/mine")
    fill_field(page, "#hub-token", WRITE)
    page.locator("#hub-whose").click()
    expect(page.locator("#hub-account")).to_contain_text("by the token typed here")
    shot_of_both(page, "hub")
    push.click()
    expect(status.locator("a")).to_have_attribute("href", f"{hub.url}/me/mine", timeout=SLOW)
    expect(page.locator("#hub-token input")).to_have_value("")
    assert hub.repos["me/mine"].private and len(hub.repos["me/mine"].files) == 6
    fill_field(page, "#hub-repo", "me/open")
    fill_field(page, "#hub-token", WRITE)
    push.click()
    expect(page.locator("#hub-question")).to_contain_text("is PUBLIC, and stays so")
    shot_of_both(page, "hub-asked")
    page.locator("#hub-cancel").click()
    expect(page.locator("#hub-question")).to_be_hidden()
    assert hub.repos["me/open"].files == {"x": b""}
    fill_field(page, "#hub-token", WRITE)
    push.click()
    page.get_by_role("button", name="Push to the public repository").click()
    expect(status).to_contain_text("me/open (public)", timeout=SLOW)
    page.reload()
    page.locator("#export button").first.click()
    page.locator("#hub button").first.click()
    expect(status.locator("a")).to_have_count(2)
    expect(status).to_contain_text("paths of this machine are cut to their last name")
    shot_of_both(page, "hub-pushed")
    kept = page.evaluate(
        "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, document.body.outerHTML])"
    )
    assert WRITE not in kept and READ not in kept
    files = [path for folder in (site.store.root, site.cache) for path in folder.rglob("*") if path.is_file()]
    assert run.path / "push.log" in files and site.cache.parent / "page.log" not in files
    for file in [*files, site.store.root.parent / "page.log"]:
        assert WRITE.encode() not in file.read_bytes() and READ.encode() not in file.read_bytes(), file
