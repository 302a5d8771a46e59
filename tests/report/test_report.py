"""The report says what the folders hold and no more, and nothing in them comes out as anything but text."""

import json
import math
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from markdown_it import MarkdownIt

from qlora_gui import diagnostics
from qlora_gui.cli import evaluate
from qlora_gui.cli.report import report
from qlora_gui.errors import UserError
from qlora_gui.evaluation import job, metrics, results, stats
from qlora_gui.inference import protocol
from qlora_gui.preferences.votes import Column, Vote, VoteLog
from qlora_gui.report import collect, comparability, html, markdown, observations, written
from qlora_gui.report import text as words
from qlora_gui.report.blocks import Answer, SideBySide, Table
from qlora_gui.report.facts import Experiment, Observation
from qlora_gui.runs.curves import Series
from qlora_gui.runs.store import Run, RunStore
from qlora_gui.ui import evaluation_views, links
from qlora_gui.ui.rendering import chart
from qlora_gui.ui.report import tab
from tests.factories import DATA, GB, Made, rows

NASTY = "<script>alert(1)</script> | `x` ]]> <img src=http://evil.example/x onerror=alert(2)> **b** [l](http://evil.example) \"' &amp;"


def vote(log: VoteLog, columns: list[tuple[str, str | None]], choice: int | str, number: int, **more: Any) -> Vote:
    """One vote on a prompt of its own."""
    count = len(columns)
    made = Vote(
        session="s",
        prompt=f"prompt {number}",
        messages=[{"role": "user", "content": f"prompt {number}"}],
        columns=tuple(Column(name, sha) for name, sha in columns),
        order=tuple(range(count)),
        choice=choice,
        answers=("a",) * count,
        tokens=(10,) * count,
        base={"fingerprint": "bloom-small"},
        **more,
    )
    log.add(made)
    return made


def said(store: RunStore, *ids: str) -> list[Observation]:
    return [one for _, found in observations.derive(collect.facts_of(store, ids)) for one in found]


def statements(store: RunStore, *ids: str) -> str:
    return "\n".join(f"{one.statement} {one.evidence}" for one in said(store, *ids))


def one(store: RunStore, run_id: str) -> Experiment:
    return collect.facts_of(store, [run_id]).experiments[0]


def in_markdown(store: RunStore, *ids: str) -> str:
    return markdown.render(written(store, ids))


def test_a_report_says_what_the_folders_hold(store: RunStore) -> None:
    Made(store, "r8", rank=8).trained(device="NVIDIA A10").evaluated()
    text = in_markdown(store)
    for part in (
        "bloom-560m (0.56B)",
        "800 rows to train on, 100 held out",
        "NVIDIA A10",
        "torch 2.13.0, peft 0.21.2",
        "Better on the task: loss -0.44",
        "rank 8, alpha 32, bias none, epochs 3",
        "2.000 → 1.560",
        "41% → 98%",
        "chrF against the references, base → adapter | 31.0 → 31.0",
        "1:15",
        "base says 1",
        "adapter says 3",
        "no votes",
    ):
        assert part in text.replace("\\", ""), part
    assert "base says 4" not in text  # three are enough
    assert text == in_markdown(store)


def test_every_number_says_what_it_is(store: RunStore) -> None:
    made = Made(store, "gpu").trained(device="NVIDIA A10")
    made.log.append("memory", predicted=8 * GB, measured=9 * GB, gpu="NVIDIA A10")
    made.evaluated()
    table = rows(store, "it is")
    assert {row[2] for row in table} == {"measured", "predicted", "estimated"}
    told = [(row[1], row[2]) for row in table if row[0] == "peak memory"]
    assert ("8.0 GB", "predicted") in told and ("9.0 GB", "measured") in told
    assert any(row[2] == "estimated" and "[-0.510, -0.370]" in row[1] for row in table)
    assert "Memory was predicted within 12% of what was measured." in statements(store)


def test_memory_that_no_run_measured_is_a_prediction(store: RunStore) -> None:
    Made(store, "young")
    (figure,) = one(store, "young").memory
    assert figure.kind == "predicted" and "closed form" in figure.how and float(figure.value.split()[0]) > 0.3
    Made(store, "unknown", base_model="nobody/knows-this")
    assert one(store, "unknown").memory == ()


def test_memory_on_a_cpu_is_that_of_the_process(store: RunStore) -> None:
    Made(store, "cpu").trained()
    measured = [figure for figure in one(store, "cpu").memory if figure.kind == "measured"]
    assert [(figure.value, "resident size" in figure.how) for figure in measured] == [("2.0 GB", True)]


