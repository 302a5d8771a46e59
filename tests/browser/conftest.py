"""Fixtures: the page served as people start it, and a real Chromium that opens its views."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qlora_gui.runs import launch
from qlora_gui.runs.store import RunStore
from tests.conftest import need

ROOT = Path(__file__).parents[2]
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
QUIET_FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run"
).split()
SLOW = 90_000  # milliseconds: the machine may be small and busy


@dataclass
class Site:
    """A page that is served, over a store of runs that the test can see too; `token` opens it."""

    url: str
    token: str
    store: RunStore
    cache: Path


PAGE = (
    "import sys; from qlora_gui.runs.store import RunStore; from qlora_gui.ui.app import launch_page; "
    "from qlora_gui.serving.address import Address; launch_page(RunStore(sys.argv[1]), Address())"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from served(tmp_path_factory.mktemp("page"), ["-c", PAGE])


def served(folder: Path, how: list[str]) -> Iterator[Site]:
    """A page over `folder`/adapters, opened by Python with these arguments, until the test is done with it."""
    store = RunStore(folder / "adapters")
    cache = folder / "cache"
    demo = Path(os.environ.get("QLORA_GUI_CACHE") or Path.home() / ".cache" / "qlora_gui") / "models"
    if demo.is_dir():
        (cache / "models").parent.mkdir(parents=True)
        (cache / "models").symlink_to(demo)
    said = folder / "page.log"  # a file: a pipe that nobody reads would fill up and block the page
    with said.open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-u", *how, str(store.root)],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"QLORA_GUI_CACHE": str(cache)},
        )
    try:
        deadline = time.monotonic() + 60
        while not (found := re.search(r"The page is at (\S+)", said.read_text())):
            assert child.poll() is None and time.monotonic() < deadline, f"the page did not open:\n{said.read_text()}"
            time.sleep(0.1)
        url, _, token = found.group(1).partition("?token=")
        yield Site(url, token, store, cache)
    finally:
        child.terminate()
        child.wait(20)
        for run in store.all():
            launch.kill(run)
    told = said.read_text()
    assert "in process_events" not in told, told[-3000:]  # where Gradio tells of a listener that raised


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    with sync_api.sync_playwright() as play:
        path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        try:
            chromium = play.chromium.launch(executable_path=path, args=QUIET_FLAGS)
        except sync_api.Error as error:
            need(False, f"no Chromium to drive: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any, site: Site) -> Iterator[Any]:
    """Opens views; at the end nothing may have failed in the page, nor asked the internet for anything."""
    from playwright.sync_api import expect

    pages, wrong = [], []

    def outside(request: Any) -> None:
        if not request.url.startswith((site.url, "data:", "blob:")):
            wrong.append(f"asked for {request.url}")

    def go(address: str = "", size: dict[str, int] = DESK) -> Any:
        page = browser.new_page(viewport=size)
        page.set_default_timeout(SLOW)
        page.on("pageerror", lambda error: wrong.append(f"failed: {error}"))
        page.on("request", outside)
        page.goto(f"{site.url}{address or '?'}&token={site.token}")
        expect(page.locator("#topbar")).to_contain_text("GB free", timeout=SLOW)
        pages.append(page)
        return page

    yield go
    for page in pages:
        page.close()
    assert not wrong
