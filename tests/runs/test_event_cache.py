"""Events are parsed once, and what takes a file's place is seen."""

import json
from pathlib import Path

import pytest

from qlora_gui.runs import event_file
from qlora_gui.runs.events import EventLog


def test_only_what_is_new_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    for step in range(50):
        log.append("step", step=step, max_steps=60, loss=1.0)
    found, end = event_file.read(log.path)
    log.append("step", step=50, max_steps=60, loss=1.0)
    log.path.open("ab").write(b'{"half')
    parsed: list[bytes] = []
    whole = event_file._parsed
    monkeypatch.setattr(event_file, "_parsed", lambda line: (parsed.append(line), whole(line))[1])
    again, then = event_file.read(log.path)
    assert [event["step"] for event in again] == list(range(51)) and [b'"step": 50' in line for line in parsed] == [
        True
    ]
    assert len(found) == 50  # theirs did not grow
    assert event_file.read(log.path, end)[0] == again[50:] and then > end


def test_another_file_in_its_place_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    for step in range(20):
        log.append("step", step=step, max_steps=60, loss=1.0)
    assert len(event_file.read(path)[0]) == 20
    size = path.stat().st_size
    path.write_bytes(b"x" * size + b"\n")
    [told], end = event_file.read(path)
    assert told["kind"] == "skipped" and told["count"] == 1 and end == size + 1
    path.write_text(json.dumps({"t": 1, "kind": "stage", "text": "x"}) + "\n")
    assert [event["kind"] for event in event_file.read(path)[0]] == ["stage"]
    path.write_text("")
    assert event_file.read(path) == ([], 0)
    path.unlink()
    assert event_file.read(path) == ([], 0)


def test_few_files_are_known_at_a_time(tmp_path: Path) -> None:
    for number in range(event_file._MOST_KNOWN + 5):
        EventLog(tmp_path / f"{number}.jsonl").append("stage", text="x")
        event_file.read(tmp_path / f"{number}.jsonl")
    assert len(event_file._known) == event_file._MOST_KNOWN
