"""Conversations as people have them, under templates that are particular about them: nothing is asked for otherwise than
it was learned, nothing is learned in another place, and nothing vanishes without a count.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qlora_gui import config as configs
from qlora_gui import diagnostics
from qlora_gui.data import chat_template, row_stats, tokenization
from qlora_gui.data.chat import Chat
from qlora_gui.data.prompts import prompts_of
from qlora_gui.errors import UserError
from qlora_gui.models import chats
from qlora_gui.models.base import load_tokenizer
from qlora_gui.runs.training_rows import rows_of
from qlora_gui.training import preview, run
from qlora_gui.training.resume import Before
from tests.conversations import HARD, R1, TOOLS, learned, real
from tests.factories import DEMO
from tests.factories import facts as known_facts

Turns = list[dict[str, Any]]

# Traits: a system turn stands first or nowhere.
SYSTEM_FIRST = (
    "{% for m in messages %}{% if m['role'] == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Traits: arguments of calls have to be text, results are written as JSON, and only the first call of a turn is shown.
CALLS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'tool' %}{{ m['content'] | tojson }}"
    "{% elif m.tool_calls %}{{ m.tool_calls[0].function.name + ' ' + m.tool_calls[0].function.arguments }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def turns(*said: str) -> Turns:
    """`u: words`, `a: words`, `s: words`, `t: words` as turns."""
    roles = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return [{"role": roles[one[0]], "content": one[3:]} for one in said]


def call(city: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}


def encoded(
    chat: Chat, messages: Turns, system: str = "", **more: Any
) -> tuple[list[tokenization.Encoded], tokenization.Report]:
    return tokenization.encode_all([{"row": 1, "messages": messages, **more}], chat, 4096, system)  # type: ignore[list-item]


def check(chat: Chat, messages: Turns) -> None:
    """Every answer stands after the very tokens of its prompt, in the place that it has in the data."""
    found = chat.answers(messages)
    assert found.learnable and not found.lost
    rows, _ = encoded(chat, messages)
    for answer in found.learnable:
        turn = messages[answer.turn]
        assert turn["role"] == "assistant" and turn["content"] in answer.learned.text
        asked = chat.prompt(messages[: answer.turn]).ids(chat.tokenizer)
        assert any(
            row.input_ids[: len(asked)] == asked and row.labels[len(asked)] != tokenization.IGNORED for row in rows
        )
        for earlier in messages[: answer.turn]:
            assert earlier["content"] in chat.tokenizer.decode(asked)
    assert messages[rows[-1].turn]["content"] in learned(rows, chat.tokenizer)[-1]


@pytest.fixture(scope="module")
def system_first(llama: Path) -> Chat:
    return Chat(load_tokenizer(llama), SYSTEM_FIRST)


@pytest.fixture(scope="module")
def gemma() -> Chat:
    return Chat(real("gemma3"))


@pytest.mark.parametrize(
    "messages",
    [
        turns("s: Be brief.", "u: One?", "a: First."),
        turns("s: Be brief.", "u: One?", "a: First.", "s: Be long.", "u: Two?", "a: Second."),
        turns("u: One?", "a: First.", "s: Be long.", "u: Two?", "a: Second.", "u: Three?", "a: Third."),
        turns("s: Be brief.", "u: One?", "s: In verse.", "a: First.", "u: Two?", "a: Second."),
        turns("s: Be brief.", "s: Be kind.", "u: One?", "a: First."),
        turns("s: Be brief.", "a: First."),
        turns("u: One?", "a: First.", "a: And more.", "u: Two?", "a: Second."),
        turns("s: Be brief.", "u: One?", "u: Or two?", "a: First.", "u: Two?", "a: Second."),
        turns("a: Hello there.", "u: One?", "a: First.", "u: Two?", "a: Second."),
    ],
)
@pytest.mark.parametrize("family", ["gemma3", "gemma2", "system_first"])
def test_changed_conversations_are_asked_for_as_they_were_learned(
    family: str,
    messages: Turns,
    hard: dict[str, Chat],
    system_first: Chat,
    gemma: Chat,
) -> None:
    check({"gemma3": gemma, "system_first": system_first}.get(family) or hard[family], messages)


def test_the_place_of_an_answer_counts_no_system_prompt_that_was_put_before_it(hard: dict[str, Chat]) -> None:
    for chat in (hard["gemma2"], hard["harmony"]):
        rows, _ = encoded(chat, turns("u: One?", "a: First.", "u: Two?", "a: Second."), "Be brief.")
        assert rows[-1].turn == 3


def test_a_later_system_turn_leaves_the_first_one_where_it_is_asked_for(system_first: Chat) -> None:
    messages = turns("s: Be brief.", "u: One?", "a: First.", "s: Be long.", "u: Two?", "a: Second.")
    rows, report = encoded(system_first, messages)
    text = system_first.tokenizer.decode(rows[-1].input_ids)
    assert "<|im_start|>system\nBe brief.<|im_end|>" in text and "user\nBe long.\n\nTwo?" in text
    assert {name for name, count in report.notes.items() if count} == {"system_moved"} and report.learned == 2


def test_neighbours_at_the_end_of_a_conversation_are_joined_too(
    hard: dict[str, Chat],
    gemma: Chat,
) -> None:
    for chat in (gemma, hard["gemma2"]):
        rows, report = encoded(chat, turns("u: One?", "a: First.", "a: And more."))
        assert learned(rows, chat.tokenizer) == ["First.\n\nAnd more.<end_of_turn>"]
        assert (report.learned, report.notes["roles_joined"], report.lost) == (2, 1, [])


def test_the_marks_that_templates_are_asked_with_may_be_what_people_say(hard: dict[str, Chat]) -> None:
    said = turns("u: QxQuestionQx or QxAnswerQx?", "a: QxAnswerQx", "u: QxNextQx?", "a: QxAnswerQxQxAnswerQx")
    for name in HARD:
        rows, report = encoded(hard[name], said)
        found = learned(rows, hard[name].tokenizer)
        assert report.learned == 2 and len(found) == 2
        assert not any("QxQuestionQx" in text or "QxNextQx" in text for text in found), name


def test_calls_and_results_that_a_template_writes_in_its_own_way(llama: Path) -> None:
    chat = Chat(load_tokenizer(llama), CALLS)
    question, answer = turns("u: Weather?", "a: 12 degrees.")
    calls = {"role": "assistant", "content": "", "tool_calls": [call("Rome")]}
    result = {"role": "tool", "content": '{"degrees": 12,\n "sky": "clear"}'}
    rows, report = encoded(chat, [question, calls, result, answer], tools=TOOLS)
    assert report.learned == 2 and not report.dropped  # a result as JSON is shown
    rows, report = encoded(chat, [question, calls], tools=TOOLS)  # the only call is the last turn
    assert learned(rows, chat.tokenizer) == ['weather {"city": "Rome"}<|im_end|>'] and report.notes["arguments_as_text"]
    two = {**calls, "tool_calls": [call("Rome"), call("Oslo")]}
    rows, report = encoded(chat, [question, two, result, answer], tools=TOOLS)
    assert [reason for _, reason in report.lost] == ["the chat template does not show its call of the tool 'weather'"]
    assert learned(rows, chat.tokenizer) == ["12 degrees.<|im_end|>"]


def test_text_that_a_template_leaves_out_is_counted(hard: dict[str, Chat]) -> None:
    said = turns("u: One?", "a: It is <think>not</think> so.")
    rows, report = encoded(Chat(hard["r1"].tokenizer, R1, thinking=None), said)
    assert "not" not in learned(rows, hard["r1"].tokenizer)[0] and report.notes["text_dropped"] == 1
    rows, report = encoded(hard["phi"], said)
    assert "<think>not</think>" in learned(rows, hard["phi"].tokenizer)[0] and not report.notes["text_dropped"]


def test_after_one_thought_another_one_is_text() -> None:
    said = turns("u: One?", "a: <think>\nFirst thought.\n</think>\n\nHm. <think>Second.</think> Yes.")
    chat = Chat(real("qwen3"), thinking=True)
    rows, report = encoded(chat, said)
    (text,) = learned(rows, chat.tokenizer)
    assert "First thought." in text and "Hm. <think>Second.</think> Yes." in text
    assert not report.notes["text_dropped"]


def test_a_base_with_several_templates_and_no_default_can_be_compared(llama: Path, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(llama, base)
    (base / "chat_template.jinja").unlink()
    settings = json.loads((base / "tokenizer_config.json").read_text())
    several = [{"name": "rag", "template": "{{ 1 }}"}, {"name": "chat", "template": SYSTEM_FIRST}]
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": several}))
    with pytest.raises(UserError, match="set chat_template to one of rag, chat"):
        load_tokenizer(base)
    load_tokenizer(base, "chat").save_pretrained(adapter)
    assert load_tokenizer(base, or_first=True).chat_template == "{{ 1 }}"  # the base's column
    assert chats.template_beside(adapter) == SYSTEM_FIRST  # the adapter's own


def test_an_answer_that_is_joined_with_one_that_is_not_to_be_learned_is_learned_or_lost_with_the_reason(
    hard: dict[str, Chat],
) -> None:
    chat = hard["gemma2"]
    draft = {"role": "assistant", "content": "A draft.", "learn": False}
    final = {"role": "assistant", "content": "The answer."}
    rows, report = encoded(chat, [*turns("u: Q"), draft, final, *turns("u: R", "a: More.")])
    assert learned(rows, chat.tokenizer) == ["The answer.<end_of_turn>", "More.<end_of_turn>"]
    assert (report.present, report.learned, report.context_only, report.lost) == (3, 2, 1, [])
    assert "A draft.\n\nThe answer." in chat.tokenizer.decode(rows[0].input_ids) and rows[0].ended
    thought_of = {**final, "reasoning_content": "Why."}
    for neighbours in ([final, draft], [draft, final, draft], [draft, thought_of]):
        rows, report = encoded(chat, [*turns("u: Q"), *neighbours])
        assert not rows and (report.learned, report.turns()["lost"]) == (0, 1)
        assert report.context_only == len(neighbours) - 1
        assert report.lost == report.dropped and "neighbouring answer that is not to be learned" in report.lost[0][1]
    rows, report = encoded(chat, [*turns("u: Q"), draft, draft])
    assert not rows and (report.context_only, report.lost) == (2, [])


def test_the_answers_of_a_conversation_that_a_template_refuses_are_lost_with_the_reason() -> None:
    refused = Chat(real("gemma3"), "{{ raise_exception('not this') }}")
    rows, report = encoded(refused, [*turns("u: Q", "a: One.", "u: R", "a: Two."), *turns("u: S", "a: Three.")])
    told = row_stats.compute(rows, report, refused, "messages")
    assert told["turns"]["lost"] == 3 and told["turns"]["learned"] == 0 and report.notes == {}
    assert told["lost"][0] == {"row": 1, "reason": "the chat template refuses it: not this"}


@pytest.mark.slow
def test_tools_are_not_shown_where_only_the_conversation_names_them() -> None:
    search = [{"type": "function", "function": {"name": "search", "description": "Finds.", "parameters": {}}}]
    for family, shown in (("gemma3", False), ("qwen3", True)):
        for question in ("u: Please search for cats", "u: Cats?"):
            _, report = encoded(Chat(real(family)), turns(question, "a: Here."), tools=search)
            assert report.notes["tools_not_shown"] == (0 if shown else 1)


def test_an_empty_thought_in_the_text_of_an_answer_is_neither_learned_nor_missed() -> None:
    for thinking in (True, False, None):
        chat = Chat(real("qwen3"), thinking=thinking)
        for before in ("<think>\n\n</think>\n\n", "<think></think>", "\n</think>\n\n"):
            rows, report = encoded(chat, turns("u: Q", f"a: {before}Yes."))
            assert learned(rows, chat.tokenizer) == ["Yes.<|im_end|>"]
            assert not report.notes and report.learned == 1
    beside = {"role": "assistant", "content": "<think>\n\n</think>\n\nYes.", "reasoning_content": "Why."}
    chat = Chat(real("qwen3"), thinking=True)
    rows, report = encoded(chat, [*turns("u: Q"), beside])
    assert learned(rows, chat.tokenizer) == ["<think>\nWhy.\n</think>\n\nYes.<|im_end|>"] and not report.notes


def test_nothing_is_learned_after_what_ends_a_call_in_its_own_way(llama: Path) -> None:
    """As Command R7B's template does, which ends calls otherwise than answers and then asks for the next turn."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m.tool_calls %}"
        "{{ '[' + m.tool_calls[0].function.name + ']<|im_end|><|im_start|>assistant\nThinking:' }}"
        "{% elif m['role'] == 'assistant' %}{{ m['content'] + '[/RESPONSE]<|im_end|>' }}"
        "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    chat = Chat(load_tokenizer(llama), template)
    assert chat.probe.end == "[/RESPONSE]<|im_end|>"
    asked = [*turns("u: Weather?"), {"role": "assistant", "content": "", "tool_calls": [call("Rome")]}]
    rows, _ = encoded(chat, [*asked, *turns("t: 12 C", "a: It is 12 C.")])
    assert learned(rows, chat.tokenizer) == ["[weather]<|im_end|>", "It is 12 C.[/RESPONSE]<|im_end|>"]


