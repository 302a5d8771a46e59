"""Votes for other programs: LLM Comparator's JSON (github.com/PAIR-code/llm-comparator), and CSV."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from qlora_gui.errors import UserError
from qlora_gui.preferences.votes import BAD, TIE, Column, Vote, by_prompt, distinct

_LABELS = {1.0: "A is better", -1.0: "B is better"}


def comparator(votes: Sequence[Vote], first: Column, second: Column, source: str = "votes.jsonl") -> dict[str, Any]:
    """The votes at which two columns were shown, in the form LLM Comparator reads; `first` is its model A.

    An example is one prompt with the newest answers to it; its score is the mean of its votes: 1 when A was chosen, -1
    when B was, 0 for a tie, all bad, or another column. `is_flipped` tells that B stood before A. Raises UserError when
    no vote has both, and when both are the same (an A/A).
    """
    both = [vote for vote in votes if first in vote.columns and second in vote.columns and not vote.aa]
    if not both or first == second:
        raise UserError("There are no votes on these two columns to export: judge some prompts first.")
    names = distinct((first, second))
    fields = {
        "votes": "number",
        "retries": "number",
        "all_bad": "number",
        "tokens": "per_model_number",
        "session": "string",
    }
    return {
        "metadata": {
            "source_path": source,
            "custom_fields_schema": [{"name": name, "type": kind} for name, kind in fields.items()],
        },
        "models": [{"name": name} for name in names],
        "examples": [_example(of_prompt, first, second) for of_prompt in by_prompt(both)],
    }


def _example(votes: Sequence[Vote], first: Column, second: Column) -> dict[str, Any]:
    newest = votes[-1]
    places = [newest.columns.index(column) for column in (first, second)]
    scores = [_score(vote, first, second) for vote in votes]
    return {
        "input_text": newest.prompt,
        "tags": [],
        "output_text_a": newest.answers[places[0]],
        "output_text_b": newest.answers[places[1]],
        "score": sum(scores) / len(scores),
        "individual_rater_scores": [
            {
                "score": score,
                "rating_label": _label(vote, score),
                "is_flipped": _flipped(vote, first, second),
                "rationale": f"{vote.by}, {vote.seconds:.0f} s",
                "custom_fields": {},
            }
            for vote, score in zip(votes, scores, strict=True)
        ],
        "rationale_list": [],
        "custom_fields": {
            "votes": len(votes),
            "retries": newest.retries,
            "all_bad": sum(vote.choice == BAD for vote in votes),
            "tokens": [newest.tokens[place] for place in places],
            "session": newest.session,
        },
    }


def _score(vote: Vote, first: Column, second: Column) -> float:
    chosen = vote.columns[vote.choice] if isinstance(vote.choice, int) else None
    return 1.0 if chosen == first else -1.0 if chosen == second else 0.0


def _label(vote: Vote, score: float) -> str:
    words = {TIE: "Tie", BAD: "All bad"}
    return _LABELS.get(score) or words.get(str(vote.choice), "Another column is better")


def _flipped(vote: Vote, first: Column, second: Column) -> bool:
    shown = [vote.columns[column] for column in vote.order]
    return shown.index(second) < shown.index(first)


def as_json(votes: Sequence[Vote], first: Column, second: Column) -> str:
    """`comparator` as the text of a file. Raises UserError as it does."""
    return json.dumps(comparator(votes, first, second), indent=1, ensure_ascii=False) + "\n"


def as_csv(votes: Sequence[Vote]) -> str:
    """One line per vote; answers and lengths by column, `shown` the columns in the order the judge saw them.

    A cell that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    most = max((len(vote.columns) for vote in votes), default=0)
    numbers = range(1, most + 1)
    head = ["time", "id", "session", "by", "aa", "prompt", "choice", "shown", "seconds", "retries", "same_dice"]
    head += ["decoding"] + [
        f"{what} {number}" for number in numbers for what in ("column", "sha256", "tokens", "answer")
    ]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(head)
    for vote in votes:
        writer.writerow([_cell(value) for value in _values(vote)])
    return out.getvalue()


def _values(vote: Vote) -> list[Any]:
    names = distinct(vote.columns)
    values: list[Any] = [
        f"{vote.t:.3f}",
        vote.id,
        vote.session,
        vote.by,
        vote.aa,
        vote.prompt,
        names[vote.choice] if isinstance(vote.choice, int) else vote.choice,
        " | ".join(names[column] for column in vote.order),
        f"{vote.seconds:.1f}",
        vote.retries,
        vote.same_dice,
        json.dumps(dict(vote.decoding)),
    ]
    for name, column, tokens, answer in zip(names, vote.columns, vote.tokens, vote.answers, strict=True):
        values += [name, column.sha256 or "", tokens, answer]
    return values


def _cell(value: Any) -> Any:
    dangerous = isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r")
    return f"'{value}" if dangerous else value
