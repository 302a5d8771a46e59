"""Every answer of a conversation is learned once, after exactly what asks for it, under real tokenizers and templates.

The templates of families whose tokenizers no registry carries are written here in few lines, each with the trait that
makes it hard; the words around the traits are not theirs.
"""

import json
from pathlib import Path

import pytest

from qlora_gui.config import make
from qlora_gui.data import chat_template, load, reasoning, row_stats, tokenization
from qlora_gui.data.chat import Chat
from qlora_gui.errors import UserError
from qlora_gui.models.base import load_tokenizer
from qlora_gui.runs.store import RunStore
from tests.conftest import SHARED_DATA, need
from tests.conversations import HARD, R1, TOOLS, learned, real

REPORTS = SHARED_DATA.parent / "reports"
REAL = ("qwen3", "gemma3", "llama3", "llama3_1", "llama2")


def encoded(chat: Chat, name: str, max_length: int = 512) -> tuple[list[tokenization.Encoded], tokenization.Report]:
    need(REPORTS.is_dir(), "the reported inputs are not beside this checkout")
    return tokenization.encode_all(load.load(str(REPORTS / name)).train, chat, max_length)


def check_as_asked(chat: Chat, name: str, system: str = "") -> None:
    """Hold every row against rendering and tokenizing what is asked at chat time: the context is those very tokens."""
    rows, report = encoded(chat, name)
    by_row = {example["row"]: example["messages"] for example in load.load(str(REPORTS / name)).train}
    turns = report.turns()
    assert turns["lost"] == turns["cut"] == 0, (report.lost[:1], report.dropped[:1])
    assert turns["learned"] + turns["context_only"] == turns["present"]
    for row in rows:
        assert row.ended and not row.truncated
        asked = chat.prompt(by_row[row.row][: row.turn]).ids(chat.tokenizer)
        assert row.input_ids[: len(asked)] == asked
        assert (
            chat.tokenizer.decode(row.input_ids[len(asked) :])
            .strip()
            .startswith(by_row[row.row][row.turn]["content"].strip()[:5])
            or chat.probe.empty_thought
            or chat.thinking is None
        )


@pytest.mark.parametrize("family", REAL)
def test_every_turn_is_learned_to_its_end_mark_under_real_templates(family: str) -> None:
    tokenizer = real(family)
    thinking = False if family == "qwen3" else None
    chat = Chat(tokenizer, thinking=thinking)
    end = {"qwen3": "<|im_end|>", "gemma3": "<end_of_turn>", "llama2": "</s>"}.get(family, "<|eot_id|>")
    for name, answers in (("multi.jsonl", ("First", "Second", "Third")), ("multi_system.jsonl", ("First", "Second"))):
        rows, report = encoded(chat, name)
        assert learned([row for row in rows if row.row == 1], tokenizer) == [
            f"{word} answer 1.{end}" for word in answers
        ]
        assert report.learned == report.present == 12 * len(answers)
        check_as_asked(chat, name)
    # Qwen3 drops the empty thought of earlier turns, so that they are rows of their own; the others need one row.
    assert report.split == (12 if family == "qwen3" else 0)


@pytest.mark.parametrize("name", list(HARD))
def test_every_turn_is_learned_to_its_end_mark_under_hard_templates(hard: dict[str, Chat], name: str) -> None:
    chat = hard[name]
    end = {
        "phi": "<|end|>",
        "r1": "<|im_end|>",
        "nemo": "<|im_end|>",
        "gemma2": "<end_of_turn>",
        "harmony": "<|return|>",
        "spaced": "<|im_end|>",
        "glm": "<|user|>",
    }[name]
    before = "<|channel|>final<|message|>" if name == "harmony" else ""
    for file, answers in (("multi.jsonl", ("First", "Second", "Third")), ("multi_system.jsonl", ("First", "Second"))):
        rows, report = encoded(chat, file)
        assert learned([row for row in rows if row.row == 1], chat.tokenizer) == [
            f"{before}{word} answer 1.{end}" for word in answers
        ]
        assert report.learned == report.present == 12 * len(answers)
        assert report.notes["system_folded"] == (12 if name == "gemma2" and file == "multi_system.jsonl" else 0)
    # One row where every context is the beginning of the next one's: nemo's is not with the system turn, and spaced's
    # tokens are not, for there a later prompt has the space and the word after it in one token.
    rewrites = {"r1": 12, "harmony": 12, "nemo": 12, "spaced": 12}
    assert report.split == rewrites.get(name, 0)


