"""`RunHistory`: what a run did, from its events; whoever wants to know asks here."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from qlora_gui.config import RunConfig, make
from qlora_gui.errors import UserError
from qlora_gui.runs.events import (
    AnyRecord,
    Base,
    Data,
    Ended,
    Ending,
    Eval,
    Event,
    Fit,
    Note,
    OomReport,
    Probe,
    Record,
    Started,
    Step,
    Thinned,
    kinds_of,
    read_as,
)

_FITTED = ("batch_size", "gradient_accumulation", "gradient_checkpointing")  # what preflight may change
_ENDS = 3  # logged points at either end of a loss curve that are averaged, for one point is noise


AtStep = TypeVar("AtStep", Step, Eval, Probe)
Curve = TypeVar("Curve", Step, Eval)


class RunHistory:
    """One run, of its sound events in the order of the file (`event_file.read`), whole or thinned.

    What is not known yet is None or empty. Events become instances of their classes when they are first asked for.
    """

    def __init__(self, events: Sequence[Event] = ()):
        self.events = events
        self._records: dict[type[Record], list[Any]] = {}

    def __bool__(self) -> bool:
        return bool(self.events)

    def latest(self, record: type[AnyRecord]) -> AnyRecord | None:
        """The latest event of a class."""
        kinds = kinds_of(record)
        event = next((event for event in reversed(self.events) if event["kind"] in kinds), None)
        return None if event is None else read_as(record, event)

    def all(self, record: type[AnyRecord]) -> list[AnyRecord]:
        """The events of a class, in their order."""
        if record not in self._records:
            kinds = kinds_of(record)
            self._records[record] = [read_as(record, event) for event in self.events if event["kind"] in kinds]
        return self._records[record]

    def by_step(self, record: type[AtStep]) -> list[AtStep]:
        """The events of a class by rising step; what a resumed run did again replaces what it had done."""
        result: list[AtStep] = []
        for event in self.all(record):
            while result and result[-1].step >= event.step:
                result.pop()
            result.append(event)
        return result

    def points(self, record: type[Curve], field: str) -> list[tuple[float, float]]:
        """(step, value) of the events that have the field; of a thinned run those of its even sample."""
        values = [(event.step, getattr(event, field)) for event in self.by_step(record) if not event.peak]
        return [(step, value) for step, value in values if value is not None]

    @property
    def notes(self) -> list[Note]:
        """What the run has remarked since it was last started."""
        since = max((place for place, event in enumerate(self.events) if event["kind"] == "started"), default=0)
        return RunHistory(self.events[since:]).all(Note)

    @property
    def ending(self) -> Ending | None:
        """The run's final event; None while there is none since it was last started."""
        kinds = kinds_of(Started) | kinds_of(Ending)
        last = next((event for event in reversed(self.events) if event["kind"] in kinds), None)
        return None if last is None or last["kind"] == "started" else read_as(Ending, last)

    @property
    def oom_report(self) -> OomReport | None:
        """What is known of a run that ended because it ran out of memory."""
        ending = self.ending
        return ending.autopsy if ending else None

    @property
    def facts(self) -> Mapping[str, Any]:
        """Those of `data.row_stats` on the rows that are trained on; {} where they are not known."""
        data = self.latest(Data)
        return (data.facts or {}) if data else {}  # type: ignore[return-value]

    @property
    def step_reached(self) -> int:
        """The step at the end, or of the latest point that was logged; 0 before the first."""
        kinds = kinds_of(Step) | kinds_of(Ended)
        return next((event.get("step", 0) for event in reversed(self.events) if event["kind"] in kinds), 0)

    @property
    def logged_step(self) -> int:
        """The step of the latest logged point; 0 before the first."""
        step = self.latest(Step)
        return step.step if step else 0

    def count_all(self, kind: str) -> int | None:
        """How many events of a kind there were in a run of which not all are kept; None where they are."""
        thinned = self.latest(Thinned)
        return thinned.counts.get(kind) if thinned else None

    def held_out(self) -> list[tuple[int, float]]:
        """(step, held-out loss) of every measurement that gave a number, by rising step."""
        return [(event.step, event.loss) for event in self.by_step(Eval) if event.loss is not None]

    def measured_steps(self) -> list[tuple[Step, float]]:
        """The logged steps with a loss, and it, up to the last held-out measurement, which they are held against."""
        held = self.held_out()
        steps = [(event, event.loss) for event in self.by_step(Step) if event.loss is not None]
        return [pair for pair in steps if pair[0].step <= held[-1][0]] if held else steps

    def training_ends(self) -> tuple[float, float] | None:
        """Mean training loss of the first and of the latest `measured_steps`; None while there are too few."""
        losses = [loss for step, loss in self.measured_steps() if not step.peak]
        if len(losses) < 2 * _ENDS:
            return None
        return sum(losses[:_ENDS]) / _ENDS, sum(losses[-_ENDS:]) / _ENDS

    def epochs_done(self) -> float:
        """How often the data had been seen at the latest of `measured_steps`."""
        steps = self.measured_steps()
        return float(steps[-1][0].epoch or 0.0) if steps else 0.0

    def optimizer_steps(self) -> int | None:
        """Steps of the whole run, as the trainer counted them."""
        steps = self.by_step(Step)
        return steps[-1].max_steps if steps else None

    def config_as_it_ran(self, config: RunConfig) -> RunConfig:
        """The run's config with what its trainer changed: gradient_checkpointing where that was auto, and what preflight
        made smaller. That of the latest start that came as far as its base, for each start begins with run.json.
        """
        starts = [place for place, event in enumerate(self.events) if event["kind"] == "base"]
        latest = RunHistory(self.events[starts[-1] :] if starts else self.events)
        base, fit = latest.latest(Base), latest.latest(Fit)
        changed: dict[str, Any] = {}
        if base and base.gradient_checkpointing:
            changed["gradient_checkpointing"] = base.gradient_checkpointing
        changed |= {name: value for name, value in (fit.knobs if fit else {}).items() if name in _FITTED}
        try:
            return make(config.model_dump() | changed)
        except UserError:  # a stranger's values, or another version's
            return config
