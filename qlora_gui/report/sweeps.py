"""Sweeps in the report: each one's grid as a table, and what its knobs do."""

from collections.abc import Iterator, Sequence
from typing import Any

from qlora_gui.evaluation.verdict import LABELS
from qlora_gui.formatting import counted, setting
from qlora_gui.report import comparability
from qlora_gui.report.blocks import Block, Heading, Link, Paragraph, Table
from qlora_gui.report.facts import Experiment, Observation
from qlora_gui.report.sections import anchor
from qlora_gui.report.text import and_, knob
from qlora_gui.runs import sweep


def blocks(experiments: Sequence[Experiment]) -> list[Block]:
    """A table per sweep, a row per run, the lowest held-out loss first."""
    parts: list[Block] = []
    for name, varies, members in _sweeps(experiments):
        order = sorted(members, key=lambda experiment: (_loss(experiment) is None, _loss(experiment) or 0.0))
        rows: list[list[str | Link]] = [
            [Link(experiment.id, anchor(experiment)), *_setting_cells(experiment, varies), *_outcome_cells(experiment)]
            for experiment in order
        ]
        head = ("run", *map(knob, varies), "state", "held-out loss at the end, measured", "verdict")
        caption = (
            f"{counted(len(members), 'run')} over {and_([knob(varied) for varied in varies])}; all else is the same."
        )
        parts += [Paragraph(caption, f"The sweep {name}."), Table(head, rows, (len(varies) + 2,))]
    return [Heading("Sweeps", 2), *parts] if parts else []


def observations(experiments: Sequence[Experiment]) -> Iterator[Observation]:
    """Of each sweep on the same rows and tokens: the lowest loss, and what each knob does, all else alike."""
    for name, varies, members in _sweeps(experiments):
        ended = [(experiment, loss) for experiment in members if (loss := _loss(experiment)) is not None]
        if len(ended) < 2 or not any(
            {experiment.id for experiment, _ in ended} <= {experiment.id for experiment in group}
            for group in _alike(ended)
        ):
            continue
        best, least = min(ended, key=lambda pair: pair[1])
        ends = [(_settings(experiment, varies), loss) for experiment, loss in ended]
        effects = {knob_name: means for knob_name in varies if (means := sweep.by_value(ends, knob_name))}
        effect_texts = [
            f"{knob(knob_name)}: " + ", ".join(f"{value} {mean:.3f}" for value, mean in means.items())
            for knob_name, means in effects.items()
        ]
        by_knob = f" Mean losses, all else equal: {'; '.join(effect_texts)}." if effect_texts else ""
        yield Observation(
            f"In the sweep {name} the lowest held-out loss, {least:.3f}, was with {sweep.words(_settings(best, varies))} "
            f"({best.id}).{_most(effects)}",
            f"{len(ended)} of {counted(len(members), 'run')} measured while training, nats per token.{by_knob} One number each, "
            "without an interval: small differences may be chance.",
        )


def _most(effects: dict[str, dict[str, float]]) -> str:
    """Which knob moved the loss most, of two and more."""
    if len(effects) < 2:
        return ""
    spread = {name: max(means.values()) - min(means.values()) for name, means in effects.items()}
    first = max(spread, key=lambda name: spread[name])
    return f" Of its settings {knob(first)} moved the loss most, by {spread[first]:.3f}."


def _sweeps(experiments: Sequence[Experiment]) -> list[tuple[str, tuple[str, ...], list[Experiment]]]:
    groups: dict[tuple[str, tuple[str, ...]], list[Experiment]] = {}
    for experiment in experiments:
        if experiment.sweep and experiment.config:
            groups.setdefault(experiment.sweep, []).append(experiment)
    return [(name, varies, members) for (name, varies), members in groups.items() if len(members) > 1]


def _alike(ended: Sequence[tuple[Experiment, float]]) -> list[list[Experiment]]:
    return comparability.same_rows([experiment for experiment, _ in ended])


def _settings(experiment: Experiment, varies: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(experiment.config, name) for name in varies}


def _setting_cells(experiment: Experiment, varies: Sequence[str]) -> list[str]:
    return [setting(value, "+") for value in _settings(experiment, varies).values()]


def _loss(experiment: Experiment) -> float | None:
    """The last held-out loss; None of a run that did not end well or measured none after its base's."""
    held_out = experiment.history.held_out()
    ended = experiment.state in ("finished", "stopped") and len(held_out) > 1
    return held_out[-1][1] if ended else None


def _outcome_cells(experiment: Experiment) -> list[str]:
    loss = _loss(experiment)
    label = LABELS[experiment.evaluation.verdict.kind] if experiment.evaluation else "not evaluated"
    return [experiment.state, "" if loss is None else f"{loss:.3f}", label]
