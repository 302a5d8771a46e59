"""votes.jsonl as the one truth about votes, and their export."""

import csv
import io
import json
import stat
import threading
from pathlib import Path

import pytest

from qlora_gui.errors import UserError
from qlora_gui.preferences import export
from qlora_gui.preferences.votes import BAD, TIE, Column, VoteLog, by_contest, by_prompt, distinct
from tests.factories import BASE, LYNX, OTTER, vote


def test_a_vote_comes_back_as_it_was(tmp_path: Path) -> None:
    log = VoteLog(tmp_path / "adapters")
    given = vote(
        1,
        1,
        order=(1, 0),
        answers=("Grüße\u2028", '{"a": 1}'),
        tokens=(3, 7),
        seconds=2.5,
        retries=2,
        decoding={"greedy": False, "seed": 4},
        same_dice=True,
        base={"name": "demo", "fingerprint": "f"},
    )
    log.add(given)
    (found,) = log.read()
    assert found.t == pytest.approx(given.t, abs=5)
    assert found == type(given)(**(vars(given) | {"t": found.t}))
    line = json.loads(log.path.read_text())
    assert line["kind"] == "vote" and line["columns"][1] == {"name": "otter", "sha256": "a" * 64}
    assert line["order"] == [1, 0] and line["choice"] == 1 and line["by"] == "human"


def test_undo_is_a_line_of_its_own_and_nothing_is_ever_removed(tmp_path: Path) -> None:
    log = VoteLog(tmp_path)
    first, second = vote(1, 0), vote(2, TIE)
    log.add(first)
    log.add(second)
    before = log.path.read_bytes()
    log.take_back(second.id, after_reveal=True)
    assert log.path.read_bytes().startswith(before)
    undo = json.loads(log.path.read_text().splitlines()[-1])
    assert (undo["kind"], undo["id"], undo["after_reveal"]) == ("undo", second.id, True)
    assert [one.id for one in log.read()] == [first.id]


def test_broken_and_unfinished_lines_are_passed_over_and_the_next_vote_stands_alone(tmp_path: Path) -> None:
    log = VoteLog(tmp_path)
    log.add(vote(1, 0))
    whole = json.loads(log.path.read_text())
    wrong = [
        whole | {"choice": 2},
        whole | {"choice": True},
        whole | {"choice": "both"},
        whole | {"order": [0, 0]},
        whole | {"answers": ["x"]},
        whole | {"columns": whole["columns"][:1]},
        whole | {"tokens": None},
        {key: value for key, value in whole.items() if key != "by"},
        whole | {"order": [0, "1"]},
        whole | {"order": [0, None]},
        whole | {"columns": [one | {"sha256": ["ab"]} for one in whole["columns"]]},
        whole | {"seconds": 10**400},
        whole | {"tokens": [10**400, 1]},
        whole | {"retries": 1.5},
        {"t": 1, "kind": "undo", "id": ["1"]},
        ["no", "object"],
        {"t": 1, "kind": "later kinds"},
    ]
    with log.path.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in [*wrong, whole]))  # the last one is there twice
        file.write('not json\n{"t": 1, "kind": "vo')
    assert len(log.read()) == 1 and log.damaged() == len(wrong)  # not the later kind, and "not json" besides
    log.add(vote(2, BAD))
    assert [one.choice for one in log.read()] == [0, BAD]


def test_many_writers_leave_whole_lines(tmp_path: Path) -> None:
    VoteLog(tmp_path).add(vote(0, 0))
    writers = [
        threading.Thread(
            target=lambda: [VoteLog(tmp_path).add(vote(n, 1, answers=("x" * 4000, "y"))) for n in range(20)]
        )
        for _ in range(4)
    ]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert len(VoteLog(tmp_path).read()) == 81


def test_no_file_is_no_votes(tmp_path: Path) -> None:
    assert VoteLog(tmp_path / "nowhere").read() == []
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "adapters").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be written"):
        VoteLog(tmp_path / "adapters").add(vote(1, 0))
    assert stat.S_ISREG((tmp_path / "adapters").stat().st_mode)


