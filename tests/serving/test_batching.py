"""Requests on their way to one worker, which the page asks too; and what is told of a request that is not read whole."""

import threading
from pathlib import Path
from typing import Any

import pytest

from qlora_gui.inference import protocol
from qlora_gui.inference.client import CompareClient
from qlora_gui.inference.protocol import Completion, Event, Load
from qlora_gui.inference.sampling import Decoding
from qlora_gui.serving import requests
from qlora_gui.serving.batching import Batcher, Models, Waiting
from qlora_gui.serving.requests import ApiError
from qlora_gui.serving.responses import Response


def test_an_answer_that_the_page_stops_is_no_whole_one(bloom: Path) -> None:
    """Compare's Stop ends whatever the shared worker writes: an endpoint must not give that as an answer that ended by itself."""
    client, ended = CompareClient(), threading.Event()
    events: list[tuple[int, Event]] = []

    def emit(number: int, event: Event) -> None:
        events.append((number, event))
        if isinstance(event, protocol.Text):
            client.stop()
        if isinstance(event, protocol.Ended | protocol.Error):
            ended.set()

    try:
        models = Models(Load(str(bloom), ""), ["bloom"])
        decoding = Decoding(max_new_tokens=1500, temperature=3)
        Batcher(client).ask(Waiting(models, [Completion(0, [5, 6, 7], decoding)], emit))
        assert ended.wait(60)
    finally:
        client.close()
    number, last = next((place, event) for place, event in events if isinstance(event, protocol.Ended | protocol.Error))
    assert isinstance(last, protocol.Error) and number == -1 and not last.bug
    assert "stopped from the page" in last.message


def test_what_messages_hold_besides_is_named() -> None:
    turn = {"role": "assistant", "content": "x", "reasoning_content": "y", "audio": None}
    assert requests.passed_over({"model": "m", "messages": [turn], "odd": 1}) == ["odd", "messages.reasoning_content"]
    assert requests.passed_over({"model": "m", "prompt": "x", "messages": [5]}) == []
    assert requests.passed_over({"model": "m", "prompt": "x", "messages": 5}) == []


def test_a_refusal_in_a_conversation_is_read() -> None:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "No: "}, {"type": "refusal", "refusal": "I cannot."}]
    body = {"model": "m", "messages": [{"role": "assistant", "content": parts}]}
    (completion,) = requests.chat(body, ["m"]).completions
    assert completion.prompt == [{"role": "assistant", "content": "No: I cannot."}]
    with pytest.raises(ApiError, match="part without text"):
        requests.chat(body | {"messages": [{"role": "user", "content": [{"type": "refusal", "text": "x"}]}]}, ["m"])


def test_bytes_of_half_a_character_are_not_made_up() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 1}
    answer = Response(requests.chat(body, ["m"]), "")
    answer.take(0, protocol.Scored(0, [("\ufffd", -1.0, [("é", -0.5)])]))
    answer.take(0, protocol.Ended(0, 1, 0.0, 0.0, "eos"))
    (token,) = answer.whole()["choices"][0]["logprobs"]["content"]
    assert token["bytes"] is None and token["top_logprobs"][0]["bytes"] == [195, 169]
