"""The optional LLM judge, against a real HTTP server on this machine."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_gui.errors import UserError
from qlora_gui.preferences import llm_judge
from qlora_gui.preferences.llm_judge import Judge
from qlora_gui.preferences.pairwise import tally
from qlora_gui.preferences.votes import TIE, Vote, VoteLog
from tests.factories import BASE, LYNX, OTTER, vote
from tests.judge_endpoint import Answering, Endpoint, human, parts, prefers, said

SECRET = "sk-very-secret-key-123"


@pytest.fixture
def serve() -> Iterator[Callable[[Answering], Endpoint]]:
    served: list[Endpoint] = []

    def start(answering: Answering) -> Endpoint:
        served.append(Endpoint(answering))
        return served[-1]

    yield start
    for one in served:
        one.server.shutdown()
        one.server.server_close()


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(llm_judge.KEY, raising=False)


def always_first(body: dict[str, Any]) -> tuple[int, str]:
    return said('{"best": "A"}')


def run(judge: Judge, votes: list[Vote]) -> tuple[list[Vote], llm_judge.Judged]:
    kept: list[Vote] = []
    *_, last = llm_judge.judge_votes(judge, votes, kept.append)
    return kept, last


def test_both_orders_are_asked_and_agreement_makes_a_vote(serve: Callable[[Answering], Endpoint]) -> None:
    endpoint = serve(prefers("good"))
    kept, judged = run(endpoint.judge, [human(1), human(2), human(3)])
    assert [one.choice for one in kept] == [1, 1, 1] and judged.agreement == 1.0
    assert len(endpoint.asked) == 6 and {one["path"] for one in endpoint.asked} == {"/v1/chat/completions"}
    assert [parts(body) for body in endpoint.asked[:2]] == [("poor", "good"), ("good", "poor")]
    assert all(one.by == "llm:big-judge" and one.order == (0, 1) and one.base["name"] == "demo" for one in kept)
    assert tally(kept).wins == (0, 3)
    assert endpoint.keys == [None] * 6


def test_a_judge_that_goes_by_place_gives_only_ties(serve: Callable[[Answering], Endpoint]) -> None:
    kept, judged = run(serve(always_first).judge, [human(1), human(2)])
    assert [one.choice for one in kept] == [TIE, TIE]
    assert judged.agreement == 0.0 and (judged.done, judged.total) == (2, 2)


def test_agreement_is_a_share(serve: Callable[[Answering], Endpoint]) -> None:
    fair = prefers("good")
    endpoint = serve(lambda body: fair(body) if "prompt 1" in body["messages"][1]["content"] else always_first(body))
    assert run(endpoint.judge, [human(1), human(2)])[1].agreement == 0.5


def test_an_adapter_of_several_meets_the_base_and_aa_is_left_alone(serve: Callable[[Answering], Endpoint]) -> None:
    three = vote(1, 2, (BASE, OTTER, LYNX), answers=("poor", "good", "poor too"))
    kept, _ = run(serve(prefers("good")).judge, [three, vote(2, 0, (BASE, BASE), aa=True)])
    assert [(one.columns, one.choice) for one in kept] == [((BASE, OTTER), 1), ((BASE, LYNX), TIE)]


def test_what_was_judged_is_not_judged_again(serve: Callable[[Answering], Endpoint]) -> None:
    endpoint = serve(prefers("good"))
    votes = [human(1), human(1), human(2)]
    kept, judged = run(endpoint.judge, votes)
    assert judged.total == 2
    assert llm_judge.unjudged(endpoint.judge, [*votes, *kept]) == []
    assert len(llm_judge.unjudged(Judge(endpoint.judge.url, "another"), [*votes, *kept])) == 2


def test_a_judge_that_fails_keeps_what_it_has_judged(serve: Callable[[Answering], Endpoint]) -> None:
    fair = prefers("good")
    endpoint = serve(lambda body: (500, "boom") if "prompt 2" in body["messages"][1]["content"] else fair(body))
    kept: list[Vote] = []
    with pytest.raises(UserError, match="status 500"):
        list(llm_judge.judge_votes(endpoint.judge, [human(1), human(2)], kept.append))
    assert [one.prompt for one in kept] == ["prompt 1"]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (said("I like both of them very much"), "gave no verdict but 'I like both"),
        (said(None), "gave no verdict"),
        ((200, "<html>a login page</html>"), "does not answer as an OpenAI-compatible endpoint"),
        ((200, "{}"), "does not answer as an OpenAI-compatible endpoint"),
        ((200, '["choices"]'), "does not answer as an OpenAI-compatible endpoint"),
        ((401, "no"), "refuses the key: set another one in QLORA_GUI_JUDGE_KEY"),
        ((404, "model  not\nfound"), r"status 404 \(model not found\)"),
        ((302, ""), "status 302"),
    ],
)
def test_an_answer_of_no_use_is_one_sentence(
    serve: Callable[[Answering], Endpoint], answer: tuple[int, str], told: str
) -> None:
    with pytest.raises(UserError, match=told) as raised:
        run(serve(lambda body: answer).judge, [human(1)])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ['{"best": "B"}', 'Thoughts.\n```json\n{"best":"b"}\n```', " B. ", "**B**"])
def test_verdicts_are_read_as_models_write_them(serve: Callable[[Answering], Endpoint], text: str) -> None:
    kept, judged = run(serve(lambda body: said(text)).judge, [human(1)])
    assert kept[0].choice == TIE and judged.agreed == 0  # B in both orders


def test_a_model_that_takes_no_temperature_is_asked_without(serve: Callable[[Answering], Endpoint]) -> None:
    fair = prefers("good")
    endpoint = serve(lambda body: (400, "temperature is not supported") if "temperature" in body else fair(body))
    assert run(endpoint.judge, [human(1)])[0][0].choice == 1


def test_a_slow_or_missing_endpoint_is_one_sentence(serve: Callable[[Answering], Endpoint]) -> None:
    def slow(body: dict[str, Any]) -> tuple[int, str]:
        time.sleep(1.5)
        return said('{"best": "A"}')

    endpoint = serve(slow)
    with pytest.raises(UserError, match="did not answer within"):
        run(Judge(endpoint.judge.url, "big-judge", timeout=0.3), [human(1)])
    with pytest.raises(UserError, match="cannot be reached"):
        run(Judge("http://127.0.0.1:9/v1", "big-judge"), [human(1)])


def test_the_key_comes_from_the_environment_and_is_never_told(
    serve: Callable[[Answering], Endpoint], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(llm_judge.KEY, SECRET)
    endpoint, log = serve(prefers("good")), VoteLog(tmp_path)
    with pytest.raises(UserError, match="is sent only to the address in QLORA_GUI_JUDGE_URL"):
        run(endpoint.judge, [human(1)])
    monkeypatch.setenv(llm_judge.PIN, "https://another.example/v1")
    run(endpoint.judge, [human(1)])
    assert endpoint.keys == [None, None]  # a place that the page named, and not the owner
    endpoint.keys.clear()
    monkeypatch.setenv(llm_judge.PIN, endpoint.judge.url)
    list(llm_judge.judge_votes(endpoint.judge, [human(1)], log.add))
    assert endpoint.keys == [f"Bearer {SECRET}"] * 2
    assert SECRET not in log.path.read_text() and SECRET not in json.dumps(endpoint.asked)
    for answer in ((500, f"key {SECRET} is over its limit"), said(f"{SECRET} is better"), (403, SECRET)):
        with pytest.raises(UserError) as raised:
            run(serve(lambda body, answer=answer: answer).judge, [human(1)])
        assert SECRET not in str(raised.value)
    monkeypatch.setenv(llm_judge.KEY, "kéy")
    with pytest.raises(UserError, match="characters that no key has"):
        run(endpoint.judge, [human(1)])


@pytest.mark.parametrize(
    "url", ["", "not an address", "ftp://host/v1", "https://", "http://[::1/v1", "http://host:port/v1"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="address is invalid"):
        llm_judge.check(Judge(url, "m"), [])


@pytest.mark.parametrize("url", ["https://me:secret@host/v1", "https://host/v1?key=secret"])
def test_a_key_in_the_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UserError, match="not in the address") as raised:
        llm_judge.check(Judge(url, "m"), [])
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("model", ["otter", "Org/SmolLM2-135M", "smollm2-135m", "/models/SmolLM2-135M/", " "])
def test_a_compared_model_never_judges(model: str) -> None:
    with pytest.raises(UserError):
        llm_judge.check(Judge("https://host/v1", model), ["base", "otter", "HuggingFaceTB/SmolLM2-135M"])
    llm_judge.check(Judge("https://host/v1", "another"), ["base", "otter", ""])


def test_votes_name_the_base_that_may_not_judge(serve: Callable[[Answering], Endpoint]) -> None:
    endpoint = serve(prefers("good"))
    with pytest.raises(UserError, match="one of the compared"):
        run(Judge(endpoint.judge.url, "org/demo"), [human(1)])
    assert endpoint.asked == []