def test_what_does_not_belong_together_is_counted_apart(tmp_path: Path) -> None:
    other_base = vote(3, 1, base={"fingerprint": "other"})
    retrained = vote(4, 1, (BASE, Column("otter", "c" * 64)))
    votes = [vote(1, 1), vote(2, 0), other_base, retrained, vote(5, 0, (BASE, BASE), aa=True), vote(6, 1, by="llm:x")]
    found = by_contest([*votes, vote(7, 1)])
    assert [len(group) for group in found.values()] == [3, 1, 1, 1, 1]
    assert next(iter(found)).names == ("base", "otter")
    assert [len(group) for group in by_prompt([vote(1, 1), vote(2, 1), vote(1, 0)])] == [2, 1]


def test_columns_of_one_name_are_told_apart() -> None:
    assert distinct((BASE, OTTER)) == ("base", "otter")
    assert distinct((BASE, OTTER, Column("otter", "c" * 64))) == ("base", "otter (aaaaaaaa)", "otter (cccccccc)")
    assert distinct((BASE, BASE)) == ("base (1)", "base (2)")


# export ----------------------------------------------------------------------------------------------------------------


def test_llm_comparators_form() -> None:
    votes = [
        vote(1, 0, answers=("of base", "of otter"), tokens=(2, 3), order=(1, 0)),
        vote(2, 1),
        vote(3, TIE),
        vote(4, BAD),
        vote(1, 1, answers=("of base again", "of otter again"), tokens=(4, 5), retries=1),
        vote(9, 1, (BASE, LYNX)),
        vote(5, 1, (BASE, BASE), aa=True),
    ]
    told = export.comparator(votes, OTTER, BASE)
    assert told.keys() == {"metadata", "models", "examples"}
    assert told["models"] == [{"name": "otter"}, {"name": "base"}]
    assert [one["score"] for one in told["examples"]] == [0.0, 1.0, 0.0, 0.0]
    first = told["examples"][0]
    required = [
        "input_text",
        "tags",
        "output_text_a",
        "output_text_b",
        "score",
        "individual_rater_scores",
        "custom_fields",
    ]
    assert all(field in one for one in told["examples"] for field in required)
    assert (first["input_text"], first["output_text_a"], first["output_text_b"]) == (
        "prompt 1",
        "of otter again",
        "of base again",
    )
    ratings = first["individual_rater_scores"]
    assert [one["score"] for one in ratings] == [-1.0, 1.0]
    assert [one["is_flipped"] for one in ratings] == [False, True]  # otter is A: it stood first, then second
    assert [one["rating_label"] for one in ratings] == ["B is better", "A is better"]
    assert told["examples"][3]["individual_rater_scores"][0]["rating_label"] == "All bad"
    kinds = {"number", "string", "per_model_number"}
    schema = {field["name"]: field["type"] for field in told["metadata"]["custom_fields_schema"]}
    assert set(schema.values()) <= kinds and first["custom_fields"].keys() == schema.keys()
    assert first["custom_fields"]["tokens"] == [5, 4] and first["custom_fields"]["votes"] == 2
    assert json.loads(export.as_json(votes, OTTER, BASE)) == told


def test_a_third_columns_win_is_neither_ones() -> None:
    told = export.comparator([vote(1, 2, (BASE, OTTER, LYNX))], BASE, OTTER)
    assert told["examples"][0]["score"] == 0
    assert told["examples"][0]["individual_rater_scores"][0]["rating_label"] == "Another column is better"


def test_nothing_to_export_is_a_sentence() -> None:
    with pytest.raises(UserError, match="no votes on these two"):
        export.comparator([vote(1, 1)], BASE, LYNX)
    with pytest.raises(UserError, match="no votes on these two"):
        export.comparator([vote(1, 1, (BASE, BASE), aa=True)], BASE, BASE)


def test_csv_has_a_line_a_vote_and_no_formulas() -> None:
    votes = [
        vote(1, 1, order=(1, 0), answers=("=1+1", 'two "lines"\nhere, see'), tokens=(2, 3), seconds=1.23),
        vote(2, TIE, (BASE, OTTER, LYNX)),
    ]
    rows = list(csv.DictReader(io.StringIO(export.as_csv(votes), newline="")))
    assert len(rows) == 2
    assert rows[0]["choice"] == "otter" and rows[0]["shown"] == "otter | base" and rows[0]["seconds"] == "1.2"
    assert rows[0]["answer 1"] == "'=1+1" and rows[0]["answer 2"] == 'two "lines"\nhere, see'
    assert rows[1]["choice"] == "tie" and rows[1]["column 3"] == "lynx" and rows[0]["sha256 2"] == "a" * 64
    assert export.as_csv([]).startswith("time,id,session")