def test_a_space_that_a_template_puts_before_an_answer_is_the_answers_and_a_header_is_the_prompts(llama: Path) -> None:
    """As Mistral's and Llama 2's templates do, which have no generation prompt; one that lacks it has it added."""
    tokenizer = load_tokenizer(llama)
    asks = "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    chat = Chat(tokenizer, asks + "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}")
    rows, _ = encoded(chat, "single.jsonl")
    assert learned(rows[:1], tokenizer) == [" It is number 1.<|im_end|>"]
    assert chat.prompt([{"role": "user", "content": "Hi"}]).text == "[INST] Hi [/INST]"
    chat = Chat(tokenizer, "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}")
    rows, _ = encoded(chat, "single.jsonl")
    assert learned(rows[:1], tokenizer) == ["It is number 1.<|im_end|>"]
    assert chat.prompt([{"role": "user", "content": "Hi"}]).text == "user: Hi<|im_end|>assistant: "


def test_the_answers_first_token_is_learned_where_the_generation_prompt_ends_in_a_space(hard: dict[str, Chat]) -> None:
    chat = hard["spaced"]
    rows, _ = encoded(chat, "multi.jsonl")
    first = next(label for label in rows[0].labels if label != tokenization.IGNORED)
    place = rows[0].labels.index(first)
    asked = chat.prompt([{"role": "user", "content": "Where is order A-1?"}]).ids(chat.tokenizer)
    assert rows[0].input_ids[:place] == asked and chat.tokenizer.decode(first).startswith("F")


@pytest.mark.parametrize("family", REAL)
def test_a_conversation_that_begins_with_the_assistant_has_its_later_answers_learned(family: str) -> None:
    tokenizer = real(family)
    chat = Chat(tokenizer, thinking=False if family == "qwen3" else None)
    for name, present, later in (("gpt_first.jsonl", 24, 12), ("gpt_first_some.jsonl", 16, 12)):
        rows, report = encoded(chat, name)
        assert (report.present, report.learned, report.context_only) == (present, later, present - later)
        assert len(rows) == 12 and not report.dropped
        assert not any("Hello there" in text for text in learned(rows, tokenizer))
        assert "Hello there" in tokenizer.decode(rows[2].input_ids)  # the greeting is context
    told = " ".join(row_stats.sentences(row_stats.compute(rows, report, chat, "sharegpt")))
    assert f"{later} of {present} answers are learned ({present - later} as context only)" in told
    assert ("led by an empty user turn" in told) == (family == "gemma3")


def test_reasoning_is_learned_with_thinking_on_and_left_out_with_it_off() -> None:
    tokenizer = real("qwen3")
    for name, answer in (("reasoning_field.jsonl", "It is 1."), ("think.jsonl", "It is 2.")):
        on, off = Chat(tokenizer, thinking=True), Chat(tokenizer, thinking=False)
        why = "I think of 1 first." if name == "reasoning_field.jsonl" else "I take 1 and then 2."
        rows, report = encoded(on, name)
        assert learned(rows[:1], tokenizer) == [f"<think>\n{why}\n</think>\n\n{answer}<|im_end|>"]
        rows, report = encoded(off, name)
        assert learned(rows[:1], tokenizer) == [f"{answer}<|im_end|>"]
        assert "<think>\n\n</think>\n\n" in tokenizer.decode(rows[0].input_ids)  # asked for so, and not learned
        assert report.notes["reasoning_off"] == report.used


def test_an_empty_thought_is_never_learned() -> None:
    """Learning it would turn a model's thinking off for good."""
    tokenizer = real("qwen3")
    for thinking in (True, False, None):
        rows, _ = encoded(Chat(tokenizer, thinking=thinking), "multi.jsonl")
        assert not any("think" in text for text in learned(rows, tokenizer))


def test_reasoning_that_a_template_drops_is_told_or_learned_where_the_prompt_opens_a_thought(
    hard: dict[str, Chat],
) -> None:
    tokenizer = real("llama3_1")
    rows, report = encoded(Chat(tokenizer), "reasoning_field.jsonl")
    assert learned(rows[:1], tokenizer) == ["It is 1.<|eot_id|>"]
    assert report.notes["reasoning_dropped"] == report.used
    assert "whose reasoning the chat template does not show" in " ".join(
        row_stats.sentences(row_stats.compute(rows, report, Chat(tokenizer), "messages"))
    )
    rows, _ = encoded(Chat(tokenizer), "think.jsonl")  # as text it is text
    assert learned(rows[:1], tokenizer)[0].startswith("<think>\nI take 1 and then 2.\n</think>")
    r1 = Chat(hard["r1"].tokenizer, R1, thinking=True)
    rows, report = encoded(r1, "think.jsonl")
    assert learned(rows[:1], r1.tokenizer) == ["I take 1 and then 2.\n</think>\n\nIt is 2.<|im_end|>"]
    assert not report.notes["reasoning_dropped"]
    harmony = hard["harmony"]
    rows, _ = encoded(harmony, "reasoning_field.jsonl")
    assert learned(rows[:1], harmony.tokenizer) == [
        "<|channel|>analysis<|message|>I think of 1 first.<|end|><|start|>assistant"
        "<|channel|>final<|message|>It is 1.<|return|>"
    ]


