"""A run's history: every field that is written is declared, one rule says how a run ran, and odd or old folders are read."""

import ast
import copy
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qlora_gui import diagnostics, report
from qlora_gui.config import RunConfig, make
from qlora_gui.evaluation import job
from qlora_gui.report.collect import facts_of
from qlora_gui.runs import event_file
from qlora_gui.runs.events import KINDS, Base, Data, EventLog, OomReport, Step, names
from qlora_gui.runs.history import RunHistory
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.training import oom
from qlora_gui.ui import actions, run_view
from qlora_gui.ui.compare import offers
from qlora_gui.ui.runs.index import summaries
from tests.factories import GOOD, Made, healthy_evaluation, healthy_events

PACKAGE = Path(__file__).parents[2] / "qlora_gui"


def test_every_kind_and_field_that_is_written_is_declared() -> None:
    """Of every call of `append` with a kind; fields given as ** are of real runs (`test_training`)."""
    written = 0
    for path in PACKAGE.rglob("*.py"):
        for call in (
            node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        ):
            if re.search(r"(\blog|log_events|EventLog\(.*\))\.append$", ast.unparse(call.func)):
                for kind in re.findall(r"'(\w+)'", ast.unparse(call.args[0])):
                    fields = {keyword.arg for keyword in call.keywords} - {None}
                    assert fields <= set(names(KINDS[kind])), (path.name, kind)
                    written += 1
    assert written > 20


def test_a_declared_field_is_read_as_it_was_written(store: RunStore) -> None:
    run = store.create(make({"name": "one"}))
    log = EventLog(run.events_file)
    log.append("step", step=1, max_steps=4, loss=float("nan"), grad_norm=float("inf"), a_later_version="x")
    log.append("of_a_later_version", step=9)
    [step] = run.history().all(Step)
    assert (step.step, step.loss, step.memory, step.nulls) == (1, None, None, {"loss", "grad_norm"})


CHANGED = {"batch_size": 1, "gradient_accumulation": 8, "gradient_checkpointing": "all"}
STARTED, FIT = {"kind": "started"}, {"kind": "fit", "text": "smaller", "knobs": CHANGED}


def base(level: str | None) -> dict[str, Any]:
    return {"kind": "base", "name": "demo", "device": "cpu"} | ({"gradient_checkpointing": level} if level else {})


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], {}),
        ([STARTED, base("every-2")], {"gradient_checkpointing": "every-2"}),
        ([STARTED, base("every-2"), FIT], CHANGED),
        ([STARTED, base(None), FIT], CHANGED),
        ([STARTED, base("none"), FIT, STARTED, base("none")], {"gradient_checkpointing": "none"}),
        ([STARTED, base("none"), FIT, STARTED, {"kind": "failed", "message": "no checkpoint"}], CHANGED),
        ([STARTED, base("none"), {**FIT, "knobs": {"batch_size": 10**9}}], {}),
        ([STARTED, base("no such level")], {}),
    ],
    ids=["nothing", "settled", "fitted", "old", "resumed on a larger card", "not resumed", "strange", "of a later version"],
)  # fmt: skip
def test_one_rule_says_how_a_run_ran(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, events: list[dict[str, Any]], expected: dict[str, Any]
) -> None:
    """The report, the OOM report and Train again take the same config."""
    run = store.create(make({"name": "one", "batch_size": 8, "gradient_accumulation": 1}))
    as_it_ran = make(run.config().model_dump() | expected)
    for event in events:
        EventLog(run.events_file).append(**event)
    assert run.history().config_as_it_ran(run.config()) == as_it_ran
    assert facts_of(store).experiments[0].config == as_it_ran

    taken: list[RunConfig] = []
    monkeypatch.setattr(actions, "start", lambda store, config: (taken.append(config), SimpleNamespace(id="next"))[1])
    actions.again(store, lambda: None, run.id, {"rank": 4})
    monkeypatch.setattr(oom, "plan", lambda config, *rest: (taken.append(config), SimpleNamespace(total=1))[1])
    monkeypatch.setattr(oom.advice, "changes", lambda config, *rest: (taken.append(config), [])[1])
    oom.describe(run)
    assert taken == [as_it_ran.model_copy(update={"rank": 4, "name": ""}), as_it_ran, as_it_ran]


