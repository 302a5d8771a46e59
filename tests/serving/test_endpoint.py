"""The endpoint, asked by the real OpenAI client: the same answers as in Compare, in OpenAI's form, whole and streamed."""

import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import torch

from qlora_gui.inference.client import CompareClient, base_of
from qlora_gui.inference.protocol import collect
from qlora_gui.inference.sampling import Decoding
from qlora_gui.models import base as bases
from qlora_gui.runs.store import Run
from tests.serving.conftest import KEY, Served

PROMPTS = ["My kettle never came.", "hi", "Where is order A-17? I have waited for two weeks now!"]
MODELS = ["bloom-none", "bloom-all"]


def turns(prompt: str) -> Any:
    return [{"role": "user", "content": prompt}]


def greedy(client: openai.OpenAI, model: str, prompt: str, **more: Any) -> Any:
    return client.chat.completions.create(model=model, messages=turns(prompt), temperature=0, max_tokens=12, **more)


@pytest.fixture(scope="module")
def compared(bloom_runs: dict[str, Run]) -> dict[tuple[str, str], str]:
    """What Compare answers to each prompt, by column and prompt."""
    client = CompareClient()
    folders = [bloom_runs[name].path for name in ("none", "all")]
    try:
        names = [column["name"] for column in client.columns(adapters=folders, **base_of(folders))]
        found = {}
        for prompt in PROMPTS:
            decoding = Decoding(greedy=True, max_new_tokens=12)
            answers = collect(client.answer([turns(prompt)] * len(names), decoding), len(names))
            found |= {(name, prompt): answer.text for name, answer in zip(names, answers, strict=True)}
    finally:
        client.close()
    return found


def test_every_model_answers_as_in_compare(served: Served, compared: dict[tuple[str, str], str], bloom: Path) -> None:
    listed = [model.id for model in served.client.models.list()]
    assert listed == [str(bloom), *MODELS] and served.client.models.retrieve("bloom-all").owned_by == "qlora_gui"
    prints = set()
    for (name, prompt), text in compared.items():
        model = str(bloom) if name == "base" else name
        answer = greedy(served.client, model, prompt)
        assert answer.choices[0].message.content == text and answer.object == "chat.completion"
        assert answer.model == model and answer.choices[0].finish_reason in ("stop", "length")
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        prints.add(answer.system_fingerprint)
        streamed = [*greedy(served.client, model, prompt, stream=True, stream_options={"include_usage": True})]
        assert "".join(piece.choices[0].delta.content or "" for piece in streamed if piece.choices) == text
        assert streamed[0].choices[0].delta.role == "assistant" and streamed[-1].usage == answer.usage
        assert streamed[-2].choices[0].finish_reason == answer.choices[0].finish_reason
    assert len(prints) == 3, "base and adapters have fingerprints of their own"
    assert len({text for (_, prompt), text in compared.items() if prompt == PROMPTS[0]}) > 1


def test_requests_that_come_together_share_a_batch_and_change_nothing(
    served: Served, compared: dict[tuple[str, str], str]
) -> None:
    found: dict[tuple[str, str], str] = {}

    def ask(name: str, prompt: str) -> None:
        found[name, prompt] = greedy(served.client, name, prompt).choices[0].message.content

    threads = [threading.Thread(target=ask, args=key) for key in compared]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == compared


def test_seeds_choices_and_stop_texts(served: Served) -> None:
    def sampled(**more: Any) -> list[str]:
        asked = {"model": "bloom-none", "messages": turns(PROMPTS[2]), "max_tokens": 12, "temperature": 1.5} | more
        return [choice.message.content for choice in served.client.chat.completions.create(**asked).choices]

    three = sampled(n=3, seed=5)
    assert len(set(three)) > 1 and sampled(seed=5) == three[:1] and sampled(n=2, seed=6) == three[1:]
    assert len({*(sampled()[0] for _ in range(4))}) > 1, "without a seed every answer is drawn anew"
    whole = greedy(served.client, "base", PROMPTS[0]).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3]
    cut = greedy(served.client, "base", PROMPTS[0], stop=[stop]).choices[0]
    assert cut.message.content == whole[: whole.index(stop)] and cut.finish_reason == "stop"


