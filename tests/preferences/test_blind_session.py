"""A blind session without a page: a scripted compare worker, the real thread and the real file."""

import json
import threading
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from qlora_gui.config import RunConfig
from qlora_gui.errors import UserError
from qlora_gui.inference import protocol
from qlora_gui.inference.client import CompareClient
from qlora_gui.inference.sampling import Decoding
from qlora_gui.preferences.blind_session import BlindSession, Plan, as_text, balanced_orders, parse
from qlora_gui.preferences.votes import VoteLog
from qlora_gui.runs.store import Run
from qlora_gui.ui.compare import vote_views
from tests.factories import BASE, LYNX, OTTER, vote

NASTY = "<script>alert('x')</script> & \"q\""


class Worker(CompareClient):
    """A client without a worker: each column says its name, the prompt and the seed."""

    is_loaded = False

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.asked: list[tuple[int, int]] = []  # columns, seed
        self.fails: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.stopped = threading.Event()

    def _exchange(self, request: protocol.Request) -> Generator[protocol.Event]:
        if isinstance(request, protocol.Load):
            yield protocol.Stage("Loading")
            self.is_loaded = True
            self.names = ["base", *(Path(folder).name for folder in request.adapters)]
            shas = [None if name == "base" else name * 8 for name in self.names]
            yield protocol.Loaded(
                [{"name": name, "sha256": sha, "base": "b"} for name, sha in zip(self.names, shas, strict=True)]
            )
            return
        assert isinstance(request, protocol.Ask)
        self.stopped.clear()
        while not self.gate.wait(0.01) and not self.stopped.is_set():
            pass
        if self.fails:
            raise self.fails
        self.asked.append((len(request.conversations), request.decoding.seed))
        for column, turns in enumerate(request.conversations):
            yield protocol.Text(column, f"{self.names[column]}: {turns[-1]['content']} {request.decoding.seed}")
            yield protocol.Ended(column, 3, 1.0, 3.0, "stopped" if self.stopped.is_set() else "eos")
        yield protocol.Done()

    def stop(self) -> None:
        self.stopped.set()

    def close(self) -> None: ...


@pytest.fixture
def worker() -> Worker:
    return Worker()


def started(
    worker: Worker, folder: Path, prompts: int = 3, names: tuple[str, ...] = ("otter",), aa: bool = False, **more: Any
) -> BlindSession:
    for name in names:
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "run.json").write_text(json.dumps({"config": RunConfig().model_dump(mode="json")}))
    plan = Plan(
        RunConfig(),
        [Run(folder / name) for name in names],
        [f"p{number}" for number in range(prompts)],
        more.pop("system", ""),
        Decoding(**{"seed": 7, **more}),
        aa,
    )
    return BlindSession(worker, VoteLog(folder), plan)


def until(done: Any) -> None:
    deadline = time.monotonic() + 10
    while not done():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_all_prompts_are_answered_ahead_with_seeds_of_their_own(worker: Worker, tmp_path: Path) -> None:
    session = started(worker, tmp_path, names=("otter", "lynx"), system="Be kind.")
    until(lambda: session.written == 3)
    assert worker.asked == [(3, 7), (3, 8), (3, 9)]
    assert [answer.text for answer in session.trials[1].answers] == ["base: p1 8", "otter: p1 8", "lynx: p1 8"]
    session.vote(0, 1)
    (kept,) = VoteLog(tmp_path).read()
    assert kept.messages[0] == {"role": "system", "content": "Be kind."} and kept.decoding["seed"] == 7


@pytest.mark.parametrize("columns", [2, 3, 6])
@pytest.mark.parametrize("prompts", [1, 2, 7, 30])
def test_every_column_stands_equally_often_at_every_place(columns: int, prompts: int) -> None:
    orders = balanced_orders(columns, prompts)
    assert len(orders) == prompts and all(sorted(order) == list(range(columns)) for order in orders)
    for place in range(columns):
        at_place = Counter(order[place] for order in orders)
        counts = [at_place[column] for column in range(columns)]
        assert max(counts) - min(counts) <= 1, f"place {place}: {counts}"


