"""The page of this machine's other users: a sentence without the token, the page with it, in every tab and after a restart."""

from typing import Any

import pytest

from tests.browser.conftest import DESK, PHONE, SLOW, Site
from tests.browser.page import expect, shot

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_without_the_token_a_sentence_says_what_to_open(browser: Any, site: Site, size: dict[str, int]) -> None:
    context = browser.new_context(viewport=size)
    page = context.new_page()
    for address in ("", "?tab=runs", "?token=wrong"):
        page.goto(site.url + address)
        expect(page.locator("body")).to_contain_text("open the address printed in the terminal")
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    shot(page, f"no-token-{size['width']}")

    page.goto(f"{site.url}?tab=runs&token={site.token}")
    expect(page.locator("#topbar")).to_contain_text("GB free", timeout=SLOW)
    expect(page.get_by_role("tab", name="Runs")).to_have_attribute("aria-selected", "true")
    assert page.url == f"{site.url}?tab=runs" and site.token not in page.content()
    assert not page.evaluate("document.cookie")  # no script reads it
    shot(page, f"with-token-{size['width']}")
    other = context.new_page()
    other.goto(site.url)
    expect(other.locator("#topbar")).to_contain_text("GB free", timeout=SLOW)
    page.go_back()
    assert site.token not in page.url
    context.close()
