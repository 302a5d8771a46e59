"""The votes of a store on the experiments of a report; only votes on the adapters now in the folders count."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from qlora_gui.formatting import counted
from qlora_gui.preferences.bradley_terry import Rating, rate
from qlora_gui.preferences.pairwise import Tally, tally
from qlora_gui.preferences.votes import HUMAN, Column, Contest, VoteLog, by_contest
from qlora_gui.runs.store import RunStore


@dataclass(frozen=True)
class Field:
    """A contest of three or more columns."""

    contest: Contest
    rating: Rating


@dataclass(frozen=True)
class Ballots:
    """Contests of two columns, those of more, and a sentence on votes that are left out ("" for none)."""

    pairs: tuple[Tally, ...] = ()
    fields: tuple[Field, ...] = ()
    left_out: str = ""

    def pairs_of(self, run_id: str) -> list[Tally]:
        """The contests of two that a run took part in."""
        return [pair for pair in self.pairs if run_id in _names(pair.contest)]

    def fields_of(self, run_id: str) -> list[Field]:
        """The contests of more that a run took part in."""
        return [field for field in self.fields if run_id in _names(field.contest)]


def count_votes(store: RunStore, adapters: Mapping[str, str | None], bases: Collection[str]) -> Ballots:
    """Count the votes whose adapters are all among `adapters`: checksums by the run's id, None where none is known.

    Votes on another file under the same name, as of an adapter that was trained again, are left out, and reported as such. An
    A/A counts where its base is among `bases`, fingerprints.
    """
    pairs, fields, others = [], [], 0
    log = VoteLog(store.root)
    for contest, votes in by_contest(log.read()).items():
        trained = [column for column in contest.columns if not is_base(column)]
        about = all(column.name in adapters for column in trained) if trained else contest.aa and contest.base in bases
        if not about:
            continue
        if any(adapters[column.name] not in (None, column.sha256) for column in trained):
            others += len(votes)
        elif len(contest.columns) == 2:
            pairs.append(tally(votes))
        elif not contest.aa:
            fields.append(Field(contest, rate(votes)))
    notes = [f"{counted(others, 'vote')} on earlier adapters in these folders are not counted."] if others else []
    if damaged := log.damaged():
        notes.append(f"{counted(damaged, 'line')} of {log.path.name} could not be read as a vote, and are not counted.")
    return Ballots(tuple(pairs), tuple(fields), " ".join(notes))


def is_base(column: Column) -> bool:
    """Whether the base answered here: it has no checksum."""
    return column.sha256 is None and column.name == "base"


def judge(contest: Contest) -> str:
    """Who judged, in words."""
    return "people" if contest.by == HUMAN else f"the model {contest.by.removeprefix('llm:')}"


def _names(contest: Contest) -> list[str]:
    return [column.name for column in contest.columns if not is_base(column)]
