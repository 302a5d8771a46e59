"""Evaluations: mixed batches measure what clean models measure, answers are Compare's, and a verdict follows the numbers."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from qlora_gui.cli import main
from qlora_gui.data import load, tokenization
from qlora_gui.errors import UserError
from qlora_gui.evaluation import job, metrics, results, verdict
from qlora_gui.evaluation import run as evaluate
from qlora_gui.inference import evidence, generate, model_probe, protocol, score
from qlora_gui.inference.columns import Columns
from qlora_gui.inference.multi_lora import BASE
from qlora_gui.inference.sampling import Decoding
from qlora_gui.models import base as bases
from qlora_gui.runs import launch
from qlora_gui.runs.events import EventLog
from qlora_gui.runs.store import Run, RunStore
from tests.adapters import fresh
from tests.conftest import train

ROWS = 7
BIASES = ("none", "lora_only", "all")


@pytest.fixture(scope="module")
def columns(bloom: Path, bloom_runs: dict[str, Run]) -> Columns:
    """The base and an adapter of each kind of biases."""
    made = Columns()
    made.load((str(bloom), "", "nf4", True), [bloom_runs[bias].path for bias in BIASES], lambda text: None)
    return made


@pytest.fixture(scope="module")
def encoded(columns: Columns) -> list[tokenization.Encoded]:
    assert columns.base
    found, _ = tokenization.encode_all((load.load("demo").held_out or [])[:ROWS], columns.chat(None), 256)
    assert len(found) == ROWS
    return found


@pytest.fixture(scope="module")
def measured(columns: Columns, encoded: list[tokenization.Encoded]) -> dict[int, protocol.Measured]:
    assert columns.base and columns.multi_lora
    found: dict[int, protocol.Measured] = {}
    task = score.Task(16, columns.chat(None).stops)
    score.rows(columns.base, columns.multi_lora, 4, encoded, task, lambda row: found.update({row.number: row}))
    assert sorted(found) == list(range(ROWS))
    return found


def test_a_batch_that_memory_is_too_short_for_is_read_in_halves(
    columns: Columns,
    encoded: list[tokenization.Encoded],
    measured: dict[int, protocol.Measured],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert columns.base and columns.multi_lora
    read, sizes = score._Asked.read, []

    def short(self: score._Asked, batch: score._Batch, *rest: Any) -> Any:
        sizes.append(len(batch.numbers))
        if len(batch.numbers) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return read(self, batch, *rest)

    monkeypatch.setattr(score._Asked, "read", short)
    found: dict[int, protocol.Measured] = {}
    task = score.Task(0)
    score.rows(columns.base, columns.multi_lora, 4, encoded, task, lambda row: found.update({row.number: row}))
    assert sizes == [7, 3, 3, 1] and sorted(found) == list(range(ROWS))
    for number, row in found.items():
        assert row.loss == pytest.approx(measured[number].loss, rel=1e-4)
    monkeypatch.setattr(score, "MOST_PROMPTS", 1)
    monkeypatch.setattr(score._Asked, "read", lambda *given: (_ for _ in ()).throw(torch.OutOfMemoryError("short")))
    with pytest.raises(torch.OutOfMemoryError):
        score.rows(columns.base, columns.multi_lora, 4, encoded, task, print)


@torch.no_grad()
def test_mixed_losses_equal_those_of_clean_models(
    bloom: Path,
    bloom_runs: dict[str, Run],
    columns: Columns,
    encoded: list[tokenization.Encoded],
    measured: dict[int, protocol.Measured],
) -> None:
    """Base, none, lora_only and all in one batch, against each loaded freshly and alone, row by row: loss, KL, P(EOS)."""
    assert columns.base
    eos = columns.base.eos
    logs: dict[int, torch.Tensor] = {}
    for column, bias in enumerate(("base", *BIASES)):
        model = fresh(bloom, bloom_runs[bias].path if column else None)
        for number, row in enumerate(encoded):
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].float()
            labels = torch.tensor(row.labels[1:])
            expected = float(cross_entropy(logits, labels, ignore_index=tokenization.IGNORED, reduction="sum"))
            assert measured[number].loss[column] == pytest.approx(expected, rel=2e-5)
            log = logits[labels != tokenization.IGNORED].log_softmax(-1)
            base = logs.setdefault(number, log)
            kl = float((log.exp() * (log - base)).sum())
            assert measured[number].kl[column] == pytest.approx(kl, rel=1e-3, abs=1e-4)
            assert [label for label in row.labels if label != tokenization.IGNORED][-1] in eos
            assert measured[number].eos[column] == pytest.approx(float(log[-1].exp()[sorted(eos)].sum()), rel=1e-3)


def test_answers_are_those_of_compare(columns: Columns, measured: dict[int, protocol.Measured]) -> None:
    """Rows that leave the batch, and prompts read together with their references, change no answer."""
    examples = (load.load("demo").held_out or [])[:ROWS]
    differ = 0
    for number, example in enumerate(examples):
        events: list[protocol.Event] = []
        decoding = Decoding(greedy=True, max_new_tokens=16)
        columns.answer([example["messages"][:-1]] * 4, decoding, events.append, lambda: False)
        texts = [answer.text for answer in protocol.collect(events, 4)]
        assert measured[number].text == texts
        differ += len(set(texts)) > 1
    assert differ  # else any mix-up of columns would go unseen


def test_rows_that_end_leave_and_the_others_go_on(columns: Columns, encoded: list[tokenization.Encoded]) -> None:
    """With an end mark that comes soon for some rows, every answer is the beginning of what it is without one."""
    assert columns.base and columns.multi_lora
    base = columns.base
    ids = torch.tensor([row.input_ids[:20] for row in encoded])
    active = [BASE, BASE, 0, 0, 1, 2, 2]

    def run(eos: set[int]) -> list[list[int]]:
        rows = generate.Rows(base.tokenizer, [generate.Row([], eos) for _ in active], lambda event: None)
        with columns.multi_lora.activate(active) if columns.multi_lora else None:  # type: ignore[union-attr]
            out = base.model(input_ids=ids[:, :-1], attention_mask=torch.ones_like(ids[:, :-1]), use_cache=True)
        start = generate.Started(out.past_key_values, ids[:, -1], torch.ones_like(ids), list(active))
        assert columns.multi_lora
        generate.greedy(base.model, columns.multi_lora, start, rows, 24, lambda: False)
        return [row.ids for row in rows.rows]

    whole = run(set())
    assert all(len(one) == 24 for one in whole)
    said = [set(one[2:12]) for one in whole]
    mark = max(sorted(set().union(*said)), key=lambda token: sum(token in one for one in said))
    assert sum(mark in one for one in whole) >= 2
    assert run({mark}) == [one[: one.index(mark)] if mark in one else one for one in whole]


def test_rows_side_by_side_equal_rows_one_by_one(columns: Columns, encoded: list[tokenization.Encoded]) -> None:
    """Blocks of rows of one adapter, of equal and of unequal length, around rows of the base."""
    assert columns.base and columns.multi_lora
    ids = torch.tensor([row.input_ids[:24] for row in encoded])
    for active in ([0, 0, 0, 1, 1, 1, BASE], [BASE, 2, 2, BASE, 0, 1, 1], [2, 1, 0, BASE, 0, 1, 2]):
        with torch.no_grad(), columns.multi_lora.activate(active):
            mixed = columns.base.model(input_ids=ids).logits
        for place, adapter in enumerate(active):
            with torch.no_grad(), columns.multi_lora.activate([adapter]):
                alone = columns.base.model(input_ids=ids[place : place + 1]).logits[0]
            assert torch.allclose(mixed[place], alone, rtol=1e-4, atol=1e-4)


def test_facts_of_an_adapter(columns: Columns, bloom_runs: dict[str, Run]) -> None:
    assert columns.base
    for bias, adapter in zip(BIASES, columns.adapters, strict=True):
        found = evidence.facts(columns, adapter)
        assert found["linears"] == found["linears_available"] == 12
        assert found["b_zero_share"] == 0 and 0 < found["delta_ratio"] < 1
        assert (found["trained_biases"] > 0) == (bias != "none") and not found["lora_only_lost"]
        assert found["no_base_template"] and not found["template_differs"] and not found["vocab_differs"]
        name, lora = next(iter(adapter.loras.items()))
        weight = dict(columns.base.model.named_modules())[name].weight.float()
        one = float((lora.scaling * lora.b @ lora.a).norm() / weight.norm())
        assert evidence._delta_ratio({name: columns.base.model.get_submodule(name)}, type(adapter)(
            adapter.folder, adapter.config, "", {name: lora}, {}, None, {})) == pytest.approx(one, rel=1e-4)  # fmt: skip


@pytest.fixture(scope="module")
def llama_run(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Run:
    store = RunStore(tmp_path_factory.mktemp("llama-run"))
    return train(store, base_model=str(llama), name="one", probe_prompts=2, probe_tokens=8)


@pytest.mark.slow
def test_probes_are_answered_at_every_measurement(llama_run: Run) -> None:
    events = llama_run.events()[0]
    probes = [event for event in events if event["kind"] == "probe"]
    assert (
        [event["step"] for event in probes]
        == [event["step"] for event in events if event["kind"] == "eval"]
        == [0, 3, 6]
    )
    held_out = load.load("demo").held_out or []
    for event in probes:
        assert [one["prompt"] for one in event["answers"]] == [row["messages"][-2]["content"] for row in held_out[:2]]
    assert len({json.dumps(event["answers"]) for event in probes}) > 1  # six steps at 3e-3 change a small model


@pytest.mark.slow
def test_probes_leave_the_losses_as_they_are(store: RunStore, llama: Path, llama_run: Run) -> None:
    quiet = train(store, base_model=str(llama), name="quiet", probe_prompts=0)
    losses = [
        [event["loss"] for event in run.events()[0] if event["kind"] in ("step", "eval")] for run in (llama_run, quiet)
    ]
    assert losses[0] == losses[1] and losses[0]


def test_evaluating_in_a_child_writes_beside_the_adapter(llama_run: Run, tmp_path: Path) -> None:
    job.start([llama_run])
    assert job.state(llama_run).running
    with pytest.raises(UserError, match="being evaluated already"):
        job.start([llama_run])
    deadline = time.monotonic() + 120
    while job.state(llama_run).running and time.monotonic() < deadline:
        time.sleep(0.2)
    assert job.state(llama_run) == job.State(False, share=1.0), (llama_run.path / "evaluate.log").read_text()
    found = job.result(llama_run)
    assert found and found.loss.rows == len(load.load("demo").held_out or [])
    assert found.loss.low <= found.loss.difference <= found.loss.high
    end = llama_run.events()[0][-1]
    assert (found.loss.difference < 0) == (end["loss_after"] < end["loss_before"])
    assert found.examples and len(found.examples) == 5 and found.texts and found.texts.count == found.loss.rows
    assert found.dependence and 40 <= found.dependence.rows <= found.loss.rows
    assert found.general and found.general.tokens and found.general.tokens > 500
    assert "held-out loss" in "\n".join(results.lines(found))
    later = Run(shutil.copytree(llama_run.path, tmp_path / "later"))
    with later.events_file.open("a") as file:
        file.write(json.dumps({"t": 1.0, "kind": "saved", "step": 9, "sha256": "another"}) + "\n")
    assert job.result(later) is None  # it was of the adapter before


def test_a_killed_evaluation_is_a_sentence(llama_run: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(llama_run.path, tmp_path / "killed", ignore=shutil.ignore_patterns("evalua*")))
    job.start([run])
    for process in launch.processes_of(job.MODULE, run):  # other tests evaluate at the same time
        process.kill()
    deadline = time.monotonic() + 10
    while job.state(run).running and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "ended without an error message" in job.state(run).fault
    assert job.result(run) is None


@pytest.mark.slow
def test_rows_that_another_adapter_learned_are_left_out(store: RunStore, llama: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"Say the number {number}.", "output": str(number)} for number in range(20)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    knobs = {"base_model": str(llama), "dataset": str(tmp_path / "rows.json"), "eval_fraction": 0.5, "max_steps": 1}
    runs = [train(store, name=f"run-{seed}", seed=seed, **knobs) for seed in (1, 2)]
    question = evaluate._question([run.path for run in runs], None, job.Settings(), False, print)
    asked = {example["messages"][0]["content"] for example in question.examples}
    learned = {example["messages"][0]["content"] for run in runs for example in evaluate._trained_rows(run, print)}
    assert asked and not asked & learned and question.shared > 0


@pytest.mark.parametrize(
    ("adapters", "data", "settings", "message"),
    [
        ([], None, {}, "give 1 to 5"),
        (["a"] * 6, None, {}, "give 1 to 5"),
        (["missing"], None, {}, "There is no adapter"),
        (["a"], None, {"rows": 1}, "at least 2 rows"),
        (["a"], None, {"max_new_tokens": 5000}, "choose 0 to 4096"),
    ],
)
def test_wrong_questions_are_refused(
    adapters: list[str], data: str | None, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate.evaluate([Path(one) for one in adapters], data, job.Settings(**settings), lambda text: None)


@pytest.mark.slow
def test_faulty_rows_of_other_data_are_left_out_where_one_asks_and_what_is_not_used_is_said(
    llama_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"instruction": f"Say {number}.", "output": str(number), "images": ["a.png"]} for number in range(3)]
    data = tmp_path / "mine.json"
    data.write_text(json.dumps([*rows, {"instruction": "Say nothing.", "output": None}]))
    words = ["--headless-evaluate", "--adapters", str(llama_run.path), "--data", str(data), "--max-new-tokens", "0"]
    assert main.main(words) == 2
    assert "1 of 4 rows cannot be used" in capsys.readouterr().err
    out = tmp_path / "found.json"
    assert main.main([*words, "--skip-bad-rows", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "mine.json row 4 left out: 'output' is null" in said
    assert "mine.json: 1 row that cannot be used is left out." in said
    assert "mine.json: Not used, though it may change what the rows mean: images (3 rows)." in said
    assert len(json.loads(out.read_text())["rows"]) == 3
    assert main.main([*words, "--dataset-format", "text"]) == 2
    assert "'text' is missing" in capsys.readouterr().err


def test_foreign_answers_follow_other_prompts() -> None:
    examples = load.load("demo").held_out or []
    found = evaluate.foreign(examples)
    assert len(found) == len(examples)
    for own, other in zip(examples, found, strict=True):
        assert other["messages"][-1] == own["messages"][-1] and other["row"] == own["row"]
        assert other["messages"][0] != own["messages"][0]


def test_what_is_counted_in_texts() -> None:
    loop = "go on and on " * 30
    assert metrics.repetition(loop) > 0.9 and metrics.repetition("one two three four five six") == 0
    assert metrics.compression(loop) > 5 > metrics.compression("Nothing here is said twice, is it? Well, perhaps.")
    assert metrics.distinct(["a b a b"], 1) == 0.5 and metrics.distinct(["a b a b"], 2) == pytest.approx(2 / 3)
    known = metrics.grams(["one two three four five six seven eight nine"])
    assert metrics.copied("zero one two three four five six seven eight", known) == pytest.approx(8 / 9)
    assert metrics.copied("one two three", known) == 0
    told = metrics.measure_answers(
        metrics.Side(
            answers=['{"a": 1}', "", "no json"],
            ended=["eos", "length", "stop string"],
            tokens=[5, 0, 3],
            references=['{"a": 1}', '{"b": 2}', "text"],
        )
    )
    assert told["ended_by_eos"] == pytest.approx(2 / 3) and told["ended_by_length"] == told["empty"] == pytest.approx(
        1 / 3
    )
    assert told["exact"] == pytest.approx(1 / 3) and told["json_valid"] == 0.5
    assert told["chrf"] is not None and 0 < told["chrf"] < 100 and told["rouge_l"] == pytest.approx(1 / 3)
    without = metrics.measure_answers(metrics.Side(answers=["hello"], ended=["eos"], tokens=[1], references=[None]))
    assert without["chrf"] is None and without["exact"] is None and without["json_valid"] is None


TEXTS = {"ended_by_eos": 0.9, "rep4": 0.1, "empty": 0.0}


@pytest.mark.parametrize(
    ("loss", "adapter", "dependence", "kind", "says"),
    [
        ((-0.44, -0.51, -0.37, 0.001), {}, None, "better", "loss -0.44 [-0.51, -0.37] on 100 held-out rows"),
        ((0.3, 0.2, 0.4, 0.001), {}, None, "worse", "Worse: loss +0.30"),
        ((-0.05, -0.2, 0.1, 0.4), {}, None, "unclear", "Not enough evidence"),
        ((-0.2, -0.3, -0.1, 0.2), {}, None, "unclear", "Not enough evidence"),  # p, corrected, says no
        ((-0.4, -0.5, -0.3, 0.001), {"ended_by_eos": 0.1}, None, "worse", "only 10% of its answers end properly"),
        ((-0.4, -0.5, -0.3, 0.001), {"rep4": 0.8}, None, "worse", "80% of what it writes"),
        ((-0.05, -0.2, 0.1, 0.4), {"empty": 0.5}, None, "worse", "50% of its answers are empty"),
        ((-0.4, -0.5, -0.3, 0.001), {}, (0.9, 0.1, -0.9, -0.7), "unclear", "depend less on the prompt"),
        ((-0.4, -0.5, -0.3, 0.001), {}, (0.9, 0.8, -0.3, 0.1), "better", "Better on the task"),
    ],
)
def test_the_verdict_follows_the_numbers(
    loss: tuple[float, ...], adapter: dict[str, float], dependence: Any, kind: str, says: str
) -> None:
    found: dict[str, Any] = {
        "loss": dict(zip(("difference", "low", "high", "p_holm"), loss, strict=True)) | {"rows": 100},
        "texts": {"base": TEXTS, "adapter": TEXTS | adapter},
        "dependence": dependence and dict(zip(("base", "adapter", "low", "high"), dependence, strict=True)),
    }
    told = verdict.decide(found)
    assert told["kind"] == kind and says in told["text"]


def test_bases_are_told_apart_by_their_bytes_a_token(bloom: Path, llama: Path) -> None:
    for base, heads in ((bloom, 4), (llama, 2)):
        model = bases.load_model(str(base), "nf4", True, torch.device("cpu"), torch.float32)
        assert model_probe.ask(model).token_bytes == 2 * 3 * heads * 16 * 4
        cache = model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert held == 3 * model_probe.ask(model).token_bytes


def test_an_evaluation_that_is_starting_is_not_called_gone(llama_run: Run, tmp_path: Path) -> None:
    """Its child reads torch from the disk before it takes the lock; a page that looks meanwhile is not told a fault."""
    run = Run(shutil.copytree(llama_run.path, tmp_path / "slow", ignore=shutil.ignore_patterns("evalua*")))
    EventLog(run.path / job.PROGRESS).append("stage", text="Starting")
    assert "ended without an error message" in job.state(run).fault
    command = [sys.executable, "-c", "import time; time.sleep(60)", job.MODULE, str(run.path)]
    child = subprocess.Popen(command)
    try:
        assert job.state(run) == job.State(True, "Starting")
        with pytest.raises(UserError, match="is being evaluated already"):
            job.start([run])
    finally:
        child.kill()
        child.wait()
    assert "ended without an error message" in job.state(run).fault


def test_an_evaluation_that_ends_at_once_says_its_last_words(
    llama_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(shutil.copytree(llama_run.path, tmp_path / "broken", ignore=shutil.ignore_patterns("evalua*")))
    (tmp_path / "broken_module.py").write_text("raise SystemExit('no library of that name')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(job, "JOB", replace(job.JOB, module="broken_module"))
    with pytest.raises(UserError, match="ended at once: no library of that name"):
        job.start([run])
    assert job.state(run) == job.State(False, fault="The evaluation ended at once: no library of that name")