def test_the_places_are_drawn_by_chance() -> None:
    drawn = {tuple(map(tuple, balanced_orders(2, 12))) for _ in range(50)}
    assert len(drawn) > 10, "of 924 possible sequences"


def test_a_vote_is_for_the_column_at_the_place_and_the_next_prompt_comes(worker: Worker, tmp_path: Path) -> None:
    session = started(worker, tmp_path, prompts=20)
    until(lambda: session.written == 20)
    for number in range(20):
        session.vote(number, 0)
    assert session.revealed
    votes = VoteLog(tmp_path).read()
    assert [vote.choice for vote in votes] == [vote.order[0] for vote in votes]
    assert Counter(vote.order for vote in votes) == {(0, 1): 10, (1, 0): 10}
    assert len({vote.session for vote in votes}) == 1 and all(vote.same_dice for vote in votes)
    session.vote(19, 1)
    assert len(VoteLog(tmp_path).read()) == 20, "a vote after the reveal"


def test_a_page_that_lags_does_not_vote_on_the_next_prompt(worker: Worker, tmp_path: Path) -> None:
    session = started(worker, tmp_path)
    until(lambda: session.written == 3)
    for _ in range(3):
        session.vote(0, 0)
    assert len(VoteLog(tmp_path).read()) == 1 and session.current == 1
    session.retry(0)
    assert session.trials[0].retries == 0


def test_nothing_is_voted_on_before_it_is_written(worker: Worker, tmp_path: Path) -> None:
    worker.gate.clear()
    session = started(worker, tmp_path)
    until(lambda: worker.is_loaded)
    session.vote(0, 0)
    session.retry(0)
    assert VoteLog(tmp_path).read() == [] and session.trials[0].retries == 0
    worker.gate.set()
    until(lambda: session.written == 3)


def test_retry_gives_new_answers_and_is_counted(worker: Worker, tmp_path: Path) -> None:
    session = started(worker, tmp_path)
    until(lambda: session.written == 3)
    before = session.trials[0].answers[0].text
    session.retry(0)
    until(lambda: session.written == 3)
    assert session.trials[0].answers[0].text != before and worker.asked[-1] == (2, 10)
    session.vote(0, "tie")
    (kept,) = VoteLog(tmp_path).read()
    assert (kept.retries, kept.choice, kept.decoding["seed"]) == (1, "tie", 10)


def test_undo_goes_back_before_the_reveal_and_only_uncounts_after_it(worker: Worker, tmp_path: Path) -> None:
    session, log = started(worker, tmp_path, prompts=2), VoteLog(tmp_path)
    until(lambda: session.written == 2)
    session.undo()
    session.vote(0, 0)
    session.undo()
    assert (session.current, log.read()) == (0, [])
    session.vote(0, 1)
    session.vote(1, "bad")
    assert session.revealed and len(log.read()) == 2
    session.undo()
    assert session.revealed and len(log.read()) == 1 and session.shown is session.trials[0]
    session.vote(1, 0)
    assert len(log.read()) == 1


def test_aa_asks_the_base_twice_with_different_seeds(worker: Worker, tmp_path: Path) -> None:
    session = started(worker, tmp_path, prompts=1, aa=True)
    until(lambda: session.written == 1)
    assert worker.names == ["base"] and worker.asked == [(1, 7), (1, 7 + 2**31)]
    session.vote(0, 0)
    (kept,) = VoteLog(tmp_path).read()
    assert kept.aa and not kept.same_dice and kept.columns[0] == kept.columns[1] and kept.answers[0] != kept.answers[1]


def test_an_error_is_told_and_go_on_goes_on(worker: Worker, tmp_path: Path) -> None:
    worker.fails = UserError("No memory.")
    session = started(worker, tmp_path)
    until(lambda: session.error)
    assert session.error == "No memory." and session.written == 0
    worker.fails = None
    session.write_on()
    until(lambda: session.written == 3)
    assert session.error == ""


