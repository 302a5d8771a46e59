"""The page as a person meets it: a real Chromium, a real training child, a real compare worker, a small model."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qlora_gui.runs import config as configs
from qlora_gui.runs import launch
from qlora_gui.runs.store import RunStore
from tests.conftest import SHARED_DATA, TINY, need, wait_until_ended

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
expect = sync_api.expect
pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
DESK, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
QUIET_FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run"
).split()
SLOW = 90_000  # milliseconds: the machine may be small and busy


@dataclass
class Site:
    """A page that is served, over a store of runs that the test can see too."""

    url: str
    store: RunStore


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("page")
    store = RunStore(folder / "adapters")
    code = (
        "import sys; from qlora_gui.runs.store import RunStore; from qlora_gui.ui.app import launch_page; "
        "launch_page(RunStore(sys.argv[1]), '127.0.0.1', None, False, None)"
    )
    cache = folder / "cache"
    demo = Path(os.environ.get("QLORA_GUI_CACHE") or Path.home() / ".cache" / "qlora_gui") / "models"
    if demo.is_dir():
        (cache / "models").parent.mkdir(parents=True)
        (cache / "models").symlink_to(demo)
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(store.root)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"QLORA_GUI_CACHE": str(cache)},
    )
    assert child.stdout
    lines = []
    try:
        for line in child.stdout:
            lines.append(line)
            if found := re.search(r"The page is at (\S+)", line):
                yield Site(found.group(1), store)
                break
        else:
            raise AssertionError("the page did not open:\n" + "".join(lines))
    finally:
        child.terminate()
        child.wait(20)
        for run in store.all():
            launch.kill(run)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
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
    pages, wrong = [], []

    def outside(request: Any) -> None:
        if not request.url.startswith((site.url, "data:", "blob:")):
            wrong.append(f"asked for {request.url}")

    def go(address: str = "", size: dict[str, int] = DESK) -> Any:
        page = browser.new_page(viewport=size)
        page.set_default_timeout(SLOW)
        page.on("pageerror", lambda error: wrong.append(f"failed: {error}"))
        page.on("request", outside)
        page.goto(site.url + address)
        expect(page.locator("#topbar")).to_contain_text("GB free", timeout=SLOW)
        pages.append(page)
        return page

    yield go
    for page in pages:
        page.close()
    assert not wrong


def shot(page: Any, name: str) -> None:
    """Keep a picture, if somebody wants them."""
    if folder := os.environ.get("QLORA_GUI_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def fill(page: Any, knob: str, value: object) -> None:
    field = page.locator(f"#knob-{knob} :is(input, textarea)").first
    field.fill(str(value))
    field.blur()


def unfold(page: Any, group: str) -> None:
    page.locator(f"#more-{group} button").first.click()


def until(page: Any, text: str, where: str = "#live-head") -> None:
    expect(page.locator(where)).to_contain_text(re.compile(text), timeout=SLOW)


def step_shown(page: Any) -> int:
    found = re.search(r"step (\d+) of", page.locator("#live-head").inner_text())
    return int(found.group(1)) if found else -1


def fill_small(page: Any, base: Path, **knobs: object) -> None:
    """A short run on a small model, typed into the form."""
    fill(page, "base_model", base)
    for group in ("what-to-train", "schedule", "memory", "logging"):
        unfold(page, group)
    for name, value in (TINY | knobs).items():
        if isinstance(value, bool):
            page.locator(f"#knob-{name} input").set_checked(value)
        else:
            fill(page, name, value)


def test_it_opens_on_a_filled_in_demo_and_shows_what_is_learned(open_page: Any) -> None:
    page = open_page()
    expect(page.locator("#preset input")).to_have_value("demo")
    expect(page.locator("#start")).to_be_in_viewport()
    expect(page.locator("#preview")).to_contain_text("Row 1")
    expect(page.locator("#preview mark").last).to_be_visible(timeout=SLOW)
    expect(page.locator("#command")).to_contain_text("--headless-train --preset demo")
    expect(page.locator("#topbar")).to_contain_text("idle")
    shot(page, "train-demo")


def test_wrong_input_is_told_at_the_field_and_start_is_refused(open_page: Any, site: Site) -> None:
    page = open_page()
    fill(page, "rank", 0)
    expect(page.locator("#knob-rank")).to_contain_text("greater than or equal to 1 (it is 0)")
    fill(page, "dataset", "/nope/missing.json")
    expect(page.locator("#knob-dataset")).to_contain_text("does not exist: check the path")
    page.locator("#start").click()
    expect(page.locator("#form-status")).to_contain_text("Rank should be greater")
    expect(page.locator(".toast-body").first).to_contain_text("Rank should be greater")
    shot(page, "train-faults")
    assert site.store.all() == []
    fill(page, "rank", 4)
    expect(page.locator("#knob-rank")).to_contain_text("how much the adapter can learn")
    expect(page.locator("#form-status")).not_to_contain_text("Rank")


def test_empty_places_say_what_to_do(open_page: Any, site: Site) -> None:
    page = open_page("?tab=runs")
    expect(page.locator("#no-runs")).to_contain_text("Open Train and press Start")
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#no-adapters")).to_contain_text("Train one")


def test_from_a_data_file_to_the_comparison(open_page: Any, site: Site, llama: Path) -> None:
    need(SHARED_DATA.is_file(), "the shared data set is not beside this checkout")
    page = open_page()
    fill_small(page, llama, name="first", max_steps=120, logging_steps=2, eval_steps=30, save_steps=30)
    with page.expect_file_chooser() as chooser:
        page.locator("#upload").click()
    chooser.value.set_files(SHARED_DATA)
    expect(page.locator("#knob-dataset textarea")).to_have_value(re.compile(r"uploads/.*-instructions\.json$"))
    expect(page.locator("#preview")).to_contain_text("1,100 rows (alpaca)", timeout=SLOW)
    page.locator("#start").click()

    until(page, r"first.*running.*step \d+ of 120 .* left")
    expect(page.locator("#topbar")).to_contain_text("first is running", timeout=SLOW)
    before, curve = step_shown(page), page.locator("#live-plots svg path").nth(1)
    drawn = curve.get_attribute("d")
    page.wait_for_function(
        "before => parseInt((document.querySelector('#live-head').innerText.match(/step (\\d+) of/) || [0, 0])[1]) > before",
        arg=before,
    )
    assert page.locator("#live-plots svg path").nth(1).get_attribute("d") != drawn, "the curve stands still"
    shot(page, "train-live")

    assert page.url.endswith("?tab=train&run=first")
    page.reload()
    until(page, r"first.*step \d+ of 120")
    assert step_shown(page) >= before
    expect(page.locator("#live-plots svg path").nth(1)).to_be_attached()
    expect(page.locator("#live-log")).to_contain_text("step 2/120")
    expect(page.locator("#knob-base_model textarea")).to_have_value(str(llama))

    until(page, "first · finished")
    expect(page.locator("#live-told")).to_contain_text(re.compile(r"Held-out loss went from .* \(the adapter\)"))
    shot(page, "train-finished")
    run = site.store.get("first")
    assert run.state() == "finished" and run.has_adapter()
    assert run.config().rank == 16 and run.config().max_steps == 120

    page.locator("#to-compare").click()
    expect(page.locator("#column-title-1")).to_contain_text("first")
    assert page.url.endswith("?tab=compare&run=first")
    page.locator("#decoding button").first.click()
    page.locator("#decoding-greedy input").check()
    fill_field(page, "#decoding-max_new_tokens", 12)
    fill_field(page, "#prompt", "Name <b>two</b> colours & {{one}} ${number}")
    page.locator("#send").click()
    for column in (0, 1):
        expect(page.locator(f"#column-title-{column}")).to_contain_text("tokens/s", timeout=SLOW)
        expect(page.locator(f"#chat-{column}")).to_contain_text("Name <b>two</b> colours & {{one}} ${number}")
        page.locator(f"#proof-{column} button").first.click()
        expect(page.locator(f"#proof-{column}")).to_contain_text("fingerprint")
        expect(page.locator(f"#proof-{column}")).to_contain_text("greedy")
    expect(page.locator("#proof-1")).to_contain_text("first")
    answers = [page.locator(f"#chat-{column}").inner_text() for column in (0, 1)]
    fill_field(page, "#prompt", "And two more?")
    expect(page.locator("#send")).to_be_enabled(timeout=SLOW)
    page.locator("#send").click()
    for column in (0, 1):
        expect(page.locator(f"#proof-{column}")).to_contain_text("And two more?", timeout=SLOW)
        assert page.locator(f"#chat-{column}").inner_text().startswith(answers[column]), "the history is lost"
    shot(page, "compare")
    expect(page.locator("#clear")).to_be_enabled(timeout=SLOW)
    page.locator("#clear").click()
    expect(page.locator("#chat-1")).not_to_contain_text("colours")


def fill_field(page: Any, where: str, value: object) -> None:
    field = page.locator(f"{where} :is(input, textarea)").first
    field.fill(str(value))
    field.blur()


def test_a_run_started_elsewhere_is_shown_live_and_can_be_stopped_and_resumed(
    open_page: Any, site: Site, llama: Path
) -> None:
    page = open_page()
    expect(page.locator("#preview")).to_be_visible()
    run = site.store.create(configs.make(TINY | {"base_model": str(llama), "name": "elsewhere", "max_steps": 5000}))
    launch.start(run, site.store)
    until(page, r"elsewhere.*step \d+ of 5000")
    page.locator("#stop").click()
    until(page, "elsewhere · stopped")
    expect(page.locator("#live-told")).to_contain_text("Press Resume")
    assert wait_until_ended(run) == "stopped"
    reached = max(event["step"] for event in run.events()[0] if event["kind"] == "step")
    page.locator("#resume").click()
    page.wait_for_function(
        "reached => parseInt((document.querySelector('#live-head').innerText.match(/step (\\d+) of/) || [0, 0])[1]) > reached",
        arg=reached,
    )
    page.locator("#stop").click()
    until(page, "elsewhere · stopped")
    assert wait_until_ended(run) == "stopped"


def test_runs_are_listed_opened_repeated_and_deleted(open_page: Any, site: Site, llama: Path) -> None:
    for name, rank in (("old", 3), ("new", 5)):
        run = site.store.create(configs.make(TINY | {"base_model": str(llama), "name": name, "rank": rank}))
        launch.start(run, site.store)
        assert wait_until_ended(run) == "finished"
    page = open_page("?tab=runs&run=old")
    expect(page.locator("#runs-told")).to_contain_text("old · finished")
    page.locator("#runs-table [role=gridcell]", has_text=re.compile(r"^\s*new\s*$")).click()
    expect(page.locator("#runs-plots")).to_contain_text("Where their settings differ")
    expect(page.locator("#runs-plots")).to_contain_text("rank")
    shot(page, "runs-two")
    page.locator("#runs-table [role=gridcell]", has_text=re.compile(r"^\s*new\s*$")).click()
    expect(page.locator("#runs-told")).to_contain_text("old · finished")

    page.locator("#again").click()
    expect(page.locator("#knob-rank input")).to_have_value("3")
    expect(page.locator("#knob-name textarea")).to_have_value("")
    expect(page.locator("#preset input")).to_have_value("own settings")

    page.get_by_role("tab", name="Runs").click()
    page.locator("#delete").click()
    expect(page.locator("#question")).to_contain_text("Delete the run 'old'")
    shot(page, "runs-delete")
    assert site.store.get("old")
    page.locator("#sure").click()
    expect(page.locator("#runs-table [role=gridcell]", has_text=re.compile(r"^\s*old\s*$"))).to_have_count(0)
    assert "old" not in [run.id for run in site.store.all()]


@pytest.mark.parametrize("tab", ["train", "runs", "compare"])
def test_a_phone_shows_every_tab_without_scrolling_sideways(open_page: Any, tab: str) -> None:
    page = open_page(f"?tab={tab}", PHONE)
    expect(page.get_by_role("tab", name=tab.capitalize())).to_have_attribute("aria-selected", "true")
    page.wait_for_timeout(1500)
    shot(page, f"phone-{tab}")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    too_wide = page.evaluate(
        "[...document.querySelectorAll('button, input, textarea')].filter(e => e.offsetParent && !e.closest('#runs-table')"
        " && e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML.slice(0, 120))"
    )
    assert not too_wide
