"""Blind votes as a judge gives them: by keyboard, unnamed until the reveal, in the file after a reload."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from qlora_gui.preferences.votes import Column, Vote, VoteLog
from tests.browser.conftest import DESK, PHONE, SLOW, Site
from tests.browser.page import expect, fill_field, shot
from tests.conftest import train
from tests.factories import vote as vote_on
from tests.judge_endpoint import Endpoint, prefers

pytestmark = pytest.mark.browser
NASTY = "Name <b>two</b> colours & {{one}} ${number}"
PROMPTS = [NASTY, *(f"Question number {number}: what is it?" for number in range(2, 11))]


@pytest.fixture(scope="module")
def adapter(site: Site, llama: Path) -> str:
    """An adapter to judge against its base."""
    return train(site.store, base_model=str(llama), name="otter", max_steps=12, eval_steps=12, save_steps=12).id


@pytest.fixture
def votes(site: Site, adapter: str) -> list[Vote]:
    """At least three votes on this adapter."""
    log = VoteLog(site.store.root)
    columns = next((vote.columns for vote in log.read()), (Column("base"), Column(adapter, "a" * 64)))
    for number in range(3 if not log.read() else 0):
        log.add(vote_on(number, number % 2, columns))
    return log.read()


def open_blind(open_page: Any, adapter: str, size: dict[str, int] = DESK, address: str = "") -> Any:
    page = open_page(f"?tab=compare&run={adapter}{address}", size)
    expect(page.locator("#column-title-1")).to_contain_text(adapter, timeout=SLOW)
    page.locator("#decoding button").first.click()
    fill_field(page, "#decoding-max_new_tokens", 12)
    page.locator("#blind input").check()
    expect(page.locator("#blind-start")).to_be_visible(timeout=SLOW)
    return page


def begin(page: Any, prompts: list[str]) -> None:
    page.locator("#blind-prompts textarea").fill("\n".join(prompts))
    page.locator("#blind-start").click()
    expect(page.locator("#vote-1")).to_be_enabled(timeout=SLOW)


def at(page: Any, number: int, of: int) -> None:
    """Wait until the prompt of this number can be judged."""
    expect(page.locator("#blind-progress")).to_contain_text(f"Prompt {number} of {of}", timeout=SLOW)
    expect(page.locator("#vote-1")).to_be_enabled(timeout=SLOW)


def text_of_columns(page: Any) -> str:
    return str(page.locator("#columns").inner_text())


@pytest.mark.slow
def test_ten_prompts_judged_by_keyboard_revealed_and_found_after_a_reload(
    open_page: Any, site: Site, adapter: str
) -> None:
    page = open_blind(open_page, adapter)
    expect(page.locator("#prompt")).to_be_hidden()
    expect(page.locator("#votes")).to_contain_text("No votes on these columns yet")
    page.locator("#blind-prompts textarea").fill("")
    page.locator("#blind-prompts textarea").press_sequentially("1tb")  # keys are letters while one types
    assert page.locator("#blind-prompts textarea").input_value() == "1tb"
    begin(page, PROMPTS)

    log = VoteLog(site.store.root)
    expect(page.locator("#chat-0")).to_contain_text(NASTY)
    assert not re.search(rf"{adapter}|\bbase\b|tokens/s|proof", text_of_columns(page), re.IGNORECASE)
    expect(page.locator("#column-title-0")).to_contain_text("Answer 1")
    expect(page.locator("#column-title-1")).to_contain_text(re.compile(r"Answer 2\s*\d+ tokens"))
    expect(page.locator("#proof-0")).to_be_hidden()
    expect(page.locator("#votes")).to_be_empty()
    page.wait_for_timeout(700)
    shot(page, "blind-judging")

    given = ["1", "2", "t", "b", "1", "2", "1", "1", "2", "1"]
    for number, key in enumerate(given, 1):
        at(page, number, 10)
        if number == 3:  # once the wrong key, taken back
            page.keyboard.press("b")
            at(page, 4, 10)
            page.keyboard.press("u")
            at(page, 3, 10)
        if number == 5:
            page.reload()
            at(page, 5, 10)
            assert not re.search(rf"{adapter}|\bbase\b|tokens/s", text_of_columns(page))
        page.keyboard.press(key)
    expect(page.locator("#blind-progress")).to_contain_text("Revealed: 10 of 10", timeout=SLOW)
    titles = [page.locator(f"#column-title-{place}").inner_text() for place in (0, 1)]
    assert sorted(re.findall(rf"Answer \d: ({adapter}|base)", " ".join(titles))) == sorted([adapter, "base"])
    assert "your choice" in titles[0]
    expect(page.locator("#proof-0")).to_be_visible()
    page.locator("#proof-0 button").first.click()
    expect(page.locator("#proof-0")).to_contain_text("fingerprint")
    expect(page.locator("#votes .note")).to_contain_text("Not enough evidence")
    expect(page.locator("#rounds summary")).to_contain_text("The 10 votes of this session")
    page.wait_for_timeout(700)
    shot(page, "blind-revealed")

    votes = log.read()
    assert len(votes) == 10 and sum(json.loads(line)["kind"] == "undo" for line in log.path.open()) == 1
    for vote, key, prompt in zip(votes, given, PROMPTS, strict=True):
        expected = {"t": "tie", "b": "bad"}.get(key, vote.order[int(key) - 1] if key.isdigit() else None)
        assert vote.choice == expected and vote.prompt == prompt
    assert [column.name for column in votes[0].columns] == ["base", adapter]
    assert votes[0].columns[1].sha256 and votes[0].same_dice and not votes[0].aa
    assert votes[0].base["fingerprint"] and len({vote.decoding["seed"] for vote in votes}) == 10
    assert sorted(vote.order for vote in votes) == [(0, 1)] * 5 + [(1, 0)] * 5

    page.reload()
    expect(page.locator("#column-title-1")).to_contain_text(adapter, timeout=SLOW)
    page.locator("#blind input").check()
    decided = page.locator("#votes tr", has_text=re.compile("^tie"))
    expect(decided).to_contain_text("1")
    expect(page.locator("#votes .interval").first).to_have_attribute(
        "aria-label", re.compile(f"{adapter} against base: 95%")
    )
    assert [vote.id for vote in log.read()] == [vote.id for vote in votes]


def test_votes_are_saved_from_the_page(open_page: Any, adapter: str, votes: list[Vote]) -> None:
    page = open_blind(open_page, adapter)
    with page.expect_download(timeout=SLOW) as waiting:
        page.locator("#save-json").click()
    assert waiting.value.suggested_filename == f"{adapter}-against-base.json"
    told = json.loads(Path(waiting.value.path()).read_text())
    assert [model["name"] for model in told["models"]] == [adapter, "base"] and len(told["examples"]) == len(votes)
    with page.expect_download(timeout=SLOW) as waiting:
        page.locator("#save-csv").click()
    with Path(waiting.value.path()).open(newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == [vote.id for vote in votes]


@pytest.mark.slow
def test_buttons_retry_and_undo_after_the_reveal(open_page: Any, site: Site, adapter: str) -> None:
    log = VoteLog(site.store.root)
    before = len(log.read())
    page = open_blind(open_page, adapter)
    begin(page, ["One prompt alone"])
    answers = page.locator("#chat-0").inner_text() + page.locator("#chat-1").inner_text()
    page.locator("#blind-retry").click()
    expect(page.locator("#blind-progress")).to_contain_text("retry 1", timeout=SLOW)
    expect(page.locator("#vote-1")).to_be_enabled(timeout=SLOW)
    assert page.locator("#chat-0").inner_text() + page.locator("#chat-1").inner_text() != answers
    page.locator("#vote-2").click()
    expect(page.locator("#blind-progress")).to_contain_text("Revealed: 1 of 1", timeout=SLOW)
    vote = log.read()[-1]
    assert (vote.retries, vote.choice, len(log.read())) == (1, vote.order[1], before + 1)
    page.locator("#undo").click()
    expect(page.locator("#blind-progress")).to_contain_text("Revealed: 0 of 1", timeout=SLOW)
    assert len(log.read()) == before
    assert json.loads(log.path.read_text().splitlines()[-1])["after_reveal"] is True
    page.locator("#blind input").uncheck()
    expect(page.locator("#prompt")).to_be_visible(timeout=SLOW)
    expect(page.locator("#column-title-0")).to_contain_text("base")
    expect(page.locator("#blind-bar")).to_be_hidden()


@pytest.mark.slow
def test_held_out_examples_and_an_early_reveal(open_page: Any, adapter: str) -> None:
    page = open_blind(open_page, adapter)
    page.locator("#blind-examples").click()
    expect(page.locator("#blind-prompts textarea")).not_to_have_value("", timeout=SLOW)
    page.locator("#blind-start").click()
    at(page, 1, 10)
    expect(page.locator("#base input")).to_be_disabled()
    expect(page.locator("#blind input")).to_be_disabled()
    page.keyboard.press("t")
    at(page, 2, 10)
    page.locator("#reveal").click()
    expect(page.locator("#blind-progress")).to_contain_text("Revealed: 1 of 10", timeout=SLOW)
    expect(page.locator("#base input")).to_be_enabled()


@pytest.mark.slow
def test_aa_shows_the_base_twice_and_counts_for_nobody(
    open_page: Any, site: Site, adapter: str, votes: list[Vote]
) -> None:
    page = open_blind(open_page, adapter)
    people = page.locator("#votes section").first.inner_text()
    page.locator("#aa input").check()
    begin(page, ["First", "Second"])
    texts = [page.locator(f"#chat-{place}").inner_text() for place in (0, 1)]
    assert texts[0] != texts[1], "the same dice would make an A/A of one text"
    page.keyboard.press("1")
    at(page, 2, 2)
    page.keyboard.press("2")
    expect(page.locator("#blind-progress")).to_contain_text("Revealed: 2 of 2", timeout=SLOW)
    assert page.locator("#column-title-0").inner_text().count("base") == 1
    assert page.locator("#column-title-1").inner_text().count("base") == 1
    new = VoteLog(site.store.root).read()[len(votes) :]
    assert len(new) == 2 and all(vote.aa and not vote.same_dice and len(vote.columns) == 2 for vote in new)
    assert new[0].columns[0] == new[0].columns[1]
    expect(page.locator("#votes")).to_contain_text("A/A: the base against itself")
    assert page.locator("#votes section").first.inner_text() == people


def test_wrong_input_is_told_and_nothing_starts(open_page: Any, adapter: str) -> None:
    page = open_blind(open_page, adapter)
    page.locator("#blind-start").click()
    expect(page.locator("#blind-status")).to_contain_text("Write a prompt first")
    page.locator("#llm-judge button").first.click()
    fill_field(page, "#llm-url", "nowhere")
    fill_field(page, "#llm-model", "m")
    page.locator("#llm-ask").click()
    expect(page.locator("#llm-status")).to_contain_text("address is invalid")
    fill_field(page, "#llm-url", "http://127.0.0.1:9/v1")
    fill_field(page, "#llm-model", adapter)
    page.locator("#llm-ask").click()
    expect(page.locator("#llm-status")).to_contain_text("one of the compared models")


def test_an_llm_judges_what_people_voted_on(open_page: Any, site: Site, adapter: str, votes: list[Vote]) -> None:
    endpoint = Endpoint(prefers("e"))
    page = open_blind(open_page, adapter)
    page.locator("#llm-judge button").first.click()
    fill_field(page, "#llm-url", endpoint.judge.url)
    fill_field(page, "#llm-model", "big-judge")
    page.locator("#llm-ask").click()
    expect(page.locator("#votes")).to_contain_text("votes of big-judge", timeout=SLOW)
    expect(page.locator("#votes")).to_contain_text("Both orders agreed on")
    its = [vote for vote in VoteLog(site.store.root).read() if vote.by == "llm:big-judge"]
    assert len(its) == len([vote for vote in votes if not vote.aa and vote.by == "human"])
    page.locator("#llm-ask").click()
    expect(page.locator("#llm-status")).to_contain_text("nothing to judge", timeout=SLOW)
    endpoint.server.shutdown()


@pytest.mark.slow
def test_a_phone_judges_without_scrolling_sideways(open_page: Any, adapter: str) -> None:
    page = open_blind(open_page, adapter, PHONE)
    begin(page, ["Alpha", "Beta"])
    page.evaluate("window.scrollTo(0, 0)")
    expect(page.locator("#vote-1")).to_be_in_viewport()
    expect(page.locator("#vote-bad")).to_be_in_viewport()
    page.wait_for_timeout(700)
    shot(page, "phone-blind")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.locator("#vote-1").click()
    at(page, 2, 2)
    page.locator("#vote-tie").click()
    expect(page.locator("#blind-progress")).to_contain_text("Revealed", timeout=SLOW)
    page.wait_for_timeout(700)
    shot(page, "phone-blind-revealed")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_dark(open_page: Any, adapter: str, votes: list[Vote]) -> None:
    page = open_blind(open_page, adapter, DESK, "&__theme=dark")
    expect(page.locator("#votes .interval").first).to_be_visible(timeout=SLOW)
    page.wait_for_timeout(700)
    shot(page, "blind-dark")