def test_the_issues_own_sentence(store: RunStore) -> None:
    Made(store, "small", rank=20, alpha=20, bias="all").trained()
    Made(store, "large", base_model="bigscience/bloom-7b1", rank=14, alpha=20, bias="all").trained()
    log, columns = VoteLog(store.root), [("small", "sha-small"), ("large", "sha-large")]
    for number in range(45):
        vote(log, columns, 0 if number < 34 else 1, number)
    low, high = stats.wilson(34, 45)
    expected = (
        "The 0.56B model with rank 20 (small) beat the 7.1B model with rank 14 (large): "
        f"votes 34-11, 95% interval {low:.2f}-{high:.2f}."
    )
    assert expected in [one.statement for one in said(store)]
    assert f"{low:.2f}-{high:.2f}" == "0.61-0.86"


@pytest.mark.parametrize(
    ("wins", "expected"),
    [
        (10, "r8 beat the base bloom-560m (0.56B): votes 10-0"),
        (6, "Not enough evidence of a preference between r8 and the base bloom-560m (0.56B): votes 6-4"),
        (0, "The base bloom-560m (0.56B) beat r8: votes 10-0"),
    ],
)
def test_votes_name_a_winner_only_where_they_show_one(store: RunStore, wins: int, expected: str) -> None:
    Made(store, "r8").trained()
    log = VoteLog(store.root)
    for number in range(10):
        vote(log, [("base", None), ("r8", "sha-r8")], 1 if number < wins else 0, number)
    vote(log, [("base", None), ("r8", "sha-r8")], "tie", 10)
    assert expected.lower() in statements(store).lower()
    assert "1 tie and 0 all bad" in statements(store)
    assert f"{wins}-{10 - wins}" in rows(store, "verdict")[0]


def test_votes_taken_back_or_on_other_files_do_not_count(store: RunStore) -> None:
    Made(store, "r8").trained()
    log = VoteLog(store.root)
    gone = vote(log, [("base", None), ("r8", "sha-r8")], 1, 0)
    log.take_back(gone.id, after_reveal=False)
    vote(log, [("base", None), ("r8", "sha-of-last-week")], 1, 1)
    vote(log, [("base", None), ("elsewhere", "sha")], 1, 2)
    vote(log, [("base", None), ("base", None)], 1, 3)  # neither an A/A nor about a run
    with log.path.open("a") as file:
        file.write('{"t": 1, "kind": "vote"}\n{"t": 1, "ki')
    found = collect.facts_of(store).ballots
    assert found.pairs == () and found.left_out.startswith("1 vote on earlier adapters")
    assert "1 vote on earlier adapters" in in_markdown(store)


def test_votes_on_several_columns_and_a_a(store: RunStore) -> None:
    Made(store, "r8", rank=8).trained()
    Made(store, "r16", rank=16).trained()
    log = VoteLog(store.root)
    columns = [("base", None), ("r8", "sha-r8"), ("r16", "sha-r16")]
    for number in range(30):
        vote(log, columns, 2, number)
    for number in range(10):
        vote(log, [("base", None), ("base", None)], number % 2, number, aa=True)
    found = statements(store)
    assert "The adapter with rank 16 (r16) beat the adapter with rank 8 (r8): votes 30-0" in found
    assert "r16 beat the base bloom-560m (0.56B): votes 30-0" in found
    assert "Bradley-Terry" in found and "finds nothing, as it must" in found
    assert "r8 beat" not in found


def test_what_was_not_evaluated_is_said(store: RunStore) -> None:
    Made(store, "r8").trained()
    assert "Whether r8 is better than the base is not known. Not evaluated." in statements(store)
    assert "Finished. Not evaluated." in in_markdown(store)
    assert rows(store, "verdict")[0][1] == "not evaluated"


