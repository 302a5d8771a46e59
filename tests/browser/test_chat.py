"""The chat in Compare as several people use it at once: one worker, turn by turn, and nobody ends another's answers."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from qlora_gui.models.base import load_tokenizer
from tests.browser.conftest import PHONE, SLOW, Site
from tests.browser.page import expect, fill_field, shot
from tests.conftest import train

pytestmark = pytest.mark.browser
LONG = "Tell me a long story"
ENDLESS = 1800  # tokens: nobody waits for that


def make_endless(llama: Path, folder: Path) -> Path:
    """The small Llama, so that no answer of it ends by itself: its first dimension is positive in every token, and only end
    marks look at it."""
    shutil.copytree(llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.embed_tokens.weight"][:, 0] = 10.0
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight[0] = 0.0  # no layer changes it
    weights["lm_head.weight"][:, 0] = 0.0
    tokenizer = load_tokenizer(folder)
    weights["lm_head.weight"][tokenizer.convert_tokens_to_ids(["</s>", "<|im_end|>"]), 0] = -100.0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def adapter(site: Site, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    base = make_endless(llama, tmp_path_factory.mktemp("endless") / "llama")
    return train(site.store, base_model=str(base), name="otter", max_steps=3).id


def open_chat(open_page: Any, adapter: str, tokens: int) -> Any:
    page = open_page(f"?tab=compare&run={adapter}")
    expect(page.locator("#column-title-1")).to_contain_text(adapter, timeout=SLOW)
    page.locator("#decoding button").first.click()
    fill_field(page, "#decoding-max_new_tokens", tokens)
    return page


def ask(page: Any, prompt: str) -> None:
    page.locator("#prompt textarea").fill(prompt)
    page.locator("#send").click()


@pytest.mark.slow
def test_two_people_ask_in_turn_and_nobody_ends_the_others_answers(open_page: Any, adapter: str) -> None:
    ada, ben = open_chat(open_page, adapter, ENDLESS), open_chat(open_page, adapter, 8)
    ask(ada, LONG)
    expect(ada.locator("#column-title-1")).to_contain_text("writing…", timeout=SLOW)
    expect(ada.locator("#send")).to_be_disabled()
    expect(ada.locator("#stop-answers")).to_be_enabled()

    ada.locator("#prompt textarea").fill("And what then?")
    ada.locator("#prompt textarea").press("Shift+Enter")  # not before the answers are there
    ben.locator("#clear").click()
    ask(ben, "Name two colours")
    expect(ben.locator("#compare-status")).to_contain_text("is answering another question first…")
    expect(ben.locator("#column-title-1")).to_contain_text("waiting…")
    expect(ben.locator("#stop-answers")).to_be_disabled()  # for it is not Ben's answers that are written
    shot(ben, "chat-waits")
    expect(ada.locator("#column-title-1")).to_contain_text("writing…")

    ada.locator("#stop-answers").click()
    for column in (0, 1):
        expect(ada.locator(f"#column-title-{column}")).to_contain_text("stopped by you", timeout=SLOW)
        expect(ben.locator(f"#column-title-{column}")).to_contain_text("tokens/s", timeout=SLOW)
        expect(ben.locator(f"#column-title-{column}")).not_to_contain_text("stopped by you")
        expect(ada.locator(f"#chat-{column} .message.user")).to_have_count(1)
    expect(ada.locator("#send")).to_be_enabled()
    expect(ada.locator("#stop-answers")).to_be_disabled()
    expect(ada.locator("#prompt textarea")).to_have_value("And what then?")
    shot(ada, "chat-stopped")


def worker_of(site: Site) -> int:
    """The compare process of this page."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"qlora_gui.inference.worker" in (folder / "cmdline").read_bytes():
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                if str(site.store.root).encode() in Path(f"/proc/{parent}/cmdline").read_bytes():
                    return int(folder.name)
        except OSError:  # it has ended meanwhile
            continue
    raise AssertionError("the page has no compare process")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the process is looked up in /proc")
def test_a_killed_compare_process_is_told_and_comes_back(open_page: Any, site: Site, adapter: str) -> None:
    page = open_chat(open_page, adapter, ENDLESS)
    ask(page, LONG)
    expect(page.locator("#column-title-1")).to_contain_text("writing…", timeout=SLOW)
    os.kill(worker_of(site), signal.SIGKILL)
    expect(page.locator("#compare-status")).to_contain_text("The compare process ended (it was killed", timeout=SLOW)
    expect(page.locator("#prompt textarea")).to_have_value(LONG)
    fill_field(page, "#decoding-max_new_tokens", 8)
    page.locator("#send").click()
    expect(page.locator("#column-title-1")).to_contain_text("tokens/s", timeout=SLOW)
    expect(page.locator("#chat-1 .message.user")).to_have_count(1)


@pytest.mark.slow
def test_a_page_that_is_left_while_answers_come_leaves_the_turn_to_the_next(open_page: Any, adapter: str) -> None:
    page = open_chat(open_page, adapter, ENDLESS)
    ask(page, LONG)
    expect(page.locator("#column-title-1")).to_contain_text("writing…", timeout=SLOW)
    page.close()
    page = open_chat(open_page, adapter, 8)
    ask(page, "Name two colours")
    expect(page.locator("#column-title-1")).to_contain_text("tokens/s", timeout=SLOW)
    expect(page.locator("#send")).to_be_enabled()


@pytest.mark.slow
def test_retry_asks_the_last_question_anew_with_another_seed(open_page: Any, adapter: str) -> None:
    page = open_chat(open_page, adapter, 8)
    seed = int(page.locator("#decoding-seed input").input_value())
    page.locator("#retry").click()
    expect(page.locator("#compare-status")).to_contain_text("nothing to retry yet")
    ask(page, "Name two colours")
    expect(page.locator("#column-title-1")).to_contain_text("tokens/s", timeout=SLOW)
    page.locator("#proof-1 button").first.click()
    expect(page.locator("#proof-1")).to_contain_text(f"seed {seed}", timeout=SLOW)
    expect(page.locator("#retry")).to_be_enabled()
    page.locator("#retry").click()
    expect(page.locator("#proof-1")).to_contain_text(f"seed {seed + 1}", timeout=SLOW)
    expect(page.locator("#retry")).to_be_enabled()
    expect(page.locator("#decoding-seed input")).to_have_value(str(seed + 1))
    expect(page.locator("#chat-1 .message.user")).to_have_count(1)
    expect(page.locator("#chat-1 .message.bot")).to_have_count(1)


def test_a_question_that_cannot_be_answered_comes_back(open_page: Any, adapter: str) -> None:
    page = open_chat(open_page, adapter, 8)
    ask(page, "word " * 5000)
    expect(page.locator("#compare-status")).to_contain_text("tokens", timeout=SLOW)
    expect(page.locator("#send")).to_be_enabled()
    assert page.locator("#prompt textarea").input_value().startswith("word word")
    ask(page, "Name two colours")
    expect(page.locator("#column-title-1")).to_contain_text("tokens/s", timeout=SLOW)
    expect(page.locator("#compare-status")).to_be_empty()


def test_the_settings_can_be_read_on_a_phone(open_page: Any, adapter: str) -> None:
    page = open_page(f"?tab=compare&run={adapter}", PHONE)
    page.locator("#decoding button").first.click()
    for setting in ("greedy", "control_tokens", "same_dice"):
        expect(page.locator(f"#decoding-{setting}")).to_be_visible()
        box = page.locator(f"#decoding-{setting}").bounding_box()
        assert box["width"] >= 120 and box["x"] + box["width"] <= PHONE["width"]
