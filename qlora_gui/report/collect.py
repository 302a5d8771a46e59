"""From the folders of runs to the facts of a report. Nothing here raises for a damaged run: it is reported as such."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlora_gui import diagnostics, hardware
from qlora_gui.config import RunConfig
from qlora_gui.diagnostics import Finding
from qlora_gui.diagnostics.finding import LEVELS
from qlora_gui.errors import UserError
from qlora_gui.evaluation import job
from qlora_gui.evaluation.results import Evaluation
from qlora_gui.formatting import gigabytes
from qlora_gui.memory import budget as budgets
from qlora_gui.memory import known_models
from qlora_gui.memory.budget import Budget
from qlora_gui.memory.estimate import plan
from qlora_gui.memory.model_shape import Shape
from qlora_gui.report import votes
from qlora_gui.report.facts import UNKNOWN, Experiment, Facts, Figure, Kind
from qlora_gui.runs import base_names, elsewhere
from qlora_gui.runs.events import Base, Memory, Saved, Step, Thinned
from qlora_gui.runs.history import RunHistory
from qlora_gui.runs.store import Run, RunStore

WHAT = "peak memory"
_CLOSED_FORM = "closed form from the base's shape, for the longest batch there can be"

Named = tuple[str, str]  # a short name, and what makes it another thing under the same name
_LOG_LINES = 3


def facts_of(store: RunStore, run_ids: Sequence[str] = ()) -> Facts:
    """The facts of these runs in this order; without ids those of all runs, the oldest first.

    Raises UserError for an unknown id, and where there is no run.
    """
    runs = [store.get(run_id) for run_id in dict.fromkeys(run_ids)] if run_ids else store.all()[::-1]
    if not runs:
        raise UserError(f"There are no runs in {store.root} to report on: train one first.")
    configs = [_config(run) for run in runs]
    manifests = [_manifest(run) for run in runs]
    bases = _distinct_names([_base_name(run, config) for run, (config, _) in zip(runs, configs, strict=True)])
    data = _distinct_names(
        [_data_name(config, manifest) for (config, _), manifest in zip(configs, manifests, strict=True)]
    )
    experiments = tuple(
        _experiment(number, run, config, fault, manifest, names)
        for number, (run, (config, fault), manifest, names) in enumerate(
            zip(runs, configs, manifests, zip(bases, data, strict=True), strict=True), 1
        )
    )
    gone = tuple(run.id for run in runs if not (run.path / "run.json").exists() and not run.is_elsewhere())
    experiments = tuple(experiment for experiment in experiments if experiment.id not in gone)
    if not experiments:
        raise UserError(f"All runs of the report were deleted while it was written: {', '.join(gone)}.")
    saved = {experiment.id: experiment.history.latest(Saved) for experiment in experiments}
    checksums = {run_id: event.sha256 if event else None for run_id, event in saved.items()}
    bases_of_runs = [experiment.history.latest(Base) for experiment in experiments]
    trained_on = {str(base.fingerprint if base else None) for base in bases_of_runs}
    return Facts(experiments, hardware.devices()[0], votes.count_votes(store, checksums, trained_on), time.time(), gone)


def _experiment(
    number: int, run: Run, config: RunConfig | None, fault: str, manifest: dict[str, Any], names: tuple[str, str]
) -> Experiment:
    history = run.history()
    config = history.config_as_it_ran(config) if config else None
    shape = shape_of(config)
    evaluation = job.result(run)
    findings, no_diagnostics = _examined(config, shape, history, evaluation)
    if run.is_elsewhere():
        no_diagnostics = "Not examined: it was trained elsewhere, with settings and data that are not known here."
    return Experiment(
        number=number,
        id=run.id,
        state=run.state(),
        config=config,
        fault=fault,
        base=names[0],
        data=names[1],
        parameters=shape.parameters if shape else None,
        versions=_texts(manifest.get("versions")),
        fingerprint=_texts(manifest.get("dataset")),
        history=history,
        memory=figures(config, shape, history),
        evaluation=evaluation,
        no_evaluation="" if evaluation else _not_evaluated(run),
        findings=findings,
        no_diagnostics=no_diagnostics,
        has_adapter=run.has_adapter(),
        last_words=run.log_tail(_LOG_LINES),
        sweep=run.sweep(),
    )


def _config(run: Run) -> tuple[RunConfig | None, str]:
    """The settings of a run, or None and why they are not known, "" of an adapter made elsewhere."""
    if run.is_elsewhere():
        return None, ""
    try:
        return run.config(), ""
    except UserError as error:
        return None, str(error)


def _manifest(run: Run) -> dict[str, Any]:
    try:
        return run.manifest()
    except UserError:
        return {}


def _not_evaluated(run: Run) -> str:
    if (run.path / job.FILE).exists():
        return "Not evaluated: its evaluation.json is damaged, or of an earlier adapter in this folder."
    return "Not evaluated." if run.has_adapter() else "Not evaluated: there is no adapter."


def _examined(
    config: RunConfig | None, shape: Shape | None, history: RunHistory, evaluation: Evaluation | None
) -> tuple[tuple[Finding, ...], str]:
    """The findings on settings, data, curves and adapter, worst first; why there was no diagnosis, else ""."""
    if config is None:
        return (), "Not examined: run.json cannot be read."
    findings = diagnostics.after(config, history, evaluation.parts() if evaluation else None)
    names = {finding.check for finding in findings}
    findings += [finding for finding in diagnostics.before(config, shape, history.facts) if finding.check not in names]
    return tuple(sorted(findings, key=lambda finding: LEVELS.index(finding.level))), ""


def _base_name(run: Run, config: RunConfig | None) -> Named:
    if config is None:
        with suppress(UserError):
            if run.is_elsewhere() and (named := elsewhere.named_base(run.path)[0]):
                return base_names.last(named), named
        return UNKNOWN, ""
    revision = f" @ {config.revision}" if config.revision else ""
    return Path(config.base_model).name + revision, config.base_model + revision


def _data_name(config: RunConfig | None, manifest: dict[str, Any]) -> Named:
    if config is None:
        return UNKNOWN, ""
    sums = [value for name, value in sorted(_texts(manifest.get("dataset")).items()) if name != "name"]
    return Path(config.dataset).name, " ".join(value[:8] for value in sums) or config.dataset


def _distinct_names(names: Sequence[Named]) -> list[str]:
    """The short names; with what makes them differ where one name stands for several things."""
    meant: dict[str, set[str]] = {}
    for short, whole in names:
        meant.setdefault(short, set()).add(whole)
    return [f"{short} ({whole})" if len(meant[short]) > 1 else short for short, whole in names]


def _texts(value: Any) -> dict[str, str]:
    """A mapping of texts as it should be in run.json; what is not that is left out."""
    if not isinstance(value, dict):
        return {}
    return {key: item for key, item in value.items() if isinstance(item, str)}


def shape_of(config: RunConfig | None) -> Shape | None:
    """The base's shape as far as it is known without asking a hub."""
    try:
        return known_models.find(config, ask=False) if config else None
    except UserError:
        return None