def test_log_probabilities_are_those_of_the_model(served: Served, bloom: Path) -> None:
    answer = greedy(served.client, "base", PROMPTS[0], logprobs=True, top_logprobs=3).choices[0]
    scored = answer.logprobs.content
    assert "".join(token.token for token in scored) == answer.message.content
    model = bases.load_model(str(bloom), "nf4", True, torch.device("cpu"), torch.float32)
    tokenizer = bases.load_tokenizer(str(bloom), or_first=True)
    text = tokenizer.apply_chat_template(turns(PROMPTS[0]), tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    ids = prompt + tokenizer(answer.message.content, add_special_tokens=False).input_ids
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    for place, token in enumerate(scored, len(prompt) - 1):
        best = logs[place].topk(3)
        assert token.logprob == pytest.approx(float(best.values[0]), abs=2e-3)
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(best.values.tolist(), abs=2e-3)
        assert token.top_logprobs[0].token == token.token
    streamed = [*greedy(served.client, "base", PROMPTS[0], logprobs=True, top_logprobs=3, stream=True)]
    pieces = [token for piece in streamed if piece.choices[0].logprobs for token in piece.choices[0].logprobs.content]
    assert pieces == scored


def test_plain_completions_read_texts_and_tokens_and_score_the_prompt(served: Served, bloom: Path) -> None:
    tokenizer = bases.load_tokenizer(str(bloom), or_first=True)
    ask: dict[str, Any] = {"model": "base", "temperature": 0, "max_tokens": 6}
    texts = served.client.completions.create(prompt=PROMPTS[:2], **ask).choices
    tokens = served.client.completions.create(prompt=[tokenizer(text).input_ids for text in PROMPTS[:2]], **ask).choices
    assert [one.text for one in texts] == [one.text for one in tokens] and [one.index for one in texts] == [0, 1]
    echo = served.client.completions.create(
        prompt=PROMPTS[2], echo=True, logprobs=1, **ask | {"max_tokens": 1}
    ).choices[0]
    prompt = tokenizer(PROMPTS[2]).input_ids
    scored = echo.logprobs
    assert echo.text.startswith(PROMPTS[2]) and len(scored.tokens) == len(prompt) + 1
    assert scored.token_logprobs[0] is None and all(value <= 0 for value in scored.token_logprobs[1:])
    model = bases.load_model(str(bloom), "nf4", True, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        logs = model(input_ids=torch.tensor([prompt])).logits[0].log_softmax(-1)
    wanted = [float(logs[place, token]) for place, token in enumerate(prompt[1:])]
    assert scored.token_logprobs[1:-1] == pytest.approx(wanted, abs=2e-3)
    only = served.client.completions.create(
        prompt=PROMPTS[2], echo=True, logprobs=1, **ask | {"max_tokens": 0}
    ).choices[0]
    assert only.text == PROMPTS[2] and only.logprobs.token_logprobs == scored.token_logprobs[:-1]


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "\ud800"}, 404, "There is no model"),
    ({"model": "nobody"}, 404, "There is no model 'nobody' here: there are "),
    ({"frequency_penalty": 0.5}, 400, "frequency_penalty is not supported"),
    ({"tools": [{"type": "function", "function": {"name": "x"}}]}, 400, "tools is not supported"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format is not supported"),
    ({"messages": []}, 400, "messages: "),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, "image_url"),
    ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "part without text"),
    ({"ignore_eos": True}, 400, "ignore_eos is not supported"),
    ({"continue_final_message": True}, 400, "continue_final_message is not supported"),
    ({"max_tokens": 0}, 400, "max_tokens is 0"),
    ({"max_tokens": 100_000}, 400, "8192 at most"),
    ({"max_tokens": "many"}, 400, "max_tokens: "),
    ({"temperature": -1}, 400, "temperature: "),
    ({"temperature": math.inf}, 400, ""),
    ({"n": 500}, 400, "n: "),
    ({"stop": ["x"] * 100}, 400, "stop texts"),
    ({"top_logprobs": 3}, 400, "logprobs: true"),
    ({"chat_template_kwargs": {"tools": 1}}, 400, "chat_template_kwargs"),
]


@pytest.mark.parametrize(("more", "status", "sentence"), REFUSED)
def test_what_is_not_supported_is_refused_in_openais_form(
    served: Served, more: dict[str, Any], status: int, sentence: str
) -> None:
    body = {"model": "base", "messages": turns("hi"), "max_tokens": 2} | more
    response = post(served, "/chat/completions", content=json.dumps(body))
    error = response.json()["error"]
    assert response.status_code == status and sentence in error["message"] and error["type"].endswith("_error"), error


