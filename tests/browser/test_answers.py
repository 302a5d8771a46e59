"""Answers as a person who judges them needs them: as they were written, each thought folded above its answer."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.conftest import DESK, PHONE, SLOW, Site, served
from tests.browser.page import expect, shot
from tests.conftest import SHARED_DATA, need
from tests.factories import Made

pytestmark = pytest.mark.browser
LATEX = SHARED_DATA.parent / "reports" / "latex.jsonl"
PLAIN = "  two spaces\n\n    four, $5 and $10, $$x_1$$\n\t**bold** `code` <b>tag</b> &amp; # no heading\n- no list\n```\ncode\n```"
THOUGHT = "<think>\nIs a<b?\n  So $$y$$ it is.\n</think>\n\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from served(tmp_path_factory.mktemp("page"), ["-m", "tests.browser.scripted"])


@pytest.fixture(scope="module")
def adapter(site: Site) -> str:
    """A run with answers of every kind, which the page takes for a trained one."""
    texts = {"prompt": f" {PLAIN}", "reference": PLAIN, "base": THOUGHT + PLAIN, "adapter": "<think>and on"}
    made = Made(site.store, "otter").trained().evaluated(examples=[texts])
    for step, answer in ((0, THOUGHT + PLAIN), (40, PLAIN)):
        made.log.append("probe", step=step, answers=[{"prompt": "Why?", "answer": answer, "ended": True}])
    return made.run.id


@pytest.fixture
def script(site: Site) -> Any:
    folder = site.store.root.parent

    def write(*pieces: str, prompt: str = "<|im_start|>assistant\n", wait: bool = False) -> None:
        told = {"pieces": pieces, "prompt": prompt, "wait": wait}
        (folder / "script.json").write_text(json.dumps(told))

    return write


def latex() -> str:
    need(LATEX.is_file(), "the reports are not beside this checkout")
    return str(json.loads(LATEX.read_text().splitlines()[0])["messages"][1]["content"])


def ask(open_page: Any, adapter: str, size: dict[str, int] = DESK) -> Any:
    page = open_page(f"?tab=compare&run={adapter}", size)
    expect(page.locator("#column-title-1")).to_contain_text(adapter, timeout=SLOW)
    page.locator("#prompt textarea").fill("What is\n  it, $5?")
    page.locator("#send").click()
    return page


def answered(page: Any) -> None:
    expect(page.locator("#column-title-1")).to_contain_text("tokens/s", timeout=SLOW)
    expect(page.locator("#send")).to_be_enabled(timeout=SLOW)


def written(page: Any, column: int = 1) -> str:
    """The last text of a column as it is seen."""
    return str(page.locator(f"#chat-{column} .message-content .md").last.evaluate("it => it.innerText"))


def title(page: Any, column: int = 1) -> Any:
    return page.locator(f"#chat-{column} .thought-group [role=button].title").last


def test_an_answer_is_seen_as_it_was_written(open_page: Any, adapter: str, script: Any) -> None:
    script(PLAIN[:30], PLAIN[30:])
    page = ask(open_page, adapter)
    answered(page)
    assert written(page) == written(page, 0) == PLAIN
    assert page.locator("#chat-1 .message.user .md").evaluate("it => it.innerText") == "What is\n  it, $5?"
    assert page.locator("#chat-1 :is(.katex, strong, code, b, h1, li)").count() == 0


def test_a_thought_is_folded_and_goes_back_to_the_model_whole(
    open_page: Any, site: Site, adapter: str, script: Any
) -> None:
    told = latex()
    thought, answer = told.split("</think>")
    script(told)
    page = ask(open_page, adapter)
    answered(page)
    assert written(page) == answer and "$$x_1$$" in answer and answer.startswith(" ")
    expect(title(page)).to_have_text(f"Thinking · {len(thought) + len('</think>')} characters")
    expect(page.locator("#chat-1")).not_to_contain_text("a<b")
    shot(page, "answer-thought-folded")
    title(page).focus()
    page.keyboard.press("Enter")
    expect(page.locator("#chat-1")).to_contain_text("<think>a<b</think>")
    shot(page, "answer-thought")
    page.locator("#prompt textarea").fill("And now?")
    page.locator("#send").click()
    expect(page.locator("#chat-1 .thought-group")).to_have_count(2, timeout=SLOW)
    answered(page)
    asked = json.loads((site.store.root.parent / "asked.jsonl").read_text().splitlines()[-1])
    assert [turn["content"] for turn in asked[1]] == ["What is\n  it, $5?", told, "And now?"]


def test_a_thought_that_the_prompt_opens_is_folded_while_it_is_written(
    open_page: Any, site: Site, adapter: str, script: Any
) -> None:
    go = site.store.root.parent / "go"
    pieces = ("Is a<b?", "\n  So it is.", "\n</think>\n\n", "  It is.")
    script(*pieces, prompt="<|im_start|>assistant\n<think>\n", wait=True)
    page = ask(open_page, adapter)
    expect(title(page)).to_have_text(f"Thinking… · {len(pieces[0])} characters", timeout=SLOW)
    expect(page.locator("#chat-1")).not_to_contain_text("a<b")
    title(page).click()
    expect(page.locator("#chat-1")).to_contain_text("Is a<b?")
    go.touch()
    expect(page.locator("#chat-1")).to_contain_text("So it is.", timeout=SLOW)  # what is unfolded stays so
    for count in (3, 4):
        go.touch()
        head = sum(map(len, pieces[: min(count, 3)]))
        expect(title(page)).to_have_text(f"Thinking · {head} characters", timeout=SLOW)
    answered(page)
    assert written(page) == pieces[3]
    thought = page.locator("#chat-1 .thought-group .md").last.evaluate("it => it.innerText")
    assert thought.rstrip("\n") == "".join(pieces[:3]).rstrip("\n")


def test_a_mark_alone_is_a_word_where_no_thought_was_open(open_page: Any, adapter: str, script: Any) -> None:
    script("Write </think> at its end.")
    page = ask(open_page, adapter)
    answered(page)
    assert written(page) == "Write </think> at its end." and page.locator("#chat-1 .thought-group").count() == 0


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_blind_votes_are_on_what_was_written(open_page: Any, adapter: str, script: Any, size: dict[str, int]) -> None:
    script(THOUGHT + PLAIN)
    page = open_page(f"?tab=compare&run={adapter}", size)
    expect(page.locator("#column-title-1")).to_contain_text(adapter, timeout=SLOW)
    page.locator("#blind input").check()
    page.locator("#blind-prompts textarea").fill("One $5\nTwo")
    page.locator("#blind-start").click()
    expect(page.locator("#vote-1")).to_be_enabled(timeout=SLOW)
    for column in (0, 1):
        expect(title(page, column)).to_have_text(f"Thinking · {len(THOUGHT)} characters")
        assert written(page, column) == PLAIN
    title(page).click()
    expect(page.locator("#chat-1")).to_contain_text("Is a<b?")
    page.wait_for_timeout(3000)  # the page looks for news meanwhile
    expect(page.locator("#chat-1")).to_contain_text("Is a<b?")
    shot(page, f"answer-blind-{size['width']}")
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    page.locator("#reveal").click()
    expect(page.locator("#blind-progress")).to_contain_text("Revealed", timeout=SLOW)


def test_probes_and_evaluations_show_answers_as_written(open_page: Any, adapter: str) -> None:
    page = open_page(f"?tab=runs&run={adapter}")
    judged, probes = page.locator("#runs-judged"), page.locator("#runs-plots")
    judged.locator("summary", has_text="Answers side by side").click(timeout=SLOW)
    texts = [one.evaluate("it => it.innerText") for one in judged.locator(".answer-pair .as-written > div").all()]
    assert texts == [PLAIN, PLAIN, ""]
    folds = [one.inner_text() for one in judged.locator(".answer-pair summary").all()]
    assert folds == [f"Thinking · {len(THOUGHT)} characters", "Thinking (not finished) · 13 characters"]
    assert min(one.bounding_box()["width"] for one in judged.locator(".answer-pair dd").all()) >= 150
    probes.locator("summary", has_text="Why?").click()
    assert [one.evaluate("it => it.innerText") for one in probes.locator(".as-written > div").all()] == [PLAIN, PLAIN]
    probes.locator(".as-written summary").click()
    expect(probes.locator(".as-written details > div")).to_contain_text("Is a<b?")
    shot(page, "answers-run")


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_the_reports_answers_stand_side_by_side_as_written(open_page: Any, adapter: str, size: dict[str, int]) -> None:
    page = open_page(f"?tab=report&run={adapter}", size)
    sides = page.locator("#report .sides > div")
    expect(sides).to_have_count(3, timeout=SLOW)
    assert min(one.bounding_box()["width"] for one in sides.all()) >= 150
    tops = {round(one.bounding_box()["y"]) for one in sides.all()}
    assert len(tops) == (1 if size == DESK else 3)
    texts = [one.evaluate("it => it.innerText") for one in page.locator("#report .sides > div > pre").all()]
    assert texts == [PLAIN.replace("\t", "    "), "(an empty answer)", PLAIN.replace("\t", "    ")]
    page.locator("#report .sides summary").first.click()
    expect(page.locator("#report .sides details pre").first).to_contain_text("Is a<b?")
    shot(page, f"answers-report-{size['width']}")
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
