"""The facts of a report: every experiment as its folder records it, and every number with what it is."""

from dataclasses import dataclass
from typing import Literal

from qlora_gui.config import RunConfig
from qlora_gui.diagnostics import Finding
from qlora_gui.evaluation.results import Evaluation
from qlora_gui.hardware import Device
from qlora_gui.report.votes import Ballots
from qlora_gui.runs.events import Ending, OomReport
from qlora_gui.runs.history import RunHistory

UNKNOWN = "unknown"  # base or data of a run whose settings are not known
Kind = Literal["measured", "predicted", "estimated"]


@dataclass(frozen=True)
class Figure:
    """A number with its unit, what it is of, whether it was measured, predicted or estimated, and how."""

    what: str
    value: str
    kind: Kind
    how: str


@dataclass(frozen=True)
class Observation:
    """A statement, and what it rests on."""

    statement: str
    evidence: str


@dataclass(frozen=True)
class Experiment:
    """One run. `config` is what it ran with, after what preflight changed; None where run.json is damaged, which
    `fault` then says.

    `base` and `data` are short names, distinct within the report; `parameters` is the base's size, None where its
    shape is not known. `no_evaluation` and `no_diagnostics` say why there is nothing of that kind.
    """

    number: int
    id: str
    state: str
    config: RunConfig | None
    fault: str
    base: str
    data: str
    parameters: int | None
    versions: dict[str, str]
    fingerprint: dict[str, str]  # of the data, as run.json has it
    history: RunHistory
    memory: tuple[Figure, ...]
    evaluation: Evaluation | None
    no_evaluation: str
    findings: tuple[Finding, ...]
    no_diagnostics: str
    has_adapter: bool
    last_words: str
    sweep: tuple[str, tuple[str, ...]] | None = None  # its name, and the knobs that vary in it

    def of_all(self, count: int, kind: str) -> str:
        """So many events, and of how many where a long run was thinned."""
        every = self.history.count_all(kind)
        return f"{count:,} of {every:,}" if every else f"{count:,}"

    @property
    def ending(self) -> Ending:
        """The run's final event; an empty one while there is none since it was last started."""
        return self.history.ending or Ending()

    @property
    def oom_report(self) -> OomReport | None:
        """What is known of a run that ran out of memory."""
        return self.history.oom_report

    @property
    def went_wrong(self) -> bool:
        """Whether it failed, or died without a final event."""
        return self.state in ("failed", "died")

    @property
    def size(self) -> str:
        """The base's parameters, like 0.56B or 12M; "" where they are not known."""
        if self.parameters is None:
            return ""
        return f"{self.parameters / 1e9:.2g}B" if self.parameters >= 1e8 else f"{self.parameters / 1e6:.2g}M"

    @property
    def model(self) -> str:
        """The base with its size."""
        return f"{self.base} ({self.size})" if self.size else self.base

    def remembered(self, kind: Kind) -> Figure | None:
        """The most informative memory of a kind: that of the longest batch, else the largest seen."""
        return next((figure for figure in self.memory if figure.kind == kind), None)


@dataclass(frozen=True)
class Facts:
    """A report: its experiments, the machine it is written on, the votes, and when (seconds since the epoch).

    `gone` are runs that were deleted while it was written.
    """

    experiments: tuple[Experiment, ...]
    machine: Device
    ballots: Ballots
    made: float
    gone: tuple[str, ...] = ()

    def experiment(self, run_id: str) -> Experiment:
        """The experiment with this run id."""
        return next(experiment for experiment in self.experiments if experiment.id == run_id)
