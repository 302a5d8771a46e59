"""Rows of any format -> turns: roles, tools, reasoning, weights, blocks; and what is not used is named."""

import datetime
import json
from typing import Any

import pytest

from qlora_gui.data import formats
from qlora_gui.data.formats import RowError, changes_meaning, example

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
CALL = {"type": "function", "function": {"name": "find", "arguments": {"id": 7}}}
TOOL = {"name": "find", "description": "Finds.", "parameters": {"type": "object", "properties": {}}}
WRAPPED = {"type": "function", "function": TOOL}


def read(row: dict[str, Any], format: str = "messages") -> list[dict[str, Any]]:
    """The turns of a row all of which is used."""
    found, unused = example(row, format)
    assert not unused
    return list(found["messages"])


def chat(*turns: dict[str, Any], **columns: Any) -> dict[str, Any]:
    return {"messages": list(turns)} | columns


@pytest.mark.parametrize(
    ("role", "read_as"),
    [
        ("developer", "system"),
        ("human", "user"),
        ("GPT", "assistant"),
        ("model", "assistant"),
        ("tool", "tool"),
        ("function", "tool"),
        ("observation", "tool"),
        ("tool_response", "tool"),
        ("ipython", "tool"),
    ],
)
def test_roles_of_all_houses(role: str, read_as: str) -> None:
    assert read(chat({"role": role, "content": "x"}, USER, ANSWER))[0]["role"] == read_as


def test_an_unknown_role_is_a_fault_that_names_it() -> None:
    with pytest.raises(RowError, match=r"'messages' entry 2: 'role' is 'critic': use system, user or assistant"):
        example(chat(USER, {"role": "critic", "content": "x"}, ANSWER), "messages")


@pytest.mark.parametrize(
    "calls",
    [
        [{"id": "", "type": "function", "function": {"name": "find", "arguments": '{"id": 7}'}}],
        [{"function": {"name": "find", "arguments": {"id": 7}}}],
        [{"name": "find", "parameters": {"id": 7}}],
        json.dumps([{"name": "find", "arguments": {"id": 7}}]),
        {"name": "find", "arguments": '{"id": 7}'},
    ],
)
def test_tool_calls_however_they_are_written(calls: Any) -> None:
    for turn in (
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "assistant", "tool_calls": calls},
    ):
        assert read(chat(USER, turn))[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}