def test_an_evaluation_of_an_earlier_adapter_or_a_damaged_one_is_not_used(store: RunStore) -> None:
    made = Made(store, "again").trained().evaluated()
    made.log.append("saved", step=40, sha256="another", bytes=0)
    assert one(store, "again").evaluation is None and "earlier adapter" in one(store, "again").no_evaluation
    made = Made(store, "torn").trained()
    for body in ("{", "[]", '{"loss": 1, "verdict": 2, "adapter": 3}', '{"loss": {}, "verdict": {}, "adapter": {}}'):
        (made.run.path / "evaluation.json").write_text(body)
        assert one(store, "torn").evaluation is None
        assert "damaged" in in_markdown(store, "torn")
    whole = json.loads((Made(store, "lax").trained().evaluated().run.path / "evaluation.json").read_text())
    whole["loss"]["p_holm"] = "0.01"  # as another program may write it
    whole["drift"].pop("first_divergence", None)
    whole.pop("general")
    known = results.parse(whole | {"more": 1, "eos": "high"})
    assert known and known.loss.p_holm == 0.01 and known.drift and known.drift.first_divergence is None
    assert known.general is None and known.eos is None and results.parse([1]) is None


def test_adapters_are_ranked_only_where_intervals_do_not_touch(store: RunStore) -> None:
    Made(store, "r4", rank=4).trained().evaluated(-0.2, 0.05)
    Made(store, "r16", rank=16).trained().evaluated(-0.42, 0.05)
    Made(store, "r64", rank=64).trained().evaluated(-0.45, 0.05)
    found = statements(store)
    assert "r64 has a lower loss than r4; it cannot be told apart from r16." in found
    assert "They differ in rank." in found
    store.delete(store.get("r4"))
    assert "r64 and r16 cannot be told apart by their loss." in statements(store)


def test_a_knob_that_alone_differs_is_named(store: RunStore) -> None:
    Made(store, "r4", rank=4).trained().evaluated(-0.2, 0.05)
    Made(store, "r16", rank=16).trained().evaluated(-0.42, 0.05)
    Made(store, "r16-all", rank=16, bias="all").trained().evaluated(-0.43, 0.05)
    found = statements(store)
    assert "Where only rank differs (4 and 16), r16 has a lower loss than r4." in found
    assert "Where only bias differs (all and none), r16-all and r16 cannot be told apart" in found


def test_a_lower_loss_of_a_worse_adapter_is_no_praise(store: RunStore) -> None:
    broken = {"kind": "worse", "text": "Worse in use: 95% of what it writes it has written before."}
    Made(store, "loops", learning_rate=0.5).trained().evaluated(-0.9, verdict=broken)
    Made(store, "sound").trained().evaluated(-0.2)
    found = statements(store)
    assert "loops is worse than its base, bloom-560m (0.56B). Worse in use: 95% of what it writes" in found
    assert "Diagnostics: The learning rate is 0.5" in found
    assert (
        "loops has a lower loss than sound. That alone does not make it useful: loops is worse than its base." in found
    )
    assert "sound is better than its base" in found
    Made(store, "vague").trained().evaluated(-0.02)
    assert "There is not enough evidence that vague is better than its base, bloom-560m (0.56B)." in statements(store)
    best = "vague has a lower loss than loops. That alone does not make it useful: there is not enough evidence that vague is better"
    Made(store, "loops-2").trained().evaluated(0.9)
    store.delete(store.get("loops"))
    store.delete(store.get("sound"))
    assert best.replace("loops", "loops-2") in statements(store)


def test_paths_of_this_machine_stay_out(store: RunStore, bloom: Path) -> None:
    made = Made(store, "r8", base_model=str(bloom), dataset="/home/me/rows.json")
    made.trained(end="").log.append("failed", message="'/home/me/rows.json' is not UTF-8.", bug=False)
    text = in_markdown(store)
    assert str(bloom) not in text and "/home/me" not in text and "'rows.json' is not UTF-8." in text


@pytest.mark.parametrize(
    "other",
    [{"data": {"rows": 60, "tokens": 5000}}, {"loss": {"base": 2.4}}, {"base": {"fingerprint": "another"}}],
)
def test_evaluations_on_other_rows_or_bases_are_not_ranked(store: RunStore, other: dict[str, Any]) -> None:
    Made(store, "a", rank=4).trained().evaluated()
    made = Made(store, "b", rank=8).trained().evaluated()
    file = made.run.path / "evaluation.json"
    found = json.loads(file.read_text())
    for part, values in other.items():
        found[part] |= values
    file.write_text(json.dumps(found))
    assert "cannot be told apart" not in statements(store) and "lower loss than" not in statements(store)


