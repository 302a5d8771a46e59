"""A page that nobody touches asks little: no tab answers itself in a circle."""

from collections import Counter
from typing import Any

import pytest

from tests.browser.conftest import SLOW, Site
from tests.browser.page import expect
from tests.conftest import train

pytestmark = pytest.mark.browser
_SECONDS = 3
_MOST = 12  # requests in that time: timers ask every 1.5 or 3 seconds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tab", "shows"),
    [("runs", "#chosen"), ("compare", "#column-title-1"), ("train", "#live-head"), ("report", "#tabs")],
)
def test_an_open_run_is_not_asked_for_again_and_again(
    open_page: Any, site: Site, llama: Any, tab: str, shows: str
) -> None:
    for name in ("gull", "tern"):
        if not site.store.is_taken(name):
            train(site.store, base_model=str(llama), name=name, max_steps=3)
    page = open_page(f"?tab={tab}&run=gull")
    expect(page.locator(shows)).to_be_visible(timeout=SLOW)
    if tab == "runs":
        page.locator("#runs-table").get_by_text("tern").first.click()
    page.wait_for_timeout(2500)
    asked: Counter[Any] = Counter()
    page.on("request", lambda request: asked.update(["/queue/join" in request.url]))
    page.wait_for_timeout(1000 * _SECONDS)
    assert asked[True] <= _MOST, asked
