"""Lines of events.jsonl that are no events, a stranger's say: skipped, counted, told, and they end no view."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qlora_gui import diagnostics, report
from qlora_gui.cli import sweep
from qlora_gui.config import make
from qlora_gui.errors import UserError
from qlora_gui.evaluation import job
from qlora_gui.inference import adapter_file
from qlora_gui.runs import event_file, events
from qlora_gui.runs.event_text import describe
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import evaluation_views, findings, memory_views, run_view, views
from qlora_gui.ui.runs import comparison
from qlora_gui.ui.runs.index import summaries
from tests.factories import GOOD
from tests.security.attacks import Attempts

BAD_VALUES: list[Any] = [None, True, -1, 1e300, 10**400, "x", [], [[]], {}, {"a": {}}, [3], "x" * 300_000]
HUGE = b'{"t": 1.0, "kind": "stage", "text": "' + b"x" * (events.MOST_BYTES + 5) + b'"}'
NO_EVENTS = [b"[]", b"3", b"null", b'"text"', b"true", b"{}", b'{"kind": "step"}', b'{"t": "x", "kind": "step"}', b"\xff\xfe",
             b'{"t": 1, "kind": ["step"]}', b'{"t": 1, "kind": "skipped", "count": "x"}', b'{"t": 1, "kind": "thinned"}',
             b"NaN", b"1" * 5000, b"[" * 100_000, HUGE]  # fmt: skip


def mutations() -> list[bytes]:
    """Every good event with every field missing, and replaced by each bad value."""
    lines = []
    for kind, fields in GOOD.items():
        whole = {"t": 1.0, "kind": kind} | fields
        for name in whole:
            lines.append({key: value for key, value in whole.items() if key != name})
            lines += [whole | {name: value} for value in BAD_VALUES]
        for name, part in fields.items():
            inside = part if isinstance(part, dict) else part[0] if isinstance(part, list) and part else None
            for inner in inside if isinstance(inside, dict) else ():
                for value in BAD_VALUES:
                    changed = inside | {inner: value}  # type: ignore[operator]
                    lines.append(whole | {name: changed if isinstance(part, dict) else [changed]})
    return [json.dumps(line).encode() for line in lines]


def every_reader(store: RunStore, run: Run) -> str:
    """Whatever reads events; gives what it all says. Only UserErrors may be raised."""
    found, _ = run.events()
    [one] = summaries(store)
    now = run_view.Drawing(run, one.state)
    said = [now.head, now.overview, now.data, now.plots, now.probes, now.numbers, *map(describe, found)]
    history = run.history()
    said += [views.outcome(one.state, history, "", one.checkpoint, one.adapter), views.stage("running", history)]
    said += [views.headline(run.id, "running", history), evaluation_views.timeline(history), str(one.row())]
    said += [comparison.render([run, run], [one, one])]
    if dead := run.history().oom_report:
        said += [memory_views.oom_report(dead), str(memory_views.retries(dead))]
    findings.of_run(run, history), findings.after_run(run, None), diagnostics.during(run.config(), history)
    blocks = report.written(store)
    said += [render(blocks) for render in report.RENDERERS.values()]
    sweep._losses(run, "finished")
    job.state(run)
    job.result(run)
    with contextlib.suppress(UserError):
        adapter_file.read(run.path)
    return "\n".join(said)


def test_a_good_run_of_every_kind_is_skipped_nowhere(store: RunStore) -> None:
    run = store.create(make({"name": "good"}))
    for kind, fields in GOOD.items():
        EventLog(run.events_file).append(kind, **fields)
    assert [event["kind"] for event in run.events()[0]] == list(GOOD)
    assert "skipped" not in every_reader(store, run)


@pytest.mark.attack("lines of a stranger's run that are no events")
@pytest.mark.parametrize("line", NO_EVENTS, ids=range(len(NO_EVENTS)))
def test_a_line_that_is_no_event_is_counted_and_told(store: RunStore, line: bytes) -> None:
    run = store.create(make({"name": "odd"}))
    log = EventLog(run.events_file)
    log.append("started", pid=1)
    with run.events_file.open("ab") as file:
        file.write(line + b"\n")
    log.append("step", **GOOD["step"])
    found, end = run.events()
    assert [event["kind"] for event in found] == ["skipped", "started", "step"] and found[0]["count"] == 1
    assert end == run.events_file.stat().st_size, "the offset does not lose its place"
    said = every_reader(store, run)
    assert said.count("1 line of its events is skipped") >= 5, "the panel, the comparison and both reports say so"


@pytest.mark.attack("events of a stranger's run with fields of a wrong kind")
def test_no_wrong_field_ends_a_reader(store: RunStore, attempt: Attempts) -> None:
    """Each mutation alone among good events is taken or told; all of them together end no view."""
    lines = mutations()
    assert len(lines) > 1000
    run = store.create(make({"name": "odd"}))
    good = [json.dumps({"t": 1.0, "kind": kind} | fields).encode() for kind, fields in GOOD.items()]
    for first in range(0, len(lines), 12):  # a handful at a time: the last of a kind is what most readers look at
        part = [line for pair in zip(good * 2, lines[first : first + 12], strict=False) for line in pair]
        run.events_file.write_bytes(b"\n".join(part) + b"\n")
        one = summaries(store)[0]
        found, _ = run.events()
        now = run_view.Drawing(run, one.state)
        _ = now.head, now.overview, now.data, now.plots, now.probes, now.numbers, list(map(describe, found))
        findings.after_run(run, None)
        if dead := run.history().oom_report:
            memory_views.retries(dead)
        for line in lines[first : first + 12]:
            attempt(True, line[:200])
    run.events_file.write_bytes(b"\n".join([*good, *lines]) + b"\n")
    assert "lines of its events are skipped" in every_reader(store, run)


def test_the_last_word_counts_though_a_part_of_it_is_damaged(store: RunStore) -> None:
    run = store.create(make({"name": "dead"}))
    EventLog(run.events_file).append("failed", message="no room", autopsy={"held_by": 3})
    assert run.state() == "failed" and run.events()[0][1]["message"] == "no room"
    assert "'autopsy' of the wrong kind" in describe(run.events()[0][0])


def test_an_evaluation_with_odd_progress_still_says_how_it_goes(store: RunStore) -> None:
    run = store.create(make({"name": "odd"}))
    path = run.path / job.PROGRESS
    for bad in (b'{"t": 1, "kind": "progress", "done": 1, "of": 0}', b"[]", b'{"t": 1, "kind": "progress"}'):
        path.write_bytes(b'{"t": 1, "kind": "stage", "text": "x"}\n' + bad + b"\n")
        assert "ended without an error message" in job.state(run).fault
    path.write_bytes(b'{"t": 1, "kind": "failed", "message": []}\n')
    assert job.state(run).fault


def test_who_follows_headless_is_told(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    run = store.create(make({"name": "odd"}))
    log = EventLog(run.events_file)
    log.append("started", pid=1)
    offset = run.events()[1]
    with run.events_file.open("ab") as file:
        file.write(b"[1, 2]\n")
    log.append("finished", step=1)
    fresh, _ = run.events(offset)
    assert [event["kind"] for event in fresh] == ["skipped", "finished"]
    assert "a JSON list and no object" in describe(fresh[0])


@pytest.mark.attack("an events.jsonl of 400 MB without a line end")
def test_a_line_without_end_is_not_held_in_memory(tmp_path: Path) -> None:
    code = (
        "import sys, tracemalloc\nfrom pathlib import Path\nfrom qlora_gui.runs import event_file\n"
        "tracemalloc.start()\nfound, end = event_file.read(Path(sys.argv[1]))\n"
        "print(len(found), end, tracemalloc.get_traced_memory()[1])"
    )
    path = tmp_path / "events.jsonl"
    with path.open("wb") as file:
        file.write(b'{"t": 1.0, "kind": "stage", "text": "x"}\n')
        file.truncate(400 << 20)  # zeros, and no line end
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    count, end, peak = map(int, done.stdout.split())
    assert (count, end) == (1, 41) and peak < 32 << 20, f"{peak >> 20} MB"
    assert event_file.read(path)[1] == 41