def test_a_turn_that_is_a_call() -> None:
    called = {"name": "find", "arguments": {"id": 7}}
    for role, value in (("function_call", called), ("tool_call", [called]), ("function_call", {"name": "find"})):
        row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": role, "value": json.dumps(value)}]}
        [call] = read(row, "sharegpt")[1]["tool_calls"]
        assert call == (
            CALL if value != {"name": "find"} else {"type": "function", "function": {"name": "find", "arguments": {}}}
        )
    two = {"role": "assistant", "content": "", "function_call": {"name": "find", "arguments": '{"id": 7}'}}
    assert read(chat(USER, two))[1]["tool_calls"] == [CALL]


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"role": "assistant", "tool_calls": [{"function": {"name": "find", "arguments": "[1]"}}]}, "arguments of the call of 'find'"),
        ({"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}, "has no name"),
        ({"role": "assistant", "tool_calls": 5}, "'tool_calls' is a number, not a list"),
        ({"role": "function_call", "content": "find it"}, "the function_call is not JSON"),
        ({"role": "assistant", "content": None}, "'content' is null"),
        ({"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "a block of type 'image_url'"),
        ({"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "input_audio"}]}, "a block of type 'input_audio'"),
        ({"role": "assistant", "content": [{"type": "text", "text": ""}]}, "'content' is empty"),
    ],
)  # fmt: skip
def test_a_faulty_turn_is_named(turn: dict[str, Any], said: str) -> None:
    with pytest.raises(RowError, match=said) as error:
        example(chat(USER, turn, ANSWER), "messages")
    assert "'messages' entry 2: " in str(error.value)


@pytest.mark.parametrize(
    "tools", [[TOOL], [WRAPPED], json.dumps([TOOL]), json.dumps(WRAPPED), [json.dumps(TOOL)], str([TOOL])]
)
def test_tools_however_they_are_written(tools: Any) -> None:
    rows = {
        "messages": chat(USER, ANSWER),
        "sharegpt": {"conversations": [USER, ANSWER]},
        "alpaca": {"instruction": "Hi", "output": "Hello"},
        "prompt-completion": {"prompt": "Hi", "completion": "Hello"},
    }
    for format, row in rows.items():
        for column in ("tools", "functions"):
            assert example(row | {column: tools}, format) == ({"messages": [USER, ANSWER], "tools": [WRAPPED]}, set())
            assert example(row | {column: "[]"}, format) == ({"messages": [USER, ANSWER]}, set())


@pytest.mark.parametrize("tools", ["search", [{"description": "?"}], [["x"]], 5])
def test_tools_that_are_none_are_a_fault(tools: Any) -> None:
    with pytest.raises(RowError, match="'tools'"):
        example(chat(USER, ANSWER, tools=tools), "messages")


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_by_its_names_and_as_a_block(name: str) -> None:
    expected = {**ANSWER, "reasoning_content": "Politely."}
    assert read(chat(USER, {**ANSWER, name: "Politely."}))[1] == expected
    block = {"type": "thinking", "thinking": [{"type": "text", "text": "Politely."}]}
    assert read(chat(USER, {"role": "assistant", "content": [block, {"type": "text", "text": "Hello"}]}))[1] == expected
    assert example(chat({**USER, name: "Why?"}, ANSWER), "messages")[1] == {f"messages.{name}"}


def test_blocks_of_text_are_their_text() -> None:
    blocks = [{"type": "text", "text": "He"}, "l", {"type": "output_text", "text": "lo", "image_url": None}]
    assert read(chat(USER, {"role": "assistant", "content": blocks})) == [USER, ANSWER]


@pytest.mark.parametrize(
    ("field", "learned"),
    [
        ({"weight": 0}, False),
        ({"weight": 0.0}, False),
        ({"weight": "0"}, False),
        ({"weight": 1}, True),
        ({"train": False}, False),
        ({"training": False}, False),
        ({"loss": False}, False),
        ({"masked": True}, False),
        ({"masked": False}, True),
        ({"train": True, "weight": 0}, False),
        ({"train": None}, True),
    ],
)
def test_turns_that_are_learned_or_not(field: dict[str, Any], learned: bool) -> None:
    expected = ANSWER if learned else {**ANSWER, "learn": False}
    assert read(chat(USER, {**ANSWER, **field}, USER, ANSWER)) == [USER, expected, USER, ANSWER]
    if field.keys() <= {"weight", "train"} and len(field) == 1:  # of a row it is all its answers
        assert read(chat(USER, ANSWER, USER, ANSWER, **field)) == [USER, expected, USER, expected]
        assert read({"prompt": "Hi", "completion": "Hello", **field}, "prompt-completion") == [USER, expected]


def test_a_weight_that_cannot_be_honoured_is_named() -> None:
    found, unused = example(chat({**USER, "weight": 1}, {**ANSWER, "weight": 0.5}, weight=2), "messages")
    assert found["messages"] == [USER, ANSWER]
    assert unused == {"messages.weight other than 0 and 1", "weight other than 0 and 1"}
    assert all(map(changes_meaning, unused))


def test_answers_in_a_prompt_are_context() -> None:
    row = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}
    assert read(row, "prompt-completion") == [USER, {**ANSWER, "learn": False}, USER, ANSWER]


@pytest.mark.parametrize("history", [[["a", "b"]], '[["a", "b"]]', "[('a', 'b')]"])
def test_history_stands_before_the_question(history: Any) -> None:
    row = {"instruction": "Hi", "output": "Hello", "history": history, "system": "Be kind."}
    assert [turn["content"] for turn in read(row, "alpaca")] == ["Be kind.", "a", "b", "Hi", "Hello"]
    for wrong in (["a"], [1, "b"], "ab"):
        with pytest.raises(RowError, match="'history' entry 1 is not a pair"):
            example(row | {"history": [wrong]}, "alpaca")


@pytest.mark.parametrize("nothing", ["", " ", None])
def test_history_may_begin_with_the_assistant_and_holds_no_empty_turn(nothing: str | None) -> None:
    row = {"instruction": "Hi", "output": "Hello", "history": [[nothing, nothing], [nothing, "Ask me."], ["a", "b"]]}
    assert [(turn["role"], turn["content"]) for turn in read(row, "alpaca")] == [
        ("assistant", "Ask me."),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "Hi"),
        ("assistant", "Hello"),
    ]
    with pytest.raises(RowError, match="'history' entry 1 has an empty answer"):
        example(row | {"history": [["a", nothing]]}, "alpaca")


def test_functions_beside_tools_are_told_and_alone_are_tools() -> None:
    listed = [{"name": "look", "parameters": {}}]
    row = {"messages": [USER, ANSWER], "functions": listed}
    assert example(row, "messages")[0]["tools"][0]["function"]["name"] == "look"
    found, unused = example(row | {"tools": [{"name": "find", "parameters": {}}]}, "messages")
    assert [tool["function"]["name"] for tool in found["tools"]] == ["find"] and unused == {"functions"}


def test_conversations_in_a_cell_and_with_the_other_names() -> None:
    for column in ("messages", "conversations"):
        format = formats.recognize([column])
        for turns in ([USER, ANSWER], [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]):
            for cell in (turns, json.dumps(turns), str(turns)):
                assert read({column: cell}, str(format)) == [USER, ANSWER]


def test_a_system_column_leads_conversations_that_have_no_system_turn() -> None:
    said = {"role": "system", "content": "Be kind."}
    assert read(chat(USER, ANSWER, system="Be kind.")) == [said, USER, ANSWER]
    assert read(chat({"role": "system", "content": ""}, USER, ANSWER, system="Be kind.")) == [said, USER, ANSWER]
    assert example(chat(said, USER, ANSWER, system="Be rude."), "messages") == (
        {"messages": [said, USER, ANSWER]},
        {"system"},
    )


def test_what_is_not_used_is_named_and_what_changes_the_meaning_told_apart() -> None:
    row = chat(
        {**USER, "images": ["a.png"], "id": 7}, {**ANSWER, "sources": []}, images=["a.png"], rejected="No", topic="x", note=""
    )  # fmt: skip
    _, unused = example(row, "messages")
    assert unused == {"messages.images", "messages.id", "images", "rejected", "topic"}
    assert {name for name in unused if changes_meaning(name)} == {"messages.images", "images", "rejected"}
    assert example({"text": "Once.", "label": 1, "tools": "[]", "weight": 0}, "text")[1] == {"label", "tools", "weight"}


def test_no_block_of_content_vanishes() -> None:
    def said(role: str, content: object) -> str:
        messages = [
            {"role": "user", "content": "Q"},
            {"role": role, "content": content},
            {"role": "assistant", "content": "A"},
        ]
        return str(formats.example({"messages": messages}, "messages")[0]["messages"][1]["content"])

    assert said("tool", [{"temp": 3}]) == '[{"temp": 3}]' and said("tool", {"temp": 3}) == '{"temp": 3}'
    assert said("tool", [{"type": "text", "text": "3"}]) == "3"
    for block in ({"type": "text", "content": "long"}, {"temp": 3}):
        with pytest.raises(RowError, match="a block of text without its 'text'"):
            said("assistant", [block, {"type": "text", "text": "ok"}])


def test_prompt_and_completion_may_be_lists_of_messages_in_cells() -> None:
    """As CSV and Parquet hold what a data set has as lists; a text that only begins with a bracket is a text."""
    asked, said = '[{"role": "user", "content": "Hi"}]', '[{"role": "assistant", "content": "Hello"}]'
    pair = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    for prompt, completion in (
        (asked, said),
        ("Hi", said),
        (asked, "Hello"),
        ("Hi", [{"role": "assistant", "content": "Hello"}]),
    ):
        found, _ = example({"prompt": prompt, "completion": completion}, "prompt-completion")
        assert found["messages"] == pair
    roles = '[{"role": "CEO", "name": "Ann"}]', '[{"role": "user", "name": "Ann"}]'
    for text in ("[1, 2]", "[a] or [b]?", "[]", '[{"item": "apple", "quantity": 2}]', *roles):
        found, _ = example({"prompt": text, "completion": text}, "prompt-completion")
        assert [turn["content"] for turn in found["messages"]] == [text, text]
    talk = asked[:-1] + ", " + said[1:]
    found, _ = example({"prompt": "Write a chat", "completion": talk}, "prompt-completion")
    assert [turn["content"] for turn in found["messages"]] == ["Write a chat", talk]


def test_empty_pairs_of_a_history_did_not_happen_and_half_ones_are_faults() -> None:
    row = {"instruction": "And now?", "output": "Yes.", "history": [["", ""], ["Was it?", "No."]]}
    found, _ = example(row, "alpaca")
    assert [turn["content"] for turn in found["messages"]] == ["Was it?", "No.", "And now?", "Yes."]
    with pytest.raises(RowError, match="'history' entry 1 has an empty answer"):
        example(row | {"history": [["Was it?", ""]]}, "alpaca")


def test_what_stands_in_blocks_is_read_or_named() -> None:
    def row(content: Any, role: str = "assistant") -> dict[str, Any]:
        return {"messages": [USER, {"role": role, "content": content}, *([ANSWER] if role == "tool" else [])]}

    found, unused = example(row([{"type": "text", "text": "ok", "content": "the long answer"}]), "messages")
    assert found["messages"][1]["content"] == "ok" and unused == {"content.content"}
    found, _ = example(row([{"type": "thinking", "content": "hm"}, {"type": "text", "text": 42}]), "messages")
    assert found["messages"][1] == {"role": "assistant", "content": "42", "reasoning_content": "hm"}
    with pytest.raises(RowError, match="a block of type 'thinking' without its text"):
        example(row([{"type": "thinking"}, {"type": "text", "text": "ok"}]), "messages")
    found, _ = example(row([{"type": "sedan", "built": datetime.date(2026, 1, 2)}], "tool"), "messages")
    assert found["messages"][1]["content"] == '[{"type": "sedan", "built": "2026-01-02"}]'


def test_arguments_of_calls_by_their_other_names_and_what_else_a_call_holds() -> None:
    for name in ("arguments", "parameters", "args", "input"):
        call = {"name": "find", name: {"id": 7}}
        assert read(chat(USER, {"role": "assistant", "tool_calls": [call]}))[1]["tool_calls"] == [CALL]
    call = {
        "id": "1",
        "index": 0,
        "function": {"name": "find", "arguments": {"id": 7}, "input": "old"},
        "x": 1,
    }
    two = {"role": "assistant", "tool_calls": [call], "function_call": {"name": "look"}}
    _, unused = example(chat(USER, two), "messages")
    assert unused == {"messages.x of a call", "messages.input of a call", "messages.function_call"}
    assert all(formats.changes_meaning(name) for name in unused)
    cell = json.dumps([USER, {"role": "assistant", "tool_calls": [call]}]).replace("7", "1e999")
    found, _ = example({"messages": cell}, "messages")
    assert found["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"id": None}


def test_thoughts_of_questions_are_named_and_those_that_are_no_text_refused() -> None:
    asked = {"role": "user", "content": [{"type": "thinking", "thinking": "hm"}, {"text": "Hi", "type": None}]}
    found, unused = example(chat(asked, ANSWER), "messages")
    assert found["messages"][0] == USER and unused == {"messages.thinking"}
    for wrong in (5, {"a": 1}):
        blocks = [{"type": "thinking", "thinking": wrong}, {"type": "text", "text": "Hello"}]
        with pytest.raises(RowError, match="a block of type 'thinking' whose text is"):
            example(chat(USER, {"role": "assistant", "content": blocks}), "messages")


@pytest.mark.parametrize("result", [[1, 2], [{"text": "a", "likes": 5}, {"text": "b", "likes": 6}], [["a"]], [None]])
def test_lists_that_a_tool_gives_are_its_json(result: Any) -> None:
    row = chat(USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": result}, ANSWER)
    found, unused = example(row, "messages")
    assert json.loads(found["messages"][2]["content"]) == result and not unused


def test_a_picture_that_a_tool_gives_is_no_text() -> None:
    picture = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
    for content in ([picture], [{"title": "t"}, picture]):
        with pytest.raises(RowError, match=r"only text can be trained on|without its 'text'"):
            example(chat(USER, {"role": "tool", "content": content}, ANSWER), "messages")


@pytest.mark.parametrize("name", ["chatgpt", "bing", "bard", "AI"])
def test_assistants_by_their_product(name: str) -> None:
    assert read(
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": name, "value": "Hello"}]}, "sharegpt"
    ) == [
        USER,
        ANSWER,
    ]