def figures(config: RunConfig | None, shape: Shape | None, history: RunHistory) -> tuple[Figure, ...]:
    """Predicted and measured memory, the most informative first; either may be missing. `config` is as it ran."""
    known = [*_died(history), *_tried(history), *_seen(history)]
    if not any(figure.kind == "predicted" for figure in known):
        known = [*_planned(config, shape, history), *known]
    return tuple(known)


def _died(history: RunHistory) -> list[Figure]:
    """The peak that was predicted for a run that ran out of memory, and what it held."""
    report = history.oom_report or {}
    sources: tuple[tuple[Kind, str, int | None], ...] = (
        ("predicted", _CLOSED_FORM, report.get("predicted")),
        ("measured", "torch's allocator, when it ran out of memory", report.get("measured")),
    )
    return [Figure(WHAT, gigabytes(size), kind, how) for kind, how, size in sources if size is not None]


def _tried(history: RunHistory) -> list[Figure]:
    """What the longest batch took before the first step, and what had been predicted for it."""
    event = history.latest(Memory)
    if event is None:
        return []
    on = f" on {event.gpu}" if event.gpu else ""
    return [
        Figure(WHAT, gigabytes(event.predicted), "predicted", "closed form, for the run's own longest batch"),
        Figure(WHAT, gigabytes(event.measured), "measured", f"torch's allocator, two steps on the longest batch{on}"),
    ]


def _seen(history: RunHistory) -> list[Figure]:
    """The most that logged steps held."""
    held = [event.memory for event in history.by_step(Step) if event.memory is not None]
    if not held:
        return []
    sampled = ", a sample of all" if history.latest(Thinned) else ""
    base = history.latest(Base)
    on_cpu = base is None or base.device == "cpu"
    how = "resident size of the training process" if on_cpu else "torch's allocator, peak of the whole process"
    return [Figure(WHAT, gigabytes(max(held)), "measured", f"{how}, the most of {len(held):,} logged steps{sampled}")]


def _planned(config: RunConfig | None, shape: Shape | None, history: RunHistory) -> list[Figure]:
    """The plan of a run that recorded none."""
    if config is None or shape is None:
        return []
    budget = _budget(history.latest(Base))
    try:
        memory_plan = plan(config, shape, budget)
    except UserError:  # its target_modules name no linear of the base
        return []
    how = f"{_CLOSED_FORM}: {memory_plan.rows} x {memory_plan.length} tokens, checkpointing {memory_plan.checkpointing}"
    return [Figure(WHAT, gigabytes(memory_plan.total), "predicted", how)]


def _budget(base: Base | None) -> Budget:
    """The device that a run trained on, by its `base` event; this machine's where it never came so far."""
    here = budgets.here()
    if base is None or base.device == here.gpu:
        return here
    number = 4 if base.dtype == "float32" else 2
    if base.device == "cpu":
        return replace(here if here.kind == "cpu" else Budget("CPU", 0, 0, "cpu"), number=number)
    return Budget(base.device, 0, 0, "cuda", number=number)  # of another machine: only the total is asked for
