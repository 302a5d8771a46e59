"""Votes: which of several answers a judge found best, kept append-only in votes.jsonl; a vote taken back is a line too."""

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qlora_gui.files import explained
from qlora_gui.runs import event_file
from qlora_gui.runs.events import EventLog

FILE = "votes.jsonl"
TIE, BAD = "tie", "bad"
HUMAN = "human"
Choice = int | str


@dataclass(frozen=True)
class Column:
    """Who answered: the base (no checksum), or a run's adapter by its file's SHA-256."""

    name: str
    sha256: str | None = None


@dataclass(frozen=True)
class Vote:
    """One judgement of one prompt's answers.

    `order[place]` is the column that was shown at that place; `choice` the best column (its index in `columns`), "tie",
    or "bad" when all are. `answers` and `tokens` (lengths) are by column. `seconds` is how long the judge looked,
    `retries` how often the answers were regenerated before. `base` says which base, as the columns' proof does.
    `orders_agree` is an LLM judge's: whether both orders gave this choice.
    """

    session: str
    prompt: str
    messages: Sequence[Mapping[str, str]]
    columns: tuple[Column, ...]
    order: tuple[int, ...]
    choice: Choice
    answers: tuple[str, ...]
    tokens: tuple[int, ...]
    seconds: float = 0.0
    retries: int = 0
    decoding: Mapping[str, Any] = field(default_factory=dict)
    same_dice: bool = False
    aa: bool = False
    by: str = HUMAN
    base: Mapping[str, Any] = field(default_factory=dict)
    orders_agree: bool | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    t: float = field(default_factory=time.time)

    @property
    def key(self) -> str:
        """The same for votes on the same prompt."""
        return json.dumps(list(self.messages), ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True)
class Contest:
    """What can be counted together: votes on the same columns of the same base, by the same judge."""

    base: str
    columns: tuple[Column, ...]
    aa: bool
    by: str

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, made distinct where two share one."""
        return distinct(self.columns)


class VoteLog:
    """The votes of one store of runs. Every line is one whole write; unusable lines are skipped when read."""

    def __init__(self, folder: Path):
        self.path = folder / FILE

    def add(self, vote: Vote) -> None:
        """Keep a vote. Raises UserError when the file cannot be written."""
        fields = asdict(vote)
        del fields["t"]  # the log's own
        self._append("vote", fields)

    def take_back(self, vote_id: str, after_reveal: bool) -> None:
        """Keep that a vote does not count any more, and whether its judge knew by then who was who."""
        self._append("undo", {"id": vote_id, "after_reveal": after_reveal})

    def read(self) -> list[Vote]:
        """The votes that stand, oldest first."""
        logged, _ = event_file.read(self.path, whole=True)
        undone = {event["id"] for event in logged if event["kind"] == "undo"}
        read = (_vote(event) for event in logged if event["kind"] == "vote" and event["id"] not in undone)
        return list({vote.id: vote for vote in read if vote is not None}.values())  # the same line twice is one vote

    def damaged(self) -> int:
        """How many lines are no whole vote, and so count nowhere."""
        logged, _ = event_file.read(self.path, whole=True)
        skipped = sum(event["count"] for event in logged if event["kind"] == "skipped")
        return skipped + sum(event["kind"] == "vote" and _vote(event) is None for event in logged)

    def _append(self, kind: str, fields: dict[str, Any]) -> None:
        with explained("The vote", self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            EventLog(self.path).append(kind, **fields)


def _vote(event: Mapping[str, Any]) -> Vote | None:
    """The vote of a line, or None where the line is not a whole one."""
    try:
        columns = tuple(Column(str(column["name"]), column["sha256"]) for column in event["columns"])
        count, choice = len(columns), event["choice"]
        vote = Vote(
            session=str(event["session"]),
            prompt=str(event["prompt"]),
            messages=[{"role": str(turn["role"]), "content": str(turn["content"])} for turn in event["messages"]],
            columns=columns,
            order=tuple(event["order"]),
            choice=choice,
            answers=tuple(str(answer) for answer in event["answers"]),
            tokens=tuple(int(tokens) for tokens in event["tokens"]),
            seconds=float(event["seconds"] or 0),
            retries=int(event["retries"]),
            decoding=dict(event["decoding"]),
            same_dice=bool(event["same_dice"]),
            aa=bool(event["aa"]),
            by=str(event["by"]),
            base=dict(event.get("base") or {}),
            orders_agree=event.get("orders_agree"),
            id=str(event["id"]),
            t=float(event["t"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    best = type(choice) is int and 0 <= choice < count
    whole = sorted(vote.order) == list(range(count)) and len(vote.answers) == len(vote.tokens) == count
    return vote if count > 1 and whole and (best or choice in (TIE, BAD)) else None


def contest_of(vote: Vote) -> Contest:
    """Where a vote counts."""
    return Contest(str(vote.base.get("fingerprint") or ""), vote.columns, vote.aa, vote.by)


def by_contest(votes: Iterable[Vote]) -> dict[Contest, list[Vote]]:
    """The votes of every contest, the contest of the newest vote first."""
    groups: dict[Contest, list[Vote]] = {}
    for vote in votes:
        contest = contest_of(vote)
        groups[contest] = [*groups.pop(contest, []), vote]
    return dict(reversed(groups.items()))


def by_prompt(votes: Iterable[Vote]) -> list[list[Vote]]:
    """The votes of every prompt. Prompts are what is independent: votes on the same one are not."""
    groups: dict[str, list[Vote]] = {}
    for vote in votes:
        groups.setdefault(vote.key, []).append(vote)
    return list(groups.values())


def distinct(columns: Sequence[Column]) -> tuple[str, ...]:
    """Names of columns; those that share one get their checksum's beginning, or a number, behind it."""
    names = [column.name for column in columns]
    labels = []
    for number, column in enumerate(columns):
        if names.count(column.name) == 1:
            labels.append(column.name)
        elif columns.count(column) == 1 and column.sha256:
            labels.append(f"{column.name} ({column.sha256[:8]})")
        else:
            labels.append(f"{column.name} ({names[: number + 1].count(column.name)})")
    return tuple(labels)