def test_answers_that_somebody_stopped_are_not_judged(worker: Worker, tmp_path: Path) -> None:
    worker.gate.clear()
    session = started(worker, tmp_path)
    until(lambda: worker.is_loaded)
    time.sleep(0.05)
    worker.stop()
    until(lambda: session.error)
    assert "stopped" in session.error and session.written == 0


def test_an_early_reveal_ends_the_writing(worker: Worker, tmp_path: Path) -> None:
    worker.gate.clear()
    session = started(worker, tmp_path)
    until(lambda: worker.is_loaded)
    time.sleep(0.05)
    session.reveal()
    until(lambda: worker.stopped.is_set())
    time.sleep(0.1)
    assert session.written == 0 and session.error == "" and session.shown is None
    session.write_on()
    assert session.written == 0


def test_a_vote_that_cannot_be_kept_changes_nothing(worker: Worker, tmp_path: Path) -> None:
    session = started(worker, tmp_path)
    until(lambda: session.written == 3)
    VoteLog(tmp_path).path.mkdir(parents=True)  # in the way
    with pytest.raises(UserError, match="cannot be written"):
        session.vote(0, 0)
    assert session.current == 0 and session.trials[0].vote is None


@pytest.mark.parametrize("prompts", [["one", "two"], ["a\nb", "c"], ["only\nthis"], ["x"], []])
def test_prompts_come_back_from_their_text(prompts: list[str]) -> None:
    assert parse(as_text(prompts)) == prompts


def test_a_list_may_be_written_as_one_likes() -> None:
    assert parse(" one \n\n two\n") == ["one", "two"]
    assert parse("--- \na\nb\n---\n\n---\nc") == ["a\nb", "c"]


# what is shown ---------------------------------------------------------------------------------------------------------


def test_only_votes_on_the_shown_columns_are_counted_and_each_judge_apart() -> None:
    votes = [vote(n, 1) for n in range(12)]
    others = [vote(1, 1, (BASE, LYNX)), vote(2, 1, (BASE, OTTER, LYNX)), vote(3, 0, (BASE, BASE), aa=True)]
    others.append(vote(4, 0, by="llm:big", orders_agree=True))
    said = vote_views.results([*votes, *others], ["base", "otter"])
    assert said.count("<section") == 3
    assert "otter is preferred" in said and "12-0" in said and "A/A: the base against itself" in said
    assert (
        "votes of big" in said and "Both orders agreed on 1 of 1 pair" in said and "it agreed with them 0 of 1" in said
    )
    assert said.index("votes of people") < said.index("votes of big")
    three = vote_views.results([*votes, *others], ["base", "lynx", "otter"])
    assert "strength (log-odds)" in three
    assert three.count('class="interval"') == 4  # two adapters, the LLM's pair, the A/A
    assert "No votes on these columns yet" in vote_views.results(votes, ["base", "nobody"])


def test_an_adapter_trained_anew_is_told_from_the_old_one() -> None:
    new = (BASE, type(OTTER)("otter", "c" * 64))
    said = vote_views.results([vote(1, 1), vote(2, 1, new)], ["base", "otter"])
    assert "files cccccccc" in said and "files aaaaaaaa" in said and said.index("cccc") < said.index("aaaa")
    assert "files" not in vote_views.results([vote(1, 1)], ["base", "otter"])


def test_what_models_and_people_write_is_escaped() -> None:
    nasty = [vote(n, 1, (BASE, type(OTTER)(NASTY, "x")), prompt=NASTY, by="human") for n in range(3)]
    for said in (vote_views.results(nasty, ["base", NASTY]), vote_views.trials(nasty)):
        assert "<script>" not in said and "&lt;script&gt;" in said
    told = vote_views.results(
        [*nasty, *(vote(9, 1, nasty[0].columns, by=f"llm:{NASTY}") for _ in range(1))], ["base", NASTY]
    )
    assert "<script>" not in told
