"""What tests do with a page: fill in fields, unfold groups, wait for words, keep pictures."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import DESK, PHONE, SLOW
from tests.conftest import TINY

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright").expect
expect.set_options(timeout=SLOW)  # the machine may be small and busy


def shot(page: Any, name: str) -> None:
    """Keep a picture, if somebody wants them."""
    if folder := os.environ.get("QLORA_GUI_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def shot_of_both(page: Any, name: str) -> None:
    """On a desk and on a phone: a picture of each, and nothing to scroll sideways. The page stays on the phone."""
    for size in (DESK, PHONE):
        page.set_viewport_size(size)
        shot(page, f"{name}-{size['width']}")
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]


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


def fill_field(page: Any, where: str, value: object) -> None:
    field = page.locator(f"{where} :is(input, textarea)").first
    field.fill(str(value))
    field.blur()