def test_a_strangers_fit_changes_nothing_but_the_size_of_a_step(store: RunStore) -> None:
    config = make({"dataset": "demo"})
    event = {"kind": "fit", "knobs": {"dataset": "/etc/passwd", "batch_size": 2}}
    assert RunHistory([event]).config_as_it_ran(config) == config.model_copy(update={"batch_size": 2})


ODD: list[Any] = [None, True, 0, -1, 10**400, 1e300, "x", [], [3], {}, {"adapter": None}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def changed(value: Any, draw: Any) -> Any:
    """A JSON value with one of its parts gone, or something else; or it itself is."""
    value = copy.copy(value)
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 4)) == 0:
        return draw(JSON)
    place = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    if draw(st.integers(0, 4)) == 0:
        del value[place]
    else:
        value[place] = changed(value[place], draw)
    return value


def each_changed(value: Any) -> Iterator[Any]:
    """A JSON value with each of its parts gone, and replaced by each odd value; these too."""
    yield from ODD
    if isinstance(value, dict):
        for name, part in value.items():
            yield {key: other for key, other in value.items() if key != name}
            yield from (value | {name: other} for other in each_changed(part))


def test_no_odd_evaluation_ends_the_diagnostics() -> None:
    config, history, tried = make({"bias": "lora_only"}), RunHistory(), 0
    for part, value in healthy_evaluation().items():
        for odd in each_changed(value):
            diagnostics.after(config, history, healthy_evaluation() | {part: odd})
            tried += 1
    assert tried > 900


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_odd_event_or_evaluation_ends_the_diagnostics_or_the_report(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = RunStore(tmp_path_factory.mktemp("odd"))
    made = Made(store, "odd").trained().evaluated()
    stored = json.loads((made.run.path / job.FILE).read_text())
    stored = healthy_evaluation() | stored | {"adapter_facts": healthy_evaluation()["adapter_facts"]}
    out_of_memory = {
        "held_by": [{"name": "x", "pid": 1, "bytes": 2}],
        "changes": [],
        "total": 9,
        "free": 8,
        "measured": 7,
    }
    data_of_now = {"t": 1.0, "kind": "data"} | GOOD["data"]
    failed = {"t": 300.0, "kind": "failed", "message": "Out of memory.", "autopsy": out_of_memory}
    memory = {"t": 1.0, "kind": "memory", "predicted": 9, "measured": 8}
    events: list[Any] = [*healthy_events(), memory, data_of_now, *([failed] if data.draw(st.booleans()) else [])]
    places = data.draw(st.lists(st.integers(0, len(events) - 1), max_size=6))
    for place in (-1, -2, *places):
        events[place] = changed(events[place], data.draw)
    for _ in range(data.draw(st.integers(0, 3))):
        stored = changed(stored, data.draw)
    made.run.events_file.write_text("".join(json.dumps(event) + "\n" for event in events))
    (made.run.path / job.FILE).write_text(json.dumps(stored))
    try:
        config, history = made.run.config(), made.run.history()
        diagnostics.during(config, history)
        evaluation = job.result(made.run)
        diagnostics.after(config, history, evaluation.parts() if evaluation else None)
        diagnostics.after(config, history, stored if isinstance(stored, dict) else None)
        blocks = report.written(store)
        for render in report.RENDERERS.values():
            render(blocks)
    finally:
        shutil.rmtree(store.root)
        event_file._known.clear()


@pytest.fixture
def old(store: RunStore) -> Run:
    """A run as the program wrote it before it had a version number."""
    run = Run(store.root / "brave-otter")
    run.path.mkdir(parents=True)
    config = {
        "name": "", "base_model": "bigscience/bloom-560m", "revision": "", "dataset": "demo", "dataset_format": "auto",
        "dataset_split": "train", "system_prompt": "", "max_length": 512, "eval_fraction": 0.1, "rank": 20, "alpha": 20.0,
        "dropout": 0.05, "bias": "all", "target_modules": "all-linear", "use_rslora": False, "quant_type": "nf4",
        "double_quant": True, "epochs": 3.0, "max_steps": 0, "learning_rate": 2e-4, "lr_scheduler": "cosine",
        "warmup_ratio": 0.03, "weight_decay": 0.0, "max_grad_norm": 0.3, "optimizer": "adamw_torch_fused", "seed": 42,
        "batch_size": 4, "gradient_accumulation": 4, "gradient_checkpointing": True, "packing": False,
        "logging_steps": 5, "eval_steps": 50, "save_steps": 50, "report_to": "none",
    }  # fmt: skip
    manifest = {
        "schema": 1,
        "config": config,
        "versions": {"torch": "2.13.0", "transformers": "5.0.0", "peft": "0.21.2"},
        "dataset": {"name": "demo", "train.jsonl": "a" * 64, "heldout.jsonl": "b" * 64},
    }
    (run.path / "run.json").write_text(json.dumps(manifest))
    step = {"kind": "step", "max_steps": 57, "learning_rate": 2e-4, "grad_norm": 0.5, "tokens_per_second": 90.0}
    events: list[dict[str, Any]] = [
        {"kind": "started", "pid": 7, "resumed": False},
        {"kind": "stage", "text": "Finding the base model"},
        {
            "kind": "data", "format": "messages", "used": 301, "held_out": 44, "truncated": 2, "dropped": 1,
            "dropped_rows": [{"row": 9, "reason": "empty"}], "tokens": 30000, "supervised": 12000, "packed_rows": None,
        },
        {
            "kind": "base", "name": "bigscience/bloom-560m", "revision": "abc", "fingerprint": "f" * 16,
            "template": "3c2d07a8f2b1", "device": "cpu", "dtype": "bfloat16", "trained": 5000, "biases": 90, "layers": 96,
        },
        {"kind": "stage", "text": "Training"},
        {"kind": "eval", "step": 0, "loss": 2.0, "tokens": 2200},
        step | {"step": 1, "epoch": 0.05, "loss": 2.1, "memory": 2**30, "eta": 90.0},
        step | {"step": 57, "epoch": 3.0, "loss": 1.1, "memory": 2**30, "eta": 0.0},
        {"kind": "eval", "step": 57, "loss": 1.2, "tokens": 2200},
        {"kind": "saved", "step": 57, "sha256": "c" * 64, "bytes": 9},
        {"kind": "finished", "step": 57, "seconds": 75.0, "loss_before": 2.0, "loss_after": 1.2},
    ]  # fmt: skip
    lines = [json.dumps({"t": 1789000000.0 + place} | event) for place, event in enumerate(events)]
    run.events_file.write_text("\n".join(lines) + "\n")
    run.log_file.write_text("step 57/57\n")
    (run.path / "adapter_model.safetensors").write_bytes(b"")
    (run.path / "adapter_config.json").write_text("{}")
    return run


def test_a_run_of_the_first_version_is_still_read_everywhere(store: RunStore, old: Run) -> None:
    [summary] = summaries(store)
    assert (summary.state, summary.step, summary.before, summary.after, summary.adapter) == (
        "finished",
        57,
        2.0,
        1.2,
        True,
    )
    assert summary.config and summary.config.gradient_checkpointing == "all"
    assert offers.adapters([summary], "bigscience/bloom-560m") == [old.id] and not offers.refused([summary], "")

    now = run_view.Drawing(old, summary.state)
    assert "step 57 of 57" in now.head and "40% lower" in now.overview and "skipped" not in now.overview
    assert "301 rows to train on" in now.data and "row 9: empty" in now.data and "<svg" in now.plots
    assert "1.2000" in now.numbers and now.probes == ""

    assert not diagnostics.during(old.config(), old.history())[1:]
    found = {finding.check for finding in diagnostics.after(old.config(), old.history(), job.result(old))}
    assert found == {"few_steps", "base_without_template"}
    blocks = report.written(store)
    text = report.RENDERERS[".md"](blocks)
    assert "2.000 (step 0) → 1.200 (step 57)" in text and "Not evaluated." in text and "1:15" in text
    data, loaded = old.history().latest(Data), old.history().latest(Base)
    assert data and data.facts is None and loaded and loaded.processes == 1


def test_an_oom_report_has_only_what_is_declared(store: RunStore) -> None:
    run = store.create(make({"name": "dead"}))
    assert oom.describe(run)["autopsy"].keys() <= OomReport.__annotations__.keys()
