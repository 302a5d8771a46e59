"""A long run is kept as a sample of real events: bounded, spikes and NaN in it, the newest whole, and known to the cache."""

import itertools
import json
import random
from pathlib import Path

import pytest

from qlora_gui import diagnostics
from qlora_gui.config import make
from qlora_gui.runs import curves, derived_cache, event_file
from qlora_gui.runs.events import Step
from qlora_gui.runs.history import RunHistory
from qlora_gui.runs.thinning import PEAK, Thinned

COUNT = 40_000


@pytest.fixture
def long_run(tmp_path: Path) -> Path:
    """A file of 40,000 steps with noise, one spike, one loss that is no number, and a measurement every 1,000 steps."""
    dice, lines = random.Random(1), []
    for step in range(1, COUNT + 1):
        loss = 2.0 + dice.uniform(-0.2, 0.2)
        loss = 9.0 if step == 12_345 else loss
        told = {"t": 1.0, "kind": "step", "step": step, "max_steps": COUNT, "loss": None if step == 23_456 else loss}
        lines.append(told | {"learning_rate": 1e-4, "grad_norm": 0.1, "note": "x" * 150})
        if step % 1000 == 0:
            lines.append({"t": 1.0, "kind": "eval", "step": step, "loss": 2.0})
    path = tmp_path / "events.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_what_is_kept_is_a_sample_with_all_that_stands_out(long_run: Path) -> None:
    found, end = event_file.read(long_run)
    steps = [event for event in found if event["kind"] == "step"]
    assert end == long_run.stat().st_size and len(steps) < 4000
    assert found[0]["kind"] == "thinned" and found[0]["counts"] == {"step": COUNT}
    assert [event["step"] for event in steps] == sorted(event["step"] for event in steps), "in their order"
    assert [event["step"] for event in steps[-512:]] == list(range(COUNT - 511, COUNT + 1)), "the newest are whole"
    assert {12_345, 23_456, 1} <= {event["step"] for event in steps}
    assert len([event for event in found if event["kind"] == "eval"]) == 40, "few of a kind are all kept"
    checks = {one.check: one.evidence for one in diagnostics.during(make({}), RunHistory(found))}
    assert "9.00 at step 12345" in checks["loss_spikes"] and "first at step 23456" in checks["not_a_number"]


def test_the_curve_is_that_of_all_points(long_run: Path) -> None:
    found, _ = event_file.read(long_run)
    drawn = curves.thinned(RunHistory(found).points(Step, "loss"))
    assert len(drawn) <= curves.MAX_POINTS
    gaps = [right - left for (left, _), (right, _) in itertools.pairwise(drawn)]
    assert max(gaps) < 3 * COUNT / curves.MAX_POINTS, "the newest, of which all are kept, take no more room than others"
    means = [loss for _, loss in drawn[1:-1]]
    assert abs(sum(means) / len(means) - 2.0) < 0.03, "peaks do not pull it up"
    assert not any(PEAK in event for event in found if event["kind"] == "eval")


def test_what_is_added_goes_on_from_there_and_bucket_by_bucket_it_is_the_same(long_run: Path, tmp_path: Path) -> None:
    lines = long_run.read_bytes().splitlines(keepends=True)
    slowly = tmp_path / "slowly.jsonl"
    for first in range(0, len(lines), 7001):
        with slowly.open("ab") as file:
            file.writelines(lines[first : first + 7001])
        event_file.read(slowly)
    assert event_file.read(slowly) == event_file.read(long_run)


def test_the_cache_saves_time_and_is_never_the_truth(long_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_file, "_LONG", 1 << 20)
    whole = event_file.read(long_run)
    name = derived_cache.folder() / derived_cache.name_of("events", long_run)
    assert name.exists()
    read: list[int] = []
    parsed = event_file._parsed
    monkeypatch.setattr(event_file, "_parsed", lambda line: (read.append(1), parsed(line))[1])

    def anew() -> object:
        event_file._known.clear()
        read.clear()
        return event_file.read(long_run)

    assert anew() == whole and not read, "another process reads nothing again"
    assert event_file.behind(long_run) == 0
    good = name.read_bytes()
    damages = [b"", b"{}", good[:-20], good[:100] + b"X" + good[101:], b"1 00\n{}", good.replace(b'"end"', b'"env"')]
    for damage in damages:
        name.write_bytes(damage)
        assert anew() == whole and len(read) == COUNT + 40
    name.unlink()
    with long_run.open("r+b") as file:  # another file of the same size in its place
        file.write(b'{"t": 1.0, "kind": "step", "step": 7')
    assert anew() != whole


def test_the_last_mark_is_found_from_the_end(long_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with long_run.open("a") as file:
        file.write(json.dumps({"t": 1.0, "kind": "stopped", "step": COUNT}) + "\n")
    count: list[int] = []
    parsed = event_file._parsed
    monkeypatch.setattr(event_file, "_parsed", lambda line: (count.append(1), parsed(line))[1])
    found = event_file.mark(long_run)
    assert found and found["kind"] == "stopped" and len(count) < COUNT / 5


def test_catching_up_lets_others_ask_how_far_it_is(long_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_file, "_BLOCK", 1 << 16)
    left: list[int] = []
    advance = event_file._Known.advance

    def told(known: event_file._Known, *given: object) -> bool:
        done = advance(known, *given)  # type: ignore[arg-type]
        left.append(long_run.stat().st_size - known.end)
        return done

    monkeypatch.setattr(event_file._Known, "advance", told)
    event_file.catch_up(long_run)
    assert len(left) > 20 and left == sorted(left, reverse=True) and left[-1] == 0


def test_as_plain_values_it_is_the_same() -> None:
    one = Thinned()
    for number in range(5000):
        one.add({"t": 1.0, "kind": "probe" if number % 3 else "eval", "step": number, "loss": number % 17})
    again = Thinned.from_plain(json.loads(json.dumps(one.plain())))
    for both in (one, again):
        both.add({"t": 1.0, "kind": "eval", "step": 5000, "loss": 1})
    assert one.all() == again.all() and one.thinned() == again.thinned() == {"probe": 3333, "eval": 1668}
