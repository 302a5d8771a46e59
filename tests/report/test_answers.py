"""Answers without a page: their thoughts taken apart, and the report that shows both as they were written."""

import pytest

from qlora_gui.data.reasoning import parted
from qlora_gui.report import RENDERERS, written
from qlora_gui.runs.store import RunStore
from qlora_gui.ui.compare import columns
from tests.factories import Made


@pytest.mark.parametrize(
    ("text", "prompt", "thought", "ended"),
    [
        ("<think>a<b</think> $$x$$", None, "<think>a<b</think>", True),
        ("\n[THINK]a[/THINK]\r\n \n  b", None, "\n[THINK]a[/THINK]\r\n \n", True),
        ("<think>\n\n</think>\n\nyes", "assistant\n", "<think>\n\n</think>\n\n", True),
        ("<think>and on", "assistant\n", "<think>and on", False),
        ("a<b\n</think>\n\nyes", "assistant\n<think>\n", "a<b\n</think>\n\n", True),
        ("a<b", "assistant\n<think>\n", "a<b", False),
        ("a<b\n</think>yes", None, "a<b\n</think>", True),
        ("Write </think> at its end", "assistant\n", "", True),
        ("Write <think> and </think>", None, "", True),
        ("yes", "assistant\n<think>\n\n</think>\n\n", "", True),
        ("", "assistant\n", "", True),
    ],
)
def test_a_text_is_taken_apart_and_nothing_is_lost(text: str, prompt: str | None, thought: str, ended: bool) -> None:
    found = parted(text, prompt)
    assert (found.thought, found.ended) == (thought, ended) and found.thought + found.answer == text


def test_a_chat_shows_a_thought_that_is_being_written_folded() -> None:
    history = [{"role": "user", "content": " why?\n  "}]
    shown = columns.messages(history, "<think>ab", "assistant\n", writing=True)
    assert [one["content"][0]["text"] for one in shown] == [" why?\n  ", "&lt;think&gt;ab"]
    assert shown[1]["metadata"] == {"title": "Thinking… · 9 characters", "status": "done"}
    (_, cut) = columns.messages(history, "<think>ab", "assistant\n")
    assert cut["metadata"]["title"] == "Thinking (not finished) · 9 characters"
    (_, empty) = columns.messages(history, "", "assistant\n")
    assert "an empty answer" in empty["content"][0]["text"]


def test_the_report_folds_thoughts_and_keeps_lines_and_leading_spaces(store: RunStore) -> None:
    long = "<think>" + 1000 * "a<b | " + "</think>\n\n\n"
    texts = {"prompt": "\n  $5?", "reference": "**b**", "base": long + "  two\n\n    four", "adapter": "\n<think>and"}
    Made(store, "r8").trained().evaluated(examples=[texts])
    blocks = written(store)
    page, markdown = RENDERERS[".html"](blocks), RENDERERS[".md"](blocks)
    assert "<pre>\n  two\n\n    four</pre>" in page and '<pre class="asked">\n\n  $5?</pre>' in page
    assert f"<summary>Thinking · {len(long):,} characters</summary><pre>\n&lt;think&gt;a&lt;b | " in page
    assert "Thinking (not finished) · 11 characters" in page and "<pre>\n\n&lt;think&gt;and</pre>" in page
    (line,) = [line for line in markdown.splitlines() if line.startswith("| <details>")]
    assert line.count("<details><summary>Thinking") == 2 and line.count("</details>") == 2
    assert "</details>&nbsp;&nbsp;two<br><br>&nbsp;&nbsp;&nbsp;&nbsp;four | " in line
    assert "&lt;think&gt;a&lt;b \\| " in line and "more characters\\]</details>" in line