def test_losses_while_training_are_compared_on_the_same_rows_alone(store: RunStore) -> None:
    Made(store, "a", rank=4).trained([2.0, 1.5])
    Made(store, "b", rank=8).trained([2.0, 1.2])
    found = statements(store)
    assert "On the same 9,000 held-out tokens, the adapter with rank 8 (b) ended at the lowest loss" in found
    assert "without an interval" in found
    for name, knobs, data in (
        ("seed", {"seed": 1}, DATA),
        ("data", {}, DATA | {"rows.json": "b" * 64}),
        ("share", {"eval_fraction": 0.2}, DATA),
        ("system", {"system_prompt": "Be brief."}, DATA),
    ):
        Made(store, name, data, rank=8, **knobs).trained([2.0, 1.2])  # type: ignore[arg-type]
        assert "lowest loss" not in statements(store, "a", name), name
    brings_its_own = {"name": "folder", "train.jsonl": "a" * 64, "heldout.jsonl": "b" * 64}
    Made(store, "c", brings_its_own, seed=1).trained([2.0, 1.5])
    Made(store, "d", brings_its_own, seed=2).trained([2.0, 1.4])
    assert "lowest loss" in statements(store, "c", "d")


def test_losses_of_different_tokenizers_are_not_compared(store: RunStore) -> None:
    Made(store, "bloom").trained([2.0, 1.5], tokens=9000)
    Made(store, "llama", base_model="demo").trained([2.0, 1.2], tokens=10400, vocabulary=49152, fingerprint="llama")
    found = statements(store)
    assert "The losses of bloom and llama cannot be compared with each other." in found
    assert "9000 and 10400 tokens" in found and "lowest loss" not in found
    Made(store, "bloom-7b1", base_model="bigscience/bloom-7b1").trained([2.0, 1.1], fingerprint="bloom-large")
    found = statements(store, "bloom", "bloom-7b1")
    assert "the 7.1B model (bloom-7b1) ended at the lowest loss" in found and "cannot be compared" not in found


def test_steps_done_again_after_a_resume_replace_the_old_ones(store: RunStore) -> None:
    made = Made(store, "r8").trained([2.0, 1.5, 9.0], end="")
    made.log.append("started", pid=2, resumed=True)
    made.log.append("eval", step=40, loss=1.1, tokens=9000)
    assert [loss for _, loss in one(store, "r8").history.held_out()] == [2.0, 1.5, 1.1]


def test_only_what_differs_is_listed_beside_the_usual_four(store: RunStore) -> None:
    Made(store, "a", learning_rate=1e-4, logging_steps=3).trained()
    Made(store, "b", learning_rate=2e-4).trained()
    table = next(block for block in written(store) if isinstance(block, Table) and "rank" in block.head)
    assert table.head == ("run", "base", "rank", "alpha", "bias", "epochs", "learning rate")


def test_one_name_for_two_things_is_told_apart(store: RunStore) -> None:
    Made(store, "a", base_model="one/model", dataset="/x/rows.json").trained()
    Made(store, "b", DATA | {"rows.json": "b" * 64}, base_model="other/model", dataset="/y/rows.json").trained()
    first, second = collect.facts_of(store).experiments
    assert {first.base, second.base} == {"model (one/model)", "model (other/model)"}
    assert {first.data, second.data} == {"rows.json (aaaaaaaa)", "rows.json (bbbbbbbb)"}


def autopsy(**more: Any) -> dict[str, Any]:
    return {
        "phase": "Trying the longest batch",
        "step": 0,
        "predicted": 13 * GB,
        "measured": 15 * GB,
        "total": 16 * GB,
        "free": 15 * GB,
        "held_by": [{"pid": 4711, "name": "browser", "bytes": 3 * GB}],
        "changes": [
            {
                "knobs": {"batch_size": 1},
                "text": "Micro-batch 1: -6.1 GB",
                "saves": 6 * GB,
                "fits": True,
                "learns_the_same": True,
            }
        ],
    } | more


def test_a_run_that_died_of_memory_has_its_autopsy(store: RunStore) -> None:
    made = Made(store, "large", base_model="bigscience/bloom-7b1").trained([], device="NVIDIA A10", end="")
    made.log.append("failed", message="Out of memory in the stage 'Training'.", bug=False, autopsy=autopsy())
    text = in_markdown(store)
    for part in (
        "Runs that failed",
        "browser (process 4711) held 3.0 GB",
        "Micro-batch 1: -6.1 GB · fits then",
        "The device has 16.0 GB, 15.0 GB of them free for it (measured).",
    ):
        assert part in text, part
    figures = [(figure.value, figure.kind) for figure in one(store, "large").memory]
    assert figures == [("13.0 GB", "predicted"), ("15.0 GB", "measured")]
    assert "1 of 1 runs did not end well: large. Out of memory: large." in statements(store)