@pytest.mark.parametrize("prompt", [[2**40], [-1], [True], [1.5], [[1], "a"], [[]], [""], "", {}, None])
def test_prompts_that_are_none_are_refused_before_the_model_sees_them(served: Served, prompt: Any) -> None:
    response = post(served, "/completions", content=json.dumps({"model": "base", "prompt": prompt, "max_tokens": 1}))
    assert response.status_code == 400 and "prompt" in response.json()["error"]["message"], response.text


def test_a_worker_that_was_killed_comes_back(served: Served, compared: dict[tuple[str, str], str]) -> None:
    children = psutil.Process(served.process.pid).children()
    (worker,) = [child for child in children if "qlora_gui.inference.worker" in child.cmdline()]
    worker.kill()
    try:  # whoever asks before its end is noticed is told so; later a new one answers
        greedy(served.client, "bloom-all", PROMPTS[0])
    except openai.InternalServerError as error:
        assert "ask again to start it anew" in str(error)
    assert (
        greedy(served.client, "bloom-all", PROMPTS[0]).choices[0].message.content == compared["bloom-all", PROMPTS[0]]
    )


def post(served: Served, path: str, **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"} | more.pop("headers", {})
    return httpx.post(served.url + path, headers=headers, timeout=60, **more)


def test_who_may_ask(served: Served) -> None:
    body = json.dumps({"model": "base", "messages": turns("hi"), "max_tokens": 1})
    chat = "/chat/completions"
    assert post(served, chat, content=body).status_code == 200
    for headers, status in (
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": ""}, 401),
        ({"host": "evil.example"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"content-type": "text/plain"}, 415),
    ):
        response = post(served, chat, content=body, headers=headers)
        assert response.status_code == status and response.json()["error"]["message"], headers
    assert post(served, chat, content=b"{" * 100_000).status_code == 400
    assert post(served, chat, content=b'{"model": "' + b"x" * (9 << 20) + b'"}').status_code == 413
    assert httpx.get(served.url + chat).status_code == 405 and post(served, "/embeddings").status_code == 404
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=served.url, api_key="wrong", max_retries=0).models.list()


def test_one_that_is_refused_leaves_the_others_alone(served: Served, compared: dict[tuple[str, str], str]) -> None:
    """A token that the vocabulary does not have, beside a prompt that can be answered."""
    found: list[Any] = []

    def wrong() -> None:
        body = {"model": "bloom-all", "prompt": [5, 10**7], "max_tokens": 2}
        found.append(post(served, "/completions", content=json.dumps(body)))

    thread = threading.Thread(target=wrong)
    thread.start()
    right = greedy(served.client, "bloom-all", PROMPTS[0]).choices[0].message.content
    thread.join()
    assert found[0].status_code == 400 and found[0].json()["error"]["message"]
    assert right == compared["bloom-all", PROMPTS[0]]


def test_who_leaves_does_not_keep_the_others_waiting(served: Served) -> None:
    """A long answer is given up with its connection, streamed or not; the next request need not wait for its end."""
    for stream in (True, False):
        body = {"model": "base", "messages": turns("hi"), "max_tokens": 8000, "stream": stream, "temperature": 2}
        began = time.monotonic()
        headers = {"authorization": f"Bearer {KEY}"}
        with httpx.Client(timeout=1) as client:
            try:
                with client.stream("POST", served.url + "/chat/completions", json=body, headers=headers) as response:
                    next(read_lines(response))
            except httpx.TimeoutException:
                pass
        assert greedy(served.client, "base", "hi").choices[0].message.content is not None
        assert time.monotonic() - began < 30, "8000 tokens take minutes"


def read_lines(response: httpx.Response) -> Iterator[str]:
    yield from response.iter_lines()


def test_the_way_to_it_is_printed_and_ctrl_c_ends_it(bloom: Path) -> None:
    one = Served("--base", str(bloom), key="")
    try:
        assert f"Serving {bloom} at http://127.0.0.1:" in one.line
        assert greedy(one.client, "base", "hi").usage.completion_tokens > 0, "on this machine no key is needed"
    finally:
        assert one.end() == "The endpoint is closed.\n"