def test_turns_that_are_not_to_be_learned_are_context() -> None:
    for family in ("qwen3", "llama3_1"):
        tokenizer = real(family)
        chat = Chat(tokenizer, thinking=False if family == "qwen3" else None)
        turns = [
            {"role": "user", "content": "Order 1?"},
            {"role": "assistant", "content": "BAD ANSWER 1.", "learn": False},
            {"role": "user", "content": "No, really?"},
            {"role": "assistant", "content": "Good answer 1."},
        ]
        rows, report = tokenization.encode_all([{"row": 1, "messages": turns}], chat, 512)
        assert [text.partition(".")[0] for text in learned(rows, tokenizer)] == ["Good answer 1"]
        assert "BAD ANSWER" in tokenizer.decode(rows[0].input_ids)
        assert (report.present, report.learned, report.context_only) == (2, 1, 1)


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
WITH_TOOL = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "12 C", "tool_call_id": "c1"},
    {"role": "assistant", "content": "It is 12 C."},
]


def test_tool_calls_and_results_and_tools_go_to_the_template_or_the_row_says_why_not() -> None:
    tokenizer = real("qwen3")
    chat = Chat(tokenizer, thinking=False)
    rows, report = tokenization.encode_all([{"row": 1, "messages": WITH_TOOL, "tools": TOOLS}], chat, 2048)
    call, answer = learned(rows, tokenizer)
    assert call.startswith("<tool_call>\n") and '"city": "Rome"' in call and call.endswith("</tool_call><|im_end|>")
    assert answer == "It is 12 C.<|im_end|>" and report.learned == 2
    whole = tokenizer.decode(rows[-1].input_ids)
    assert "<tool_response>\n12 C\n</tool_response>" in whole and '"description": "The weather."' in whole
    gemma = Chat(real("gemma3"))
    rows, report = tokenization.encode_all([{"row": 7, "messages": WITH_TOOL, "tools": TOOLS}], gemma, 2048)
    assert not rows and [row for row, _ in report.dropped] == [7] and "chat template" in report.dropped[0][1]
    llama = Chat(real("llama3_1"))
    rows, report = tokenization.encode_all([{"row": 7, "messages": WITH_TOOL, "tools": TOOLS}], llama, 2048)
    assert [reason for _, reason in report.lost] == ["the chat template does not show its call of the tool 'weather'"]
    assert report.notes["tools_not_shown"] == 1 and report.learned == 1
    told = row_stats.sentences(row_stats.compute(rows, report, llama, "messages"))
    assert (
        "The first that is not learnable is in row 7: the chat template does not show its call of the tool 'weather'"
        in told
    )