def damaged(made: Made) -> None:
    (made.run.path / "run.json").write_text("{ not json")


def of_another_version(made: Made) -> None:
    (made.run.path / "run.json").write_text('{"config": {"no_such_knob": 1}, "versions": [], "dataset": 3}')


def torn_events(made: Made) -> None:
    made.trained()
    lines = [
        {"kind": "step"},
        {"kind": "step", "step": "four", "max_steps": None, "loss": []},
        {"kind": "eval", "loss": 1},
        {"kind": "data", "used": 3, "facts": {"rows": 1}},
        {"kind": "base"},
        {"kind": "memory", "predicted": 0, "measured": "x"},
        {"kind": "fit", "knobs": [1]},
        {"kind": "probe", "step": 0, "answers": [3]},
        {"kind": "failed", "message": "x", "autopsy": {"held_by": 3, "changes": [{}], "total": "x"}},
    ]
    with made.run.events_file.open("a") as file:
        file.write("".join(json.dumps({"t": 1.0} | line) + "\n" for line in lines) + '{"t": 1, "ki')


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (damaged, "has no readable run.json"),
        (of_another_version, "is damaged or was written by another version"),
        (lambda made: None, "The run has written no events"),
        (torn_events, "Failed"),
        (lambda made: made.trained(end=""), "Not evaluated: there is no adapter."),
    ],
    ids=["damaged", "version", "no events", "torn events", "no adapter"],
)
def test_a_damaged_run_is_told_and_breaks_nothing(store: RunStore, harm: Callable[[Made], Any], expected: str) -> None:
    Made(store, "good").trained().evaluated()
    harm(Made(store, "odd"))
    text = in_markdown(store)
    assert expected in text and "Better on the task" in text
    assert sorted(row[0] for row in rows(store, "state")) == ["good", "odd"]
    check_page(html.render(written(store)))


