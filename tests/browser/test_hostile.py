"""A page with a login, and folders, prompts and names made by somebody hostile: nothing of them may run in the browser."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qlora_gui.evaluation import job
from qlora_gui.preferences.votes import Column, Vote, VoteLog
from qlora_gui.runs.events import EventLog
from tests.browser.conftest import ROOT, SLOW, Site
from tests.browser.page import expect, fill, shot
from tests.factories import Made

pytestmark = pytest.mark.browser
SIDES = ("prompt", "reference", "base", "adapter")
BAD = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>[x](javascript:window.hacked=1)${window.hacked=1}'


def hostile(site: Site) -> None:
    """A run as a stranger could send it: every text in it tries to run."""
    made = Made(site.store, "hostile", base_model="org/name", system_prompt=BAD).trained([2.0, 1.0])
    run = made.run
    log = EventLog(run.events_file)
    log.append("stage", text=BAD)
    log.append(
        "data", format=BAD, used=1, held_out=1, truncated=0, dropped=2, tokens=1, supervised=1,
        dropped_rows=[{"row": BAD, "reason": BAD}],
    )  # fmt: skip
    answers = [{"prompt": BAD, "answer": BAD, "ended": True}]
    for step in (0, 40):
        log.append("probe", step=step, answers=answers)
    log.append("fit", text=BAD, knobs={})
    log.append("failed", message=BAD, bug=True)
    run.log_file.write_text(f"{BAD}\n" * 5)
    made.evaluated(verdict={"kind": "better", "text": BAD}, examples=[dict.fromkeys(SIDES, BAD)])
    found = json.loads((run.path / job.FILE).read_text())
    found["data"]["source"] = BAD
    (run.path / job.FILE).write_text(json.dumps(found))
    columns = (Column("base", None), Column(BAD, None))
    turns = [{"role": "user", "content": BAD}]
    VoteLog(site.store.root).add(
        Vote(BAD, BAD, turns, columns, (0, 1), 1, (BAD, BAD), (3, 3), base={"fingerprint": BAD})
    )
    broken = Made(site.store, "broken").trained([2.0, 1.0]).run
    (broken.path / job.FILE).write_text(json.dumps(found | {"loss": BAD, "verdict": BAD}))


@pytest.mark.slow
@pytest.mark.attack("HTML and script in folders, logs, names and fields, in a browser")
def test_nothing_in_a_strangers_run_is_run(open_page: Any, site: Site) -> None:
    hostile(site)
    for address in (
        "?tab=runs&run=hostile",
        "?tab=train&run=hostile",
        "?tab=compare&run=hostile",
        "?tab=report&run=hostile",
        "?tab=runs&run=broken",
    ):
        page = open_page(address)
        page.wait_for_timeout(2500)
        if address == "?tab=runs&run=hostile":
            expect(page.locator("#runs-judged")).to_contain_text("onerror")  # it is shown, as text
        assert page.evaluate("window.hacked") is None, address
        assert page.locator("img[src='x']").count() == 0, address
    page = open_page(f"?tab=runs&run={BAD.replace('&', '%26').replace('#', '%23')}")
    page.wait_for_timeout(1500)
    assert page.evaluate("window.hacked") is None


@pytest.mark.attack("HTML and script in folders, logs, names and fields, in a browser")
def test_nothing_typed_into_the_form_is_run(open_page: Any) -> None:
    page = open_page()
    for knob in ("base_model", "dataset", "name"):
        fill(page, knob, BAD)
    page.locator("#start").click()
    expect(page.locator("#form-status")).to_contain_text("onerror", timeout=SLOW)
    page.wait_for_timeout(800)
    assert page.evaluate("window.hacked") is None and page.locator("img[src='x']").count() == 0
    shot(page, "hostile-form")


def test_the_page_behind_its_login(browser: Any, tmp_path: Path) -> None:
    """What a browser sends gets through the guard: log in, open the tabs, upload a file, see its rows."""
    command = [sys.executable, "-u", str(ROOT / "app.py"), "--auth", "me:a long password"]
    env = os.environ | {"QLORA_GUI_CACHE": str(tmp_path / "cache")}
    child = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    assert child.stdout
    try:
        url = next(found.group(1) for line in child.stdout if (found := re.search(r"The page is at (\S+)", line)))
        rows = tmp_path / "mine.jsonl"
        rows.write_text("".join(json.dumps({"prompt": f"p{n}", "completion": f"answer {n}"}) + "\n" for n in range(9)))
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        page = context.new_page()
        page.set_default_timeout(SLOW)
        page.goto(url)
        page.get_by_label("username").fill("me")
        page.get_by_label("password").fill("wrong password")
        page.get_by_role("button", name="Login").click()
        page.wait_for_timeout(700)
        expect(page.locator("#topbar")).to_have_count(0)
        shot(page, "login")
        page.get_by_label("username").fill("me")  # Gradio empties both after a wrong try
        page.get_by_label("password").fill("a long password")
        page.get_by_role("button", name="Login").click()
        expect(page.locator("#topbar")).to_contain_text("GB free", timeout=SLOW)
        with page.expect_file_chooser() as chooser:
            page.locator("#upload").click()
        chooser.value.set_files(rows)
        expect(page.locator("#knob-dataset :is(input, textarea)").first).to_have_value(
            re.compile("mine.jsonl"), timeout=SLOW
        )
        expect(page.locator("#preview")).to_contain_text("answer 0", timeout=SLOW)
        page.get_by_role("tab", name="Runs").click()
        expect(page.locator("#no-runs")).to_be_visible()
        context.close()
    finally:
        child.terminate()
        child.wait(20)