def test_conversations_of_several_rows_are_counted_once() -> None:
    """Qwen3 rewrites earlier answers, so that each of them is a row of its own."""
    tokenizer = real("qwen3")

    def told(long: int, whole: int, endless: bool = False) -> dict[str, Any]:
        chat = Chat(tokenizer, thinking=True)
        if endless:
            chat.ends, chat.stops = frozenset(), ()
        examples: list[Any] = [
            {
                "row": number + 1,
                "messages": [
                    turn
                    for n in range(3)
                    for turn in (
                        {"role": "user", "content": f"Question {n} <|im_end|>"},
                        {
                            "role": "assistant",
                            "content": f"Answer {n}",
                            "reasoning_content": "hm " * (600 if number < long else 2),
                        },
                    )
                ],
            }
            for number in range(long + whole)
        ]
        kept, report = tokenization.encode_all(examples, chat, DEMO.max_length)
        assert len(kept) == 3 * (long + whole)
        return row_stats.compute(kept, report, chat, "messages")

    found = told(4, 6)
    assert (found["rows"], found["truncated"], found["truncated_answers"], found["spelled"]) == (10, 4, 4, 10)
    assert found["eos_supervised"] == pytest.approx(0.6) and found["turns"]["unended"] == 12
    heard = {finding.check: finding.evidence for finding in diagnostics.before(DEMO, facts=known_facts() | found)}
    assert heard["truncated_answers"].startswith("4 of 10 rows (40.0%) are cut at 256 tokens")
    assert heard["spelled_tokens"].startswith("10 of 10 rows spell out") and "eos_not_supervised" not in heard
    assert "30 of 30 answers are learned, 12 of them without the end, which is beyond max_length" in (
        row_stats.sentences(found)
    )
    heard = {
        finding.check: finding.evidence
        for finding in diagnostics.before(DEMO, facts=known_facts() | told(4, 6, endless=True))
    }
    assert heard["eos_not_supervised"].startswith("In 6 of 10 rows")  # of kinds that are not mixed up
    assert "1 conversation became several rows" in " ".join(row_stats.sentences(told(0, 1)))


