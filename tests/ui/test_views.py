"""What the page shows, without a page: sentences, charts, and the form that is a RunConfig."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import yaml

from qlora_gui import config as configs
from qlora_gui.cli import flags
from qlora_gui.config import RunConfig, command_line
from qlora_gui.errors import UserError
from qlora_gui.inference import protocol
from qlora_gui.inference.client import CompareClient, columns_of
from qlora_gui.runs import bounded_reading
from qlora_gui.runs.event_text import describe
from qlora_gui.runs.events import EventLog, Step
from qlora_gui.runs.history import RunHistory
from qlora_gui.runs.store import RunStore
from qlora_gui.serving.address import Address
from qlora_gui.serving.batching import Batcher
from qlora_gui.serving.server import Endpoint
from qlora_gui.ui import app, links, run_view, views
from qlora_gui.ui.compare import columns, offers
from qlora_gui.ui.compare.columns import Room
from qlora_gui.ui.compare.tab import CompareTab
from qlora_gui.ui.rendering import chart, html
from qlora_gui.ui.runs.index import summaries
from qlora_gui.ui.train import form, preview

ROOT = Path(__file__).parents[2]
NASTY = "<script>alert('x')</script> & \"q\""


def step(number: int, loss: float = 2.0, **more: Any) -> dict[str, Any]:
    return {
        "t": float(number),
        "kind": "step",
        "step": number,
        "max_steps": 40,
        "loss": loss,
        "learning_rate": 1e-4,
        "grad_norm": 0.5,
        "tokens_per_second": 100.0,
        "memory": 2**30,
        "eta": 30.0,
    } | more


def held_out(number: int, loss: float) -> dict[str, Any]:
    return {"t": float(number), "kind": "eval", "step": number, "loss": loss, "tokens": 10}


def test_headline_says_state_progress_and_time_in_words() -> None:
    said = views.headline("calm-lynx", "running", RunHistory([step(10)]))
    assert "calm-lynx" in said and "running" in said and "step 10 of 40" in said and "0:30 left" in said
    assert 'aria-valuenow="25"' in said
    assert "left" not in views.headline("calm-lynx", "died", RunHistory([step(10)]))


def test_steps_that_a_resumed_run_did_again_replace_the_old_ones() -> None:
    events = [step(5, 3.0), step(10, 2.5), step(15, 9.9), {"t": 0.0, "kind": "started"}, step(11, 2.4), step(15, 2.2)]
    assert RunHistory(events).points(Step, "loss") == [(5, 3.0), (10, 2.5), (11, 2.4), (15, 2.2)]


def test_a_loss_that_is_no_number_leaves_a_gap_and_no_error() -> None:
    events = [step(5), step(10, None)]  # type: ignore[arg-type]
    assert RunHistory(events).points(Step, "loss") == [(5, 2.0)]
    history = RunHistory(events)
    views.curves(history), views.tiles(history), views.numbers(history)


@pytest.mark.parametrize(
    ("state", "events", "resume", "expected"),
    [
        (
            "finished",
            [{"t": 1, "kind": "finished", "step": 40, "seconds": 75.0, "loss_before": 2.0, "loss_after": 1.0}],
            False,
            ["Finished in 1:15", "from 2.000 (the base) to 1.000 (the adapter): 50% lower", "Compare it"],
        ),
        (
            "finished",
            [{"t": 1, "kind": "finished", "step": 40, "seconds": 75.0, "loss_before": 2.0, "loss_after": 2.3}],
            False,
            ["15% higher"],
        ),
        ("stopped", [{"t": 1, "kind": "stopped", "step": 7, "seconds": 9.0}], True, ["Stopped at step 7", "Resume"]),
        ("stopped", [{"t": 1, "kind": "stopped", "step": 0, "message": "Stopped before the first step."}], False, ["Stopped before"]),
        ("failed", [{"t": 1, "kind": "failed", "message": "No memory.", "bug": False}], True, ["Failed: No memory", "Resume"]),
        ("died", [step(3)], True, ["Died", "Last log line", "Resume"]),
        ("died", [], False, ["no checkpoint yet: train again"]),
    ],
)  # fmt: skip
def test_how_a_run_ended_says_what_to_do_next(
    state: str, events: list[dict[str, Any]], resume: bool, expected: list[str]
) -> None:
    said = views.outcome(state, RunHistory(events), "killed", resume, has_adapter=True)
    assert all(part in said for part in expected), said


def test_a_live_run_has_no_outcome() -> None:
    assert views.outcome("running", RunHistory([step(3)]), "", False, False) == ""


def test_dropped_rows_are_named_with_their_reasons() -> None:
    event = {"t": 0, "kind": "data", "used": 1200, "held_out": 10, "truncated": 3, "dropped": 2}
    event["dropped_rows"] = [{"row": 88, "reason": NASTY}]
    said = views.data_summary(RunHistory([event]))
    assert "1,200 rows to train on" in said and "3 truncated" in said and "row 88" in said and "and 1 more" in said
    assert "<script>" not in said


def test_rows_left_out_copies_and_what_is_not_used_are_told() -> None:
    event: dict[str, Any] = {"t": 0, "kind": "data", "used": 100, "held_out": 10, "truncated": 0, "dropped": 0}
    event |= {"dropped_rows": [], "skipped": 21, "usable": 110, "duplicates": 11, "known": 2}
    event["skipped_rows"] = [{"row": 8, "line": 12, "file": "a.csv", "reason": NASTY}]
    event["ignored"] = {"images": 3, "id": 110}
    said, line = views.data_summary(RunHistory([event])), describe(event)
    for told in (said, line):
        assert "21 rows that cannot be used are left out." in told and "row 8 (line 12)" in told
        assert "11 rows (10.0%) equal an earlier one" in told and "2 held-out rows equal rows to train on" in told
        assert "may change what the rows mean: images (3 rows)." in told and "Not used: id (110 rows)." in told
    assert "and 20 more" in said and "<script>" not in said
    event |= {"skipped": 0, "duplicates": 0, "known": 0, "ignored": {}, "skipped_rows": []}
    assert "left out" not in views.data_summary(RunHistory([event])) and "\n" not in describe(event)


def test_only_knobs_that_differ_are_listed() -> None:
    runs = {"a": RunConfig(rank=4, name="a"), "b": RunConfig(rank=8, name="b"), "c": RunConfig(rank=8, packing=True)}
    assert views.differing(runs) == [["rank", "4", "8", "8"], ["packing", "no", "no", "yes"]]


def test_an_answer_cut_at_the_limit_says_so() -> None:
    cut = protocol.Answer("long", tokens=256, tokens_per_second=28.4, ended="length")
    assert "256 tokens" in columns.progress(cut) and "length limit!" in columns.progress(cut)
    assert "EOS" in columns.progress(replace(cut, ended="eos"))
    assert columns.progress(protocol.Answer()) == "waiting…" and columns.progress(protocol.Answer("x")) == "writing…"


def test_what_data_models_and_people_write_is_escaped() -> None:
    shown = [
        views.headline(NASTY, "running", RunHistory([step(1)])),
        views.outcome("failed", RunHistory([{"t": 0, "kind": "failed", "message": NASTY}]), NASTY, False, False),
        html.marked_row(NASTY, [(NASTY, True)]),
        html.table([NASTY], [[NASTY]]),
        html.log(NASTY),
        html.literal(NASTY),
        html.folded(NASTY, "x"),
        html.listed(NASTY, [NASTY]),
        html.faults([NASTY]),
        chart.line_chart(NASTY, [chart.Series(NASTY, [(0, 1), (1, 2)])]),
        columns.title(NASTY),
        columns.proof({"name": NASTY, "adapter": NASTY}, NASTY, columns.Decoding()),
        html.answer(f"<think>{NASTY}</think>{NASTY}"),
        *(
            message["content"][0]["text"]
            for message in columns.messages([{"role": "user", "content": NASTY}], f"<think>{NASTY}</think>{NASTY}")
        ),
    ]
    assert not [one for one in shown if "<script" in one]


def test_ticks_are_round_and_enclose_the_values() -> None:
    assert chart.ticks(6.7, 7.15, 4) == [6.6, 6.8, 7.0, 7.2]
    for low, high in [(0, 0), (5, 5), (-3, 2), (1e-7, 2e-4), (1, 1e6)]:
        marks = chart.ticks(low, high, 4)
        assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 7


def test_long_series_are_thinned_but_keep_their_ends() -> None:
    points = [(float(x), float(x % 7)) for x in range(5000)]
    kept = chart.thinned(points)
    assert len(kept) <= chart.MAX_POINTS and kept[0] == points[0] and kept[-1] == points[-1]
    assert [x for x, _ in kept] == sorted({x for x, _ in kept})


@pytest.fixture
def fields() -> form.Form:
    with gr.Blocks():
        return form.Form(configs.resolve(preset="demo"), "demo")


def given(fields: form.Form, config: RunConfig, **typed: Any) -> dict[str, Any]:
    """What a listener gets when the form holds a config and then something is typed; browsers send all numbers alike."""
    values = form.to_fields(config) | typed
    values = {name: float(v) if type(v) is int else v for name, v in values.items()}
    return fields.values({fields.knobs[name]: value for name, value in values.items()})


def test_every_knob_has_a_field_with_its_help(fields: form.Form) -> None:
    assert list(fields.knobs) == list(configs.fields())
    for name, field in fields.knobs.items():
        assert field.label and field.info == configs.fields()[name].description


@pytest.mark.parametrize("preset", configs.preset_names())
def test_the_form_gives_the_config_it_was_filled_with(fields: form.Form, preset: str) -> None:
    config = configs.resolve(preset=preset)
    assert configs.make(given(fields, config)) == config


@pytest.mark.parametrize("preset", ["demo", form.OWN])
def test_form_and_command_line_start_the_same_run(
    fields: form.Form, preset: str, tmp_path: Path, store: RunStore
) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n')
    typed = {
        "dataset": str(data),
        "rank": 7,
        "alpha": 14.5,
        "learning_rate": 3e-5,
        "target_modules": "q_proj, v_proj",
        "bias": "all",
        "packing": True,
        "gradient_checkpointing": "none",
        "system_prompt": "Answer 'briefly'.",
        "name": "same",
    }
    config = configs.make(given(fields, configs.resolve(preset="demo"), **typed))
    told = form.command(config, preset, store)
    words = shlex.split(told)
    assert words[:3] == ["python", "app.py", "--headless-train"]
    arguments = flags.headless().parse_args(words[2:])
    knobs = {name: getattr(arguments, name) for name in configs.fields() if hasattr(arguments, name)}
    headless = configs.resolve(knobs, preset=arguments.preset)
    assert headless == config
    assert Path(arguments.adapters_dir) == store.root
    from_page = store.create(config).manifest()
    shutil.rmtree(store.get("same").path)
    assert store.create(headless).manifest() == from_page
    assert json.loads(json.dumps(from_page))["config"]["rank"] == 7


def test_the_command_of_plain_defaults_is_not_taken_for_the_demo(store: RunStore) -> None:
    config = RunConfig()
    assert "--preset demo" in form.command(config, form.OWN, store)
    assert "--preset" not in command_line(RunConfig(base_model="owner/name"))


@pytest.mark.parametrize(
    ("typed", "knob", "sentence"),
    [
        ({"rank": 0}, "rank", "greater than or equal to 1"),
        ({"rank": None}, "rank", "integer"),
        ({"rank": 2.5}, "rank", "integer"),
        ({"dataset": "/nope/missing.json"}, "dataset", "does not exist"),
        ({"base_model": "/nope/model"}, "base_model", "does not exist"),
        ({"base_model": ""}, "base_model", "at least 1"),
        ({"name": "taken"}, "name", "already a run"),
        ({"name": "../x"}, "name", "letters, digits"),
    ],
)
def test_wrong_input_is_told_at_its_field(
    fields: form.Form, store: RunStore, typed: dict[str, Any], knob: str, sentence: str
) -> None:
    store.create(RunConfig(name="taken"))
    _, found = form.judge(given(fields, configs.resolve(preset="demo"), **typed), store)
    assert list(found) == [knob] and sentence in found[knob]
    mark = fields.marks(found)[fields.knobs[knob]]
    assert mark["elem_classes"] == ["fault"] and sentence in mark["info"]


def test_a_good_form_has_no_faults(fields: form.Form, store: RunStore) -> None:
    config, found = form.judge(given(fields, configs.resolve(preset="demo")), store)
    assert config == configs.resolve(preset="demo") and found == {}


def test_a_late_error_is_put_at_the_field_whose_value_it_names() -> None:
    config = RunConfig(base_model="owner/base", dataset="/data/rows.json")
    assert form.field_of(UserError("The hub knows no base model 'owner/base'."), config) == "base_model"
    assert form.field_of(UserError("rows.json row 88 is not JSON."), config) == "dataset"
    assert form.field_of(UserError("The run 'x' is running."), config) == ""


def make_run(store: RunStore, name: str, adapter: bool = True, **knobs: Any) -> None:
    run = store.create(RunConfig(name=name, **knobs))
    log = EventLog(run.events_file)
    log.append("started", pid=1)
    log.append("eval", step=0, loss=2.0, tokens=5)
    log.append("eval", step=9, loss=1.5, tokens=5)
    log.append("finished", step=9, seconds=3.0, loss_before=2.0, loss_after=1.5)
    if adapter:
        (run.path / "adapter_config.json").write_text("{}")
        (run.path / "adapter_model.safetensors").write_text("")


def test_only_adapters_of_the_chosen_base_are_offered(store: RunStore, llama: Path) -> None:
    make_run(store, "one")
    make_run(store, "two", base_model=str(llama))
    make_run(store, "three", adapter=False)
    make_run(store, "four", quant_type="fp4")
    found = summaries(store)
    assert set(offers.bases(found)) == {"demo", str(llama), "demo · fp4"}
    assert offers.adapters(found, "demo") == ["one"]
    said = " ".join(offers.refused(found, "demo"))
    assert f"two: it was trained on another base, {llama}." in said and "three: it has no adapter" in said
    assert set(offers.adapters(found, "owner/typed")) == {"one", "two", "four"}, "a base that no run names is a choice"
    assert offers.refused(found, "owner/typed") == ["three: it has no adapter yet (finished)."]


def test_a_typed_base_takes_the_place_of_the_one_that_runs_name(store: RunStore, llama: Path) -> None:
    make_run(store, "one")
    room = Room(store, None, "base", "chosen", "whole", None, None, {}, [])  # type: ignore[arg-type]
    assert room.asked({"base": "demo", "chosen": ["one"]})[0] == store.get("one").config()
    config, runs = room.asked({"base": f" {llama} ", "chosen": ["one"]})
    assert config.base_model == str(llama) and [run.id for run in runs] == ["one"]
    with pytest.raises(UserError, match="does not exist"):
        room.asked({"base": "/no/such/base", "chosen": ["one"]})
    with pytest.raises(UserError, match="none of the folders"):
        replace(room, store=RunStore(store.root, roots=[])).asked({"base": str(llama), "chosen": ["one"]})


def test_a_new_run_does_not_put_back_what_is_typed_meanwhile(store: RunStore) -> None:
    """The answer to a timer may come after another base was typed: it only says what can be chosen."""
    make_run(store, "one")
    client = CompareClient()
    with gr.Blocks():
        tab = CompareTab(store, client, Endpoint(Batcher(client)))
    updates = tab.refresh("an older look", "demo", ["one"])
    assert updates[tab.base]["choices"] == ["demo"] and "value" not in updates[tab.base]
    assert updates[tab.chosen]["choices"] == ["one"] and "value" not in updates[tab.chosen]
    updates = tab.refresh("an older look", "a base of runs that are gone", ["gone"])
    assert updates[tab.base]["value"] == "demo" and updates[tab.chosen]["value"] == []


def test_a_whole_model_is_one_more_column(store: RunStore, llama: Path, tmp_path: Path) -> None:
    make_run(store, "one")
    room = Room(store, None, "base", "chosen", "whole", None, None, {}, [])  # type: ignore[arg-type]
    given: dict[Any, Any] = {"base": "demo", "chosen": ["one"], "whole": None}
    assert room.load(given).adapters == (str(store.get("one").path),)
    assert room.load(given | {"whole": f" {llama} "}).adapters == (str(store.get("one").path), str(llama))
    assert columns.names(["one"], f"{llama} ") == ["base", "one", llama.name]
    for named in (str(tmp_path), "/no/such/model", "owner/name"):
        with pytest.raises(UserError, match="is no folder of a whole model"):
            room.load(given | {"whole": named})
    with pytest.raises(UserError, match="leave an adapter out"):
        room.load(given | {"chosen": ["one"] * 5, "whole": str(llama)})
    with pytest.raises(UserError, match="none of the folders"):
        guest = replace(room, store=RunStore(store.root, roots=[store.root]))
        guest.load(given | {"whole": str(llama)})


def test_the_table_of_runs(store: RunStore) -> None:
    make_run(store, "one")
    (row,) = [one.row() for one in summaries(store)]
    assert row[:8] == ["one", "finished", "demo", "demo", 9, 2.0, 1.5, -25.0]
    EventLog(store.get("one").events_file).append("started", pid=1, resumed=True)
    assert summaries(store)[0].state == "died"


def test_a_damaged_run_is_shown_and_breaks_nothing(store: RunStore) -> None:
    make_run(store, "one")
    (store.get("one").path / "run.json").write_text("{}")
    (one,) = summaries(store)
    assert one.config is None and one.row()[2] == "(run.json is damaged)"
    assert offers.bases([one]) == [] and "cannot be read" in offers.refused([one], "demo")[0]


def test_addresses_round_trip() -> None:
    assert links.address(links.to("compare", "a-1", "b-2")) == "?tab=compare&run=a-1&run=b-2"


def test_held_out_examples_come_with_the_datas_answer() -> None:
    question, answer = bounded_reading.held_out(configs.resolve(preset="demo"))[0]
    assert question and answer


def test_the_preview_marks_what_is_learned(llama: Path) -> None:
    config = configs.resolve({"base_model": str(llama)}, preset="demo")
    *early, final = preview.steps(config)
    assert early and all("<mark title" not in body for body in early) and "Row 1" in early[0]
    assert final.count("<mark title") == 3 and "301 rows" in final and "its own held-out rows" in final
    marked = final.split('<mark title="trained on">')[1].split("</mark>")[0]
    assert marked.startswith("{&quot;topic&quot;") and marked.endswith("&lt;|im_end|&gt;")


@pytest.mark.slow
def test_the_preview_of_unusable_data_is_a_sentence(tmp_path: Path, llama: Path) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    config = configs.resolve({"base_model": str(llama), "dataset": str(wrong)}, preset="demo")
    answer: dict[str, Any] = {}
    *_, said = preview.steps(config, answer.update)
    assert "1 row cannot be used: fix it, or leave it out." in said and "1 can be used" in said
    assert "<li>row 2: " in preview.at_field(answer["seen"], config)
    leaving_out = config.model_copy(update={"skip_bad_rows": True})
    *_, said = preview.steps(leaving_out)
    assert "1 row that cannot be used is left out" in said and not preview.faulty(answer["seen"], leaving_out)
    wrong.write_text('{"prompt": "a"}\n')
    *_, said = preview.steps(config)
    assert "wrong.jsonl row 1 fits no known format" in said


def test_the_preview_looks_through_all_rows_of_a_large_file(tmp_path: Path, llama: Path) -> None:
    rows = [{"prompt": f"{number}", "completion": "b", "images": "x"} for number in range(2100)] + [
        {"prompt": "a"}
    ] * 30
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = configs.resolve({"base_model": str(llama), "dataset": str(tmp_path / "many.jsonl")}, preset="demo")
    answers: list[dict[str, Any]] = []
    *_, first, final = preview.steps(config, answers.append)
    assert "Of the first 2,000 rows" in first and "Looking through the other rows" in first
    assert "30 rows cannot be used" in final and "images (2,100 rows)" in final and "Looking" not in final
    assert [answer["seen"] is None for answer in answers] == [True, False]
    assert answers[1]["seen"]["skipped"] == 30 and len(answers[1]["seen"]["skipped_rows"]) == 20
    shown = preview.at_field(answers[1]["seen"], config)
    assert shown.count("<li>") == 21 and "row 2101: " in shown and "and 10 more" in shown


class Client(CompareClient):
    """A client without a worker: one column, which says hi."""

    is_loaded = False
    loads = 0
    fails: Exception | None = None

    def _exchange(self, request: protocol.Request) -> Generator[protocol.Event]:
        if isinstance(request, protocol.Load):
            self.loads += 1
            yield protocol.Stage("Loading")
            if self.fails:
                raise self.fails
            self.is_loaded = True
            yield protocol.Loaded([{"name": "base"}])
        else:
            yield from (protocol.Text(0, "hi"), protocol.Done())

    def close(self) -> None:
        self.is_loaded = False


HI: list[list[dict[str, str]]] = [[]]


def test_the_client_loads_once_and_again_when_the_worker_is_gone(store: RunStore) -> None:
    client, load = Client(), columns_of(RunConfig(), [])
    kinds = [type(event) for event in client.ask(load, HI, columns.Decoding())]
    assert kinds == [protocol.Stage, protocol.Loaded, protocol.Text, protocol.Done]
    assert [type(event) for event in client.ask(load, HI, columns.Decoding())] == kinds[1:] and client.loads == 1
    client.is_loaded = False
    assert [type(event) for event in client.ask(load, HI, columns.Decoding())] == kinds and client.loads == 2
    run = store.create(RunConfig())
    weights = run.path / "adapter_model.safetensors"
    for written in (b"a", b"another"):  # by a resumed run over the adapter
        weights.write_bytes(written)
        os.utime(weights, (len(written), len(written)))
        list(client.ask(columns_of(RunConfig(), [run]), HI, columns.Decoding()))
    list(client.ask(columns_of(RunConfig(), [run]), HI, columns.Decoding()))
    assert client.loads == 4 and not client.is_busy


def test_a_client_that_is_closed_after_it_has_loaded_answers_nothing() -> None:
    client = Client()
    events = client.ask(columns_of(RunConfig(), []), HI, columns.Decoding())
    with pytest.raises(UserError, match="closed meanwhile"):
        for event in events:
            if isinstance(event, protocol.Loaded):
                client.close()
    assert not client.is_busy


class Piped(CompareClient):
    """A client whose worker answers every request at once, and in order, into a pipe of its own."""

    is_loaded = True

    def __init__(self) -> None:
        super().__init__()
        self.pipe: list[protocol.Event] = []

    def _send(self, request: protocol.Request) -> None:
        if isinstance(request, protocol.Load):
            self.pipe += [protocol.Stage("Loading"), protocol.Loaded([{"name": request.base_model}])]
        elif isinstance(request, protocol.Ask):
            self.pipe += [protocol.Text(0, "hi"), protocol.Text(0, "!"), protocol.Error("Stopped.", bug=False)]

    def _events(self) -> Iterator[protocol.Event]:
        while self.pipe:
            yield self.pipe.pop(0)


def test_what_a_reader_has_left_is_no_part_of_the_next_load() -> None:
    client = Piped()

    def leave(text: str) -> None:
        raise RuntimeError("the reader left")

    with pytest.raises(RuntimeError, match="the reader left"):
        client.columns("first", "", [], leave)
    assert client.columns("second", "", []) == [{"name": "second"}]
    answers = client.answer(HI, columns.Decoding())
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert client.columns("third", "", []) == [{"name": "third"}] and client.pipe == []
    client.close()


def test_a_bug_of_the_worker_becomes_a_sentence() -> None:
    client = Client()
    client.fails = RuntimeError("CUDA fault")
    with pytest.raises(UserError, match="CUDA fault"):
        list(client.ask(columns_of(RunConfig(), []), HI, columns.Decoding()))
    assert not client.is_busy


def test_every_listener_is_private(store: RunStore) -> None:
    page = app.build_app(store)
    shown = [fn.name for fn in page.fns.values() if fn.api_visibility != "private"]
    assert not shown


def test_no_listener_has_the_browser_mark_components_as_waiting(store: RunStore) -> None:
    """It searches the whole page for each of them, at every message: that cost a core while answers were streamed."""
    page = app.build_app(store)
    marking = [fn.name for fn in page.fns.values() if fn.outputs and fn.show_progress_on != []]
    assert not marking


def test_a_taken_port_is_told_in_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"Port {port} is in use"):
            Address(port=port).free_port()


def test_a_page_that_others_can_reach_always_has_a_password() -> None:
    assert (
        not Address("127.0.0.1").is_reachable and Address("0.0.0.0").is_reachable and Address(share=True).is_reachable
    )
    assert Address().login() is None
    user, password = Address("0.0.0.0").login() or ("", "")
    assert user == "qlora" and len(password) >= 12
    assert Address(auth="me:se:cret").login() == ("me", "se:cret")
    for wrong in ("me", "me:", ":secret"):
        with pytest.raises(UserError, match="--auth"):
            Address(auth=wrong).login()


def test_opening_the_page_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom qlora_gui.ui.app import build_app\nfrom qlora_gui.runs.store import RunStore\n"
        f"build_app(RunStore({str(tmp_path)!r}))\n"
        "print(sorted({'torch', 'transformers', 'peft', 'bitsandbytes'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_presets_are_all_in_the_picker(fields: form.Form) -> None:
    assert [value for _, value in fields.preset.choices] == [*configs.preset_names(), form.OWN]
    assert yaml.safe_load((configs.PRESETS / "demo.yaml").read_text())["base_model"] == "demo"


@pytest.mark.parametrize(("seconds", "drawn"), [(-1, ["", "y", "y", "y"]), (3600, ["y"])])
def test_answers_are_drawn_as_they_grow_but_not_too_often(seconds: float, drawn: list[str]) -> None:
    end = protocol.Ended(0, tokens=1, seconds=1.0, tokens_per_second=1.0, ended="eos")
    events = [protocol.Prompt(0, "x"), protocol.Text(0, "y"), end, protocol.Done()]
    texts = []
    for answers in protocol.growing(events, 1, seconds):
        texts.append(answers[0].text)
    assert texts == drawn and answers[0].ended


def test_pages_that_follow_a_run_share_one_drawing(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(run_view.time, "monotonic", lambda: clock[0])
    run = store.create(RunConfig())
    log = EventLog(run.events_file)
    log.append("started")
    log.append("finished", step=1)
    first = run_view.draw(run)
    assert first.state == "finished" and not first.live
    assert run_view.draw(store.get(run.id)) is first
    log.append("started")  # resumed, and then killed
    now = run_view.draw(run)
    assert now.state == "died" and now.face != first.face, "another state is seen at once"
    log.append("step", **{key: value for key, value in step(3).items() if key not in ("t", "kind")})
    assert run_view.draw(run) is now
    clock[0] += 1.0
    assert "step 3 of 40" in run_view.draw(run).head


def test_a_run_of_a_preset_is_known_as_such() -> None:
    assert form.preset_of(configs.resolve(preset="experiment-2")) == "experiment-2"
    assert form.preset_of(configs.resolve({"rank": 3}, preset="demo")) == form.OWN


def test_a_loss_that_is_no_number_is_said() -> None:
    step = {"step": 3, "max_steps": 9, "loss": None, "learning_rate": 1e-3, "grad_norm": None, "tokens_per_second": 1.0}
    assert "loss not a number" in describe({"kind": "step", "memory": 0, "eta": 5.0, **step})
    assert "held-out loss not a number" in describe({"kind": "eval", "step": 3, "loss": None})
    assert RunHistory([{"kind": "step", **step}]).points(Step, "loss") == []


def test_one_row_of_a_column_is_not_called_rows() -> None:
    counts = {"used": 6, "held_out": 1, "truncated": 0, "dropped": 0, "dropped_rows": [], "ignored": {"images": 1}}
    assert "images (1 row)." in describe({"kind": "data", **counts})  # type: ignore[typeddict-item]


@pytest.mark.slow
def test_the_preview_says_which_rows_outgrow_the_base(tmp_path: Path, llama: Path) -> None:
    base = shutil.copytree(llama, tmp_path / "short")
    told = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(told | {"max_position_embeddings": 128}))
    for folder, longer in ((base, True), (llama, False)):
        *_, said = preview.steps(configs.resolve({"base_model": str(folder)}, preset="demo"))
        assert ("are longer than the 128 tokens" in said and "max_length 128 cuts it off" in said) == longer


def test_every_tab_has_an_address(store: RunStore) -> None:
    page = app.build_app(store)
    names = [block.id for block in page.blocks.values() if isinstance(block, gr.Tab)]
    assert tuple(names) == links.TABS