def test_neighbours_of_one_role_are_joined_where_the_template_wants_them_alternating() -> None:
    turns = [
        {"role": "user", "content": "One."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Three."},
        {"role": "assistant", "content": "Four."},
    ]
    gemma = Chat(real("gemma3"))
    rows, report = tokenization.encode_all([{"row": 1, "messages": turns}], gemma, 512)
    assert learned(rows, gemma.tokenizer) == ["Three.\n\nFour.<end_of_turn>"]
    assert (report.present, report.learned, report.notes["roles_joined"]) == (2, 2, 1)
    llama = Chat(real("llama3_1"))
    rows, report = tokenization.encode_all([{"row": 1, "messages": turns}], llama, 512)
    assert learned(rows, llama.tokenizer) == ["Three.<|eot_id|>", "Four.<|eot_id|>"]
    assert report.learned == 2 and not report.notes["roles_joined"]


def test_turns_beyond_max_length_are_counted_as_cut() -> None:
    chat = Chat(real("llama3_1"))
    rows, report = encoded(chat, "multi.jsonl", max_length=40)
    assert report.truncated == 12 and all(len(row.input_ids) == 40 for row in rows)
    assert report.cut > 0 and report.learned + report.cut == report.present == 36
    assert "beyond max_length" in " ".join(row_stats.sentences(row_stats.compute(rows, report, chat, "messages")))


def test_one_function_gives_all_that_ends_an_answer(hard: dict[str, Chat]) -> None:
    def names(chat: Chat) -> set[str]:
        return {str(chat.tokenizer.convert_ids_to_tokens(number)) for number in chat.ends}

    first_llama = real("llama3")  # whose EOS is another than the mark that ends a turn
    assert first_llama.eos_token == "<|end_of_text|>" and names(Chat(first_llama)) == {"<|end_of_text|>", "<|eot_id|>"}
    gemma = Chat(real("gemma3"), ends=[1, 106])
    assert names(gemma) == {"<eos>", "<end_of_turn>"}
    qwen_base = real("qwen3")
    qwen_base.eos_token = "<|endoftext|>"
    assert names(Chat(qwen_base)) == {"<|endoftext|>", "<|im_end|>"}
    assert names(hard["phi"]) == {"<|im_end|>", "<|end|>"} and names(hard["glm"]) == {"<|im_end|>", "<|user|>"}
    plain = Chat(real("llama2"))
    assert plain.stops == (chat_template.STOP,) and names(plain) == {"</s>"}
    spelled = Chat(real("llama2"), chat_template.CHATML)  # whose marks are no tokens of this base
    assert spelled.stops == ("<|im_end|>",)
    rows, report = encoded(spelled, "multi.jsonl")
    assert report.learned == 36 and all(row.ended for row in rows)
    assert learned(rows[:1], spelled.tokenizer)[0].endswith("First answer 1.<|im_end|>")


def test_a_template_is_chosen_by_name_by_file_or_by_default(tmp_path: Path) -> None:
    several = {"default": "one", "tool_use": "two", "rag": "three"}
    assert chat_template.choose(several) == "one" and chat_template.choose(several, "rag") == "three"
    assert (
        chat_template.choose(several, with_tools=True) == "two"
        and chat_template.choose("own", with_tools=True) == "own"
    )
    assert chat_template.choose(None) == chat_template.choose("own", "plain") == chat_template.PLAIN
    assert chat_template.choose("own", "chatml") == chat_template.CHATML
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}")
    assert chat_template.choose("own", str(file)) == "{{ messages[0].content }}"
    with pytest.raises(UserError, match="set chat_template to one of a, b"):
        chat_template.choose({"a": "1", "b": "2"})
    with pytest.raises(UserError, match="none of default, tool_use, rag, plain, chatml, and cannot be read as a file"):
        chat_template.choose(several, "nothing")
    file.write_text(" ")
    with pytest.raises(UserError, match="is empty"):
        chat_template.choose(None, str(file))


def test_reasoning_is_told_apart_from_the_answer() -> None:
    assert reasoning.split("<think>\nWhy.\n</think>\n\nYes.") == ("Why.", "Yes.")
    assert reasoning.split("Why.\n</think>\n\nYes.") == ("Why.", "Yes.")  # the prompt had opened it
    assert reasoning.split("[THINK]Why.[/THINK]Yes.") == ("Why.", "Yes.")
    code = "```\nprint('</think>')\n```\n", "```\n</think>\n```"
    for text in ("Yes.", "It is <think>a<b</think> said.", "Half <think> open", "Use </think> to close.", *code):
        assert reasoning.split(text) == ("", text)
    assert reasoning.split("Why.</think>Yes.", opened=True) == ("Why.", "Yes.")
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "<think>a</think>b"}]
    plain = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "b"}]
    assert reasoning.share_with_reasoning([turns, plain]) == 0.5 and reasoning.share_with_reasoning([]) == 0


def test_special_tokens_in_reasoning_and_tools_are_text() -> None:
    tokenizer = real("qwen3")
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "It said <|im_end|> here."},
    ]
    tool = [{"type": "function", "function": {"name": "f", "description": "Ends <|im_end|>", "parameters": {}}}]
    rows, _ = tokenization.encode_all(
        [{"row": 1, "messages": turns, "tools": tool}], Chat(tokenizer, thinking=True), 2048
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert rows[0].spelled and rows[0].input_ids.count(end) == 3  # system, user, answer
    assert json.dumps("It said <|im_end|> here.")[1:-1] in tokenizer.decode(rows[0].input_ids)


def test_a_template_file_that_is_not_there_is_told_before_a_run_is_made(llama: Path, store: RunStore) -> None:
    with pytest.raises(UserError, match=r"'mine\.jinja' .* cannot be read as a file \(No such file or directory\)"):
        store.create(make({"base_model": str(llama), "chat_template": "mine.jinja"}))
    assert store.all() == []


def test_facts_count_conversations_and_not_the_rows_that_they_became() -> None:
    chat = Chat(real("qwen3"), thinking=True)
    answer = {"role": "assistant", "content": "A", "reasoning_content": "hm " * 600}
    messages = [{"role": "user", "content": "Q <|im_end|>"}, answer] * 3
    kept, report = tokenization.encode_all([{"row": 1, "messages": messages}], chat, 512)
    found = row_stats.compute(kept, report, chat, "messages")
    assert len(kept) == 3
    assert [found[name] for name in ("rows", "truncated", "truncated_answers", "spelled", "eos_supervised")] == [
        1,
        1,
        1,
        1,
        0,
    ]
