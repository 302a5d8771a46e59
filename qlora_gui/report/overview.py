"""All experiments side by side: what was tried, how it ran, what came of it."""

from qlora_gui.evaluation.verdict import LABELS
from qlora_gui.formatting import clock, counted, difference
from qlora_gui.preferences.votes import HUMAN, Contest
from qlora_gui.report import comparability
from qlora_gui.report.blocks import Block, Curves, Heading, Link, Paragraph, Table
from qlora_gui.report.facts import Experiment, Facts
from qlora_gui.report.sections import anchor
from qlora_gui.report.text import cut, knob
from qlora_gui.report.votes import is_base
from qlora_gui.runs.curves import Series
from qlora_gui.runs.events import Eval, Step

_MOST_LINES = 6  # in one chart
_LONGEST = 60  # characters of a setting


def blocks(facts: Facts) -> list[Block]:
    """Three tables with a row per run, and the held-out losses that are of the same rows in one chart."""
    experiments = facts.experiments
    names = [*comparability.ALWAYS, *comparability.differing(experiments)]
    names = [name for name in dict.fromkeys(names) if name != "base_model"]
    parts: list[Block] = [
        Heading("Comparison", 2),
        Paragraph("Settings that every run shares are left out, beyond the usual four.", "What was tried."),
        Table(
            ("run", "base", *map(knob, names)),
            [[_link(experiment), *_setting_cells(experiment, names)] for experiment in experiments],
        ),
        Paragraph("On a CPU the memory measured is that of the whole process.", "How it ran."),
        Table(
            ("run", "state", "steps", "time, measured", "memory, predicted", "memory, measured"),
            [[_link(experiment), *_run_cells(experiment)] for experiment in experiments],
        ),
        Paragraph("Losses are nats per token; votes are wins against losses, ties left out.", "What came of it."),
        Table(
            (
                "run",
                "verdict",
                "held-out loss, measured",
                "change, 95% interval estimated",
                "votes against the base, counted",
                "diagnostics",
            ),
            [[_link(experiment), *_outcome_cells(experiment, facts)] for experiment in experiments],
        ),
    ]
    for group in comparability.same_rows(experiments):
        tokens, _ = comparability.tokens_of(group[0])
        count = f"{tokens:,}" if tokens is not None else "the same"
        title = f"Held-out loss on {count} tokens of {group[0].data}, nats per token (measured)"
        lines = [Series(experiment.id, experiment.history.points(Eval, "loss"), dotted=True) for experiment in group]
        for first in range(0, len(lines), _MOST_LINES):
            parts.append(Curves(title, lines[first : first + _MOST_LINES]))
    return parts


def _link(experiment: Experiment) -> Link:
    return Link(experiment.id, anchor(experiment))


def _setting_cells(experiment: Experiment, names: list[str]) -> list[str]:
    values = comparability.settings(experiment)
    return [experiment.model, *(cut(values.get(name, "unknown"), _LONGEST) for name in names)]


def _run_cells(experiment: Experiment) -> list[str]:
    step, ending = experiment.history.latest(Step), experiment.ending
    steps = f"{ending.step or step.step} of {step.max_steps}" if step else "none"
    memory = [
        figure.value if (figure := experiment.remembered(kind)) else "not known" for kind in ("predicted", "measured")
    ]
    return [experiment.state, steps, clock(ending.seconds) if ending.seconds is not None else "", *memory]


def _outcome_cells(experiment: Experiment, facts: Facts) -> list[str]:
    evaluation = experiment.evaluation
    loss = evaluation and evaluation.loss
    change = difference(loss.difference, loss.low, loss.high) if loss else ""
    label = LABELS[evaluation.verdict.kind] if evaluation else "not evaluated"
    return [label, _losses(experiment), change, _votes(experiment, facts), _diagnostics(experiment)]


def _losses(experiment: Experiment) -> str:
    """Held-out losses of the base and at the end, of the evaluation where there is one."""
    if experiment.evaluation:
        return f"{experiment.evaluation.loss.base:.3f} → {experiment.evaluation.loss.adapter:.3f}"
    held_out = experiment.history.held_out()
    if not held_out:
        return "none"
    (step, base), (_, now) = held_out[0], held_out[-1]
    first = f"{base:.3f} → " if step == 0 and len(held_out) > 1 else ""
    return f"{first}{now:.3f}"


def _votes(experiment: Experiment, facts: Facts) -> str:
    """Wins and losses of the adapter against its base, which is a contest's first column."""
    results = [
        f"{tally.wins[1]}-{tally.wins[0]}{_unless_people(tally.contest)}"
        for tally in facts.ballots.pairs_of(experiment.id)
        if is_base(tally.contest.columns[0])
    ]
    for field in facts.ballots.fields_of(experiment.id):
        columns = field.rating.columns
        mine = next(
            number for number, column in enumerate(columns) if not is_base(column) and column.name == experiment.id
        )
        if is_base(columns[0]):
            lost, won = field.rating.pair(0, mine).wins
            results.append(f"{won}-{lost} (of {len(columns)} columns){_unless_people(field.contest)}")
    return "; ".join(results) if results else "no votes"


def _unless_people(contest: Contest) -> str:
    return "" if contest.by == HUMAN else " (by a model)"


def _diagnostics(experiment: Experiment) -> str:
    if experiment.no_diagnostics:
        return "not examined"
    levels = (("bad", "fault"), ("warn", "warning"))
    counts = [(sum(finding.level == level for finding in experiment.findings), word) for level, word in levels]
    parts = [counted(count, word) for count, word in counts if count]
    return ", ".join(parts) if parts else "no warning"
