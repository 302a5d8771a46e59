"""Sweeps in the report: each one's grid as a table, and what its knobs do."""

from collections.abc import Iterator, Sequence
from typing import Any

from qlora_gui.preferences.pairwise import counted
from qlora_gui.report import comparability
from qlora_gui.report.blocks import Block, Heading, Link, Paragraph, Table
from qlora_gui.report.facts import Experiment, Observation
from qlora_gui.report.sections import anchor
from qlora_gui.report.text import VERDICTS, and_, knob
from qlora_gui.runs import sweep


def blocks(experiments: Sequence[Experiment]) -> list[Block]:
    """A table a sweep, a row a run, the lowest held-out loss first."""
    found: list[Block] = []
    for name, varies, members in _sweeps(experiments):
        order = sorted(members, key=lambda one: (_loss(one) is None, _loss(one) or 0.0))
        rows: list[list[str | Link]] = [[Link(one.id, anchor(one)), *_cell(one, varies), *_came(one)] for one in order]
        head = ("run", *map(knob, varies), "state", "held-out loss at the end, measured", "verdict")
        said = f"{counted(len(members), 'run')} over {and_([knob(one) for one in varies])}; all else is the same."
        found += [Paragraph(said, f"The sweep {name}."), Table(head, rows, (len(varies) + 2,))]
    return [Heading("Sweeps", 2), *found] if found else []


def observations(experiments: Sequence[Experiment]) -> Iterator[Observation]:
    """Of each sweep on the same rows and tokens: the lowest loss, and what each knob does, all else alike."""
    for name, varies, members in _sweeps(experiments):
        ended = [(one, loss) for one in members if (loss := _loss(one)) is not None]
        if len(ended) < 2 or not any(
            {one.id for one, _ in ended} <= {one.id for one in group} for group in _alike(ended)
        ):
            continue
        best, least = min(ended, key=lambda pair: pair[1])
        ends = [(_settings(one, varies), loss) for one, loss in ended]
        effects = {knob_name: means for knob_name in varies if (means := sweep.by_value(ends, knob_name))}
        told = [
            f"{knob(one)}: " + ", ".join(f"{value} {mean:.3f}" for value, mean in effects[one].items())
            for one in effects
        ]
        by_knob = f" Mean losses all else alike: {'; '.join(told)}." if told else ""
        yield Observation(
            f"In the sweep {name} the lowest held-out loss, {least:.3f}, was with {sweep.words(_settings(best, varies))} "
            f"({best.id}).{_most(effects)}",
            f"{len(ended)} of {counted(len(members), 'run')} measured while training, nats a token.{by_knob} One number each, "
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
    for one in experiments:
        if one.sweep and one.config:
            groups.setdefault(one.sweep, []).append(one)
    return [(name, varies, members) for (name, varies), members in groups.items() if len(members) > 1]


def _alike(ended: Sequence[tuple[Experiment, float]]) -> list[list[Experiment]]:
    return comparability.same_rows([one for one, _ in ended])


def _settings(one: Experiment, varies: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(one.config, name) for name in varies}


def _cell(one: Experiment, varies: Sequence[str]) -> list[str]:
    return [sweep.plain(value) for value in _settings(one, varies).values()]


def _loss(one: Experiment) -> float | None:
    """The last held-out loss; None of a run that did not end well or measured none after its base's."""
    held_out = one.held_out()
    ended = one.state in ("finished", "stopped") and len(held_out) > 1
    return float(held_out[-1]["loss"]) if ended else None


def _came(one: Experiment) -> list[str]:
    loss = _loss(one)
    verdict = VERDICTS[one.evaluation.verdict.kind] if one.evaluation else "not evaluated"
    return [one.state, "" if loss is None else f"{loss:.3f}", verdict]