def test_a_template_that_refuses_everything_is_told_once(llama: Path) -> None:
    chat = Chat(load_tokenizer(llama), "{{ raise_exception('not this') }}")
    examples: list[Any] = [{"row": 1, "messages": [{"role": r, "content": "Hi"} for r in ("user", "assistant")]}]
    kept, report = tokenization.encode_all(examples, chat, 512)
    found = row_stats.compute(kept, report, chat, "messages")
    said = row_stats.sentences(found)
    assert said[0] == "The chat template refuses even a question and an answer (not this)"
    assert said[1] == "0 of 1 answer is learned (1 not learnable)" and not any("end mark" in one for one in said)
    heard = {finding.check: finding.evidence for finding in diagnostics.before(DEMO, facts=known_facts() | found)}
    assert "no_end_mark" not in heard and heard["answers_not_learned"].endswith("refuses it: not this.")


def test_thinking_that_only_the_first_rows_settled_says_so(llama: Path, tmp_path: Path) -> None:
    def told(**knobs: Any) -> str:
        config = configs.make({"base_model": str(base), "dataset": str(file)} | knobs)
        return " ".join(row_stats.sentences(preview.preview(config)["facts"]))

    base, file = tmp_path / "base", tmp_path / "rows.jsonl"
    shutil.copytree(llama, base)
    tokenizer = load_tokenizer(base)
    asks = "{{ '<|im_start|>assistant\n' }}"
    assert asks in chat_template.CHATML
    tokenizer.chat_template = chat_template.CHATML.replace(asks, asks + "{{ 'Think!' if enable_thinking else '' }}")
    tokenizer.save_pretrained(base)
    thought = {"messages": turns("u: Q", "a: <think>Why.</think>Yes.")}
    plain = {"messages": turns("u: Q", "a: Yes.")}
    rows = [thought] * preview.COUNTED + [plain] * (preview.COUNTED + 2)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "Thinking is on, going by the first 2,000 rows; a run goes by all it trains on" in told()
    assert told(thinking="off").endswith("Thinking is off")
    file.write_text(json.dumps(thought) + "\n")
    assert told().endswith("Thinking is on")