def test_a_bug_inside_a_check_surfaces(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_a_bug(seen: Any) -> None:
        raise KeyError("rows")

    Made(store, "odd").trained().evaluated()
    monkeypatch.setattr(diagnostics.curves, "CHECKS", (of_a_bug,))
    with pytest.raises(KeyError):
        diagnostics.during(Run(store.root / "odd").config(), Run(store.root / "odd").history())
    with pytest.raises(KeyError):
        in_markdown(store)


def test_a_running_run_is_told_as_that(store: RunStore) -> None:
    made = Made(store, "live").trained(end="")
    with made.run.lock():
        assert rows(store, "state")[0][1] == "running"
        assert "Running. Not evaluated: there is no adapter." in in_markdown(store)
    os.utime(made.run.path / "run.json", (0, 0))
    made.run.log_file.write_text("last words of a trainer\n")
    assert rows(store, "state")[0][1] == "died" and "last words of a trainer" in in_markdown(store)


def test_probes_stand_in_where_nothing_was_evaluated(store: RunStore) -> None:
    made = Made(store, "r8").trained()
    for step, answer in ((0, "the base's"), (40, "the adapter's")):
        made.log.append("probe", step=step, answers=[{"prompt": "Why?", "answer": answer, "ended": True}])
    (found,) = [block for block in written(store) if isinstance(block, SideBySide)]
    assert found.asked == "Why?" and found.texts == [Answer("base", "the base's"), Answer("adapter", "the adapter's")]


# --- nothing comes out as anything but text ---


def attacked(store: RunStore) -> None:
    """Script in every place that a file, a person or a model fills in."""
    folder = "<b>run & | `co`"
    made = Made(
        store,
        folder,
        {"name": NASTY, NASTY: NASTY},
        base_model=f"{NASTY}",
        dataset=NASTY,
        system_prompt=NASTY,
        dataset_split=NASTY,
    ).trained(device=NASTY, dtype=NASTY, name=NASTY)
    Made(store, "plain").trained()
    manifest = json.loads((made.run.path / "run.json").read_text())
    (made.run.path / "run.json").write_text(json.dumps(manifest | {"versions": {NASTY: NASTY}}))
    made.log.append("fit", text=NASTY, knobs={})
    made.log.append("probe", step=0, answers=[{"prompt": NASTY, "answer": NASTY, "ended": True}])
    texts = [
        {
            "prompt": f"{NASTY}\n```\n{NASTY}",
            "reference": NASTY,
            "base": f"{NASTY}\n| a | b |\n",
            "adapter": "  - \x00\ud800\u202e",
        }
    ]
    made.evaluated(examples=texts, verdict={"kind": "worse", "text": NASTY})
    file = made.run.path / "evaluation.json"
    found = json.loads(file.read_text())
    found["data"]["source"] = NASTY
    file.write_text(json.dumps(found))
    log = VoteLog(store.root)
    for number in range(3):
        vote(log, [("base", None), (folder, f"sha-{folder}")], 0, number, by=f"llm:{NASTY}")
    dead = Made(store, "dead").trained([], end="")
    held = [{"pid": 1, "name": NASTY, "bytes": GB}]
    changes = [{"knobs": {NASTY: NASTY}, "text": NASTY, "saves": 1, "fits": True}]
    dead.log.append("failed", message=NASTY, bug=False, autopsy=autopsy(phase=NASTY, held_by=held, changes=changes))
    gone = Made(store, "gone")
    gone.run.log_file.write_text(NASTY)
    os.utime(gone.run.path / "run.json", (0, 0))


class Tags(HTMLParser):
    """Collects tags and attributes, and holds every end against its start."""

    VOID = frozenset({"meta"})
    EMPTY = frozenset({"path"})  # SVG's, closed in itself

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


TAGS = frozenset(
    "html head meta title style body article h1 h2 h3 h4 p b a ul li div section table thead tbody tr th td figure "
    "figcaption span svg path i pre".split()
)
ATTRIBUTES = frozenset(
    "lang charset http-equiv content name class id href tabindex viewbox preserveaspectratio role aria-label aria-hidden d "
    "style".split()
)
PLACED = re.compile(r"((left|width|bottom):-?[\d.]+%;?)+|height:\d+px")  # of a chart's labels


def check_page(body: str) -> Tags:
    """A whole page, balanced, of known tags and attributes only, that refers to nothing outside itself."""
    assert body.startswith("<!DOCTYPE html>")
    found = Tags()
    found.feed(body)
    found.close()
    assert found.open == []
    assert {tag for tag, _ in found.seen} <= TAGS | {"title"}
    for tag, attributes in found.seen:
        assert attributes.keys() <= ATTRIBUTES, (tag, attributes)
        if "href" in attributes:
            assert re.fullmatch(r"#report-run-\d+", attributes["href"] or "")
        if "style" in attributes:
            assert PLACED.fullmatch(attributes["style"] or "")
    ids = [attributes["id"] for _, attributes in found.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"] for _, attributes in found.seen if "href" in attributes} <= {f"#{name}" for name in ids}
    style = body[body.index("<style>") : body.index("</style>")]
    assert "url(" not in style and "@import" not in style and "http" not in style
    return found


def test_a_page_needs_nothing_else(store: RunStore) -> None:
    Made(store, "r8", rank=8).trained().evaluated()
    Made(store, "r16", rank=16).trained().evaluated(-0.5)
    body = html.render(written(store))
    found = check_page(body)
    tags = [tag for tag, _ in found.seen]
    assert tags.count("svg") == 3  # one a run, and one for both
    assert "http" not in body.replace('<meta http-equiv="Content-Security-Policy"', "")
    assert "default-src 'none'" in body
    assert len(body) < 100_000


def test_nothing_in_a_page_is_more_than_text(store: RunStore) -> None:
    attacked(store)
    body = html.render(written(store))
    found = check_page(body)
    assert NASTY in found.text and "<script" not in body and "<img" not in body
    assert "\x00" not in body and "\u202e" not in body


def test_nothing_in_markdown_is_more_than_text(store: RunStore) -> None:
    attacked(store)
    tokens = MarkdownIt("commonmark").enable("table").parse(in_markdown(store))
    inner = [child for token in tokens for child in token.children or []]
    assert [token for token in tokens if token.type == "html_block"] == []
    assert {child.content for child in inner if child.type == "html_inline"} <= {"<br>"}
    assert {child.type for child in inner} <= {"text", "text_special", "html_inline", "strong_open", "strong_close"}
    text = "".join(child.content for child in inner)
    assert NASTY.replace("\n", " ") in text
    fences = [token.content for token in tokens if token.type == "fence"]
    assert any(NASTY in fence and "```\n" in fence for fence in fences)
    assert not [token for token in tokens if token.type == "code_block"]
    check_tables(tokens)


def check_tables(tokens: list[Any]) -> None:
    """Every row has as many cells as its head."""
    counts: list[int] = []
    widths: list[int] = []
    for token in tokens:
        if token.type == "table_open":
            widths = []
        elif token.type == "tr_open":
            widths.append(0)
        elif token.type in ("td_open", "th_open"):
            widths[-1] += 1
        elif token.type == "table_close":
            assert len(set(widths)) == 1, widths
            counts.append(widths[0])
    assert counts


def test_markdown_tables_survive_pipes_and_line_ends(store: RunStore) -> None:
    answer = "| a | b |\n|---|---|\n\n    indented | `x`\r\n1. one"
    examples = [{"prompt": "p", "reference": "", "base": answer, "adapter": ""}]
    Made(store, "r8").trained().evaluated(examples=examples)
    text = in_markdown(store)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    check_tables(tokens)
    cells = [token for number, token in enumerate(tokens) if number and tokens[number - 1].type == "td_open"]
    told = ["".join("\n" if c.type == "html_inline" else c.content for c in token.children or []) for token in cells]
    assert "| a | b |\n|---|---|\n\n\xa0\xa0\xa0\xa0indented | `x`\n1. one" in told
    assert "(an empty answer)" in told


@pytest.mark.parametrize(
    "start", ["# no heading", "- no item", "1. no item", "12) no item", "+ x", "=== x", "> x", "--- "]
)
def test_paragraphs_that_begin_like_something_else(start: str) -> None:
    tokens = MarkdownIt("commonmark").parse(markdown.inline(start))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert "".join(child.content for child in tokens[1].children or []) == start.strip()


def test_long_texts_are_cut_and_say_so() -> None:
    assert words.cut("x" * 1000, 900) == "x" * 900 + "… [100 more characters]"
    assert words.cut("short", 900) == "short"


def test_a_chart_of_one_point_or_none() -> None:
    assert "no values yet" in chart.line_chart("Loss", [Series("a", [])])
    one_point = chart.line_chart("Loss", [Series("a", [(0, 2.0)])])
    assert one_point.count('class="dots') == 1 and "nan" not in one_point
    flat = chart.line_chart("Loss", [Series("a", [(0, 2.0), (5, 2.0)])])
    assert "nan" not in flat and "inf" not in flat
    assert markdown.render([]) == "\n"


@pytest.mark.parametrize(
    "points", [[(20_000, 1.0)], [(2**53 - 1, 1.0)], [(9e5, 1.0), (9e5, 2.0)], [(1, 5e-324), (2, 0.0)], [(1, 1e40)]]
)
def test_a_chart_of_far_steps_and_of_next_to_no_span(points: list[tuple[float, float]]) -> None:
    drawn = chart.line_chart("Loss", [Series("a", points)])
    assert "<svg" in drawn and "nan" not in drawn and "inf" not in drawn


def test_numbers_that_are_none_end_no_report(store: RunStore) -> None:
    made = Made(store, "odd").trained().evaluated()
    file = made.run.path / "evaluation.json"
    content = json.loads(file.read_text())
    for odd in (math.nan, math.inf):
        file.write_text(
            json.dumps(content | {"texts": {side: {"answers": odd, "rep4": 0.1} for side in ("base", "adapter")}})
        )
        assert "odd" in in_markdown(store)
    file.write_text(json.dumps(content | {"loss": content["loss"] | {"base": math.nan}}))
    assert job.result(made.run) is None


# --- the command and the tab ---


def test_the_command_writes_both_forms(store: RunStore, tmp_path: Path) -> None:
    Made(store, "b").trained().evaluated()
    Made(store, "a").trained()
    told: list[str] = []
    for suffix in ("md", "html"):
        out = tmp_path / f"report.{suffix}"
        assert report(store, [], out, told.append) == 0
        assert str(out) in told[-1]
        assert all(name in out.read_text(encoding="utf-8") for name in ("· a", "· b"))
    assert report(store, ["a", "a"], tmp_path / "one.md", told.append) == 0
    assert "1 · a" in (tmp_path / "one.md").read_text() and "· b" not in (tmp_path / "one.md").read_text()


def test_what_cannot_be_written_is_told_in_a_sentence(store: RunStore, tmp_path: Path) -> None:
    (tmp_path / "folder.md").mkdir()
    with pytest.raises(UserError, match="There are no runs"):
        report(store, [], tmp_path / "r.md", print)
    Made(store, "a").trained()
    for ids, out, sentence in (
        (["nobody"], "r.md", "There is no run 'nobody'"),
        (["../a"], "r.md", "There is no run"),
        ([], "r.pdf", "end the name with .md or .html"),
        ([], "report", "end the name with .md or .html"),
        ([], "missing/r.md", "existing, writable folder"),
        ([], "folder.md", "it is a folder"),
    ):
        with pytest.raises(UserError, match=sentence):
            report(store, ids, tmp_path / out, print)
    assert not (tmp_path / "r.md").exists()


def test_the_tab_shows_and_hands_out_the_report(store: RunStore) -> None:
    Made(store, "a").trained().evaluated()
    with gr.Blocks() as app:
        tab.ReportTab(store).wire(gr.State(links.to("train")))
    listeners = {fn.name: fn.fn for fn in app.fns.values()}
    assert all(fn.api_visibility == "private" for fn in app.fns.values())

    def made(picked: list[str]) -> dict[str, Any]:
        *_, last, unchanged = listeners["make"](picked)
        assert unchanged == gr.skip()  # else Gradio would empty what it drew
        return {part.elem_id: value for part, value in last.items()}

    values = made(["a"])
    assert '<article class="report">' in values["report"] and "<script" not in values["report"]
    for part, suffix in (("report-md", ".md"), ("report-html", ".html")):
        file = Path(values[part]["value"])
        assert file.suffix == suffix and file.read_text(encoding="utf-8") and values[part]["visible"]
    failed = made(["gone"])
    assert "There is no run" in failed["report-status"] and "report" not in failed
    assert list(listeners["make_if_asked"](links.to("runs", "a"))) == [gr.skip()]
    *_, shown = [drawn for drawn in listeners["make_if_asked"](links.to("report", "a")) if drawn != gr.skip()]
    assert len(shown) == 4
    assert listeners["follow"](links.to("report", "a"), []) == ["a"]
    assert listeners["follow"](links.to("runs", "a"), ["b"]) == ["b"]


def test_what_makes_runs_differ_leaves_out_what_only_costs() -> None:
    names = comparability.knobs()
    assert "rank" in names and not {"name", "attention", "logging_steps", "gradient_checkpointing"} & set(names)


def test_a_metric_is_one_row_and_everything_else_finds_it(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Computed, stored in evaluation.json, and shown by the page, the report in both forms, and the command line."""
    question = metrics.Metric(
        "asks",
        "answers that ask back",
        "",
        ".0%",
        "neither",
        lambda side: metrics.share([text[-1] == "?" for text in side.answers]),
    )
    worst = metrics.Metric(
        "worst", "worst row", "nats", ".2f", "lower", lambda side: max(side.losses), of_answers=False, how="of {rows}"
    )
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, question, worst))
    measured = results.Measured(facts=[{}], general=protocol.General([3.1, 3.2], 700))
    measured.about = protocol.Rows(
        tokens=[2, 4],
        rows=[1, 2],
        references=["a", "b"],
        questions=["A?", "B?"],
        double_bos=False,
        dropped=[],
        truncated=0,
        turns={},
        prompts=[],
    )
    for number, tokens in enumerate((2, 4)):
        measured.take(
            protocol.Measured(
                number,
                loss=[2.0 * tokens, (number + 0.5) * tokens],
                kl=[0.0, 0.1],
                eos=[0.2, 0.9],
                text=["Yes.", "Why?"],
                ended=["eos", "eos"],
                tokens=[2, 2],
                differs=[None, 0],
            )
        )
    made = Made(store, "asked").trained()
    sides = [{"name": "base"}, {"name": "asked", "sha256": "sha-asked"}]
    (content,) = results.put_together(measured, sides, [set()], "two rows", {"seed": 0})
    assert content["texts"]["base"]["asks"] == 0 and content["texts"]["adapter"]["asks"] == 1
    assert content["worst"] == {"base": 2.0, "adapter": 1.5} and content["dependence"] is None
    (made.run.path / "evaluation.json").write_text(json.dumps(content))
    evaluation = job.result(made.run)
    assert evaluation
    monkeypatch.setattr(evaluate, "evaluate", lambda *given, **named: {"evaluations": [content]})
    assert evaluate.run([made.run.path], None, None, job.Settings()) == 0
    page, printed = evaluation_views.render(evaluation), capsys.readouterr().out
    for text in (page, in_markdown(store), html.render(written(store)), printed):
        for label, values in (("answers that ask back", ("0%", "100%")), ("worst row (nats)", ("2.00", "1.50"))):
            after = text[text.index(label) :][:200]
            assert all(value in after for value in values)