class Heard:
    """Takes events as a run's log does."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def append(self, kind: str, **values: Any) -> dict[str, Any]:
        self.events.append({"kind": kind} | values)
        return self.events[-1]


def test_dropped_rows_of_held_out_data_are_told_apart_from_those_of_the_training_file(
    llama: Path, tmp_path: Path
) -> None:
    unlearned = {"messages": [*turns("u: Q"), {"role": "assistant", "content": "A", "weight": 0}]}
    good = [{"messages": turns(f"u: Question {n}", "a: Yes.")} for n in range(4)]
    for name, rows in (("train", good), ("validation", [unlearned, {"messages": turns("u: Other", "a: No.")}])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = configs.make({"base_model": str(llama), "dataset": str(tmp_path)})
    log, chat = Heard(), Chat(load_tokenizer(llama))
    examples, measured, _ = run._data(config, chat, rows_of(config), log, Before(None, log, False, False))  # type: ignore[arg-type]
    [told] = log.events
    assert (len(examples), len(measured), told["dropped"]) == (4, 1, 1)
    reason = "none of its answers is to be learned (held out, not trained on)"
    assert told["dropped_rows"] == [{"row": 1, "reason": reason}]

    refuses = Chat(load_tokenizer(llama), "{{ raise_exception('not this') }}")
    with pytest.raises(UserError, match=r"even a question and an answer \(not this\): choose another chat_template"):
        run._data(config, refuses, rows_of(config), log, Before(None, log, False, False))  # type: ignore[arg-type]


def test_reasoning_that_stands_in_the_content_too_is_learned_once_or_not_at_all() -> None:
    said = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello", "reasoning_content": "hm"}
    for thought in ("hm", "hm\n", "Something else."):
        answer = {**said, "reasoning_content": thought}
        off, on = (
            Chat(real("qwen3"), thinking=thinking).answers([*turns("u: Hi"), answer]) for thinking in (False, None)
        )
        assert [one.learned.text for one in off.learnable] == ["Hello<|im_end|>"] and off.notes == {"reasoning_off": 1}
        [one] = on.learnable
        assert one.learned.text.count("<think>") == (2 if thought == "Something else." else 1)


def test_neighbouring_answers_are_asked_for_as_one(gemma: Chat) -> None:
    """What is learned can be asked for, by probes say; the template refuses a question that ends with an answer."""
    for said in (["u: a", "a: b", "a: c"], ["s: z", "u: a", "a: b", "u: d", "a: e", "a: f"]):
        [prompt] = prompts_of([{"messages": turns(*said)}], 2, "")
        assert prompt.turns[-1]["role"] != "assistant"
        [*_, newest] = gemma.answers(turns(*said)).learnable
        assert newest.context.text == gemma.prompt(prompt.turns).text


@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("said", ["Use the </think> tag.", "```\n</think>\n```", "First. <think>hm</think> Then."])
def test_an_answer_that_speaks_of_thoughts_is_learned_whole(thinking: bool | None, said: str) -> None:
    chat = Chat(real("qwen3"), thinking=thinking)
    for more in ([], turns("u: And?", "a: No.")):
        messages = [*turns("u: Hi"), {"role": "assistant", "content": said}, *more]
        found = chat.answers(messages)
        assert found.learnable[0].learned.text == said + "<|im_end|>" and not found.lost
        assert found.notes == {"marks_kept": 1}
        assert said in found.learnable[-1].whole.text
    assert said in chat.prompt(messages[:3]).text


@pytest.mark.parametrize("thinking", [None, False])
@pytest.mark.parametrize("said", ["<think>\n\n</think>\n\n", "<think>hm</think>"])
def test_an_answer_of_nothing_but_reasoning_is_lost_with_the_reason(thinking: bool | None, said: str) -> None:
    found = Chat(real("qwen3"), thinking=thinking).answers([*turns("u: Hi"), {"role": "assistant", "content": said}])
    assert not found.learnable and found.lost == [(1, "nothing is left of it but its reasoning")]
