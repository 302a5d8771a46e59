"""All experiments side by side: what was tried, how it ran, what came of it."""

from qlora_gui.preferences.pairwise import counted
from qlora_gui.preferences.votes import HUMAN, Contest
from qlora_gui.report import comparability
from qlora_gui.report.blocks import Block, Curves, Heading, Link, Paragraph, Table
from qlora_gui.report.facts import Experiment, Facts
from qlora_gui.report.sections import anchor
from qlora_gui.report.text import VERDICTS, cut, interval, knob
from qlora_gui.report.votes import is_base
from qlora_gui.runs.curves import Series, points
from qlora_gui.runs.event_text import clock

_MOST_LINES = 6  # in one chart
_LONGEST = 60  # characters of a setting


def blocks(facts: Facts) -> list[Block]:
    """Three tables with a row a run, and the held-out losses that are of the same rows in one chart."""
    experiments = facts.experiments
    names = [*comparability.ALWAYS, *comparability.differing(experiments)]
    names = [name for name in dict.fromkeys(names) if name != "base_model"]
    found: list[Block] = [
        Heading("Comparison", 2),
        Paragraph("Settings that every run shares are left out, beyond the usual four.", "What was tried."),
        Table(("run", "base", *map(knob, names)), [[_link(one), *_tried(one, names)] for one in experiments]),
        Paragraph("On a CPU the memory measured is that of the whole process.", "How it ran."),
        Table(
            ("run", "state", "steps", "time, measured", "memory, predicted", "memory, measured"),
            [[_link(one), *_ran(one)] for one in experiments],
        ),
        Paragraph("Losses are nats a token; votes are wins against losses, ties left out.", "What came of it."),
        Table(
            (
                "run",
                "verdict",
                "held-out loss, measured",
                "change, 95% interval estimated",
                "votes against the base, counted",
                "doctor",
            ),
            [[_link(one), *_came(one, facts)] for one in experiments],
        ),
    ]
    for group in comparability.same_rows(experiments):
        tokens, _ = comparability.tokens_of(group[0])
        count = f"{tokens:,}" if isinstance(tokens, int) else "the same"
        title = f"Held-out loss on {count} tokens of {group[0].data}, nats a token (measured)"
        lines = [Series(one.id, points(one.events, "eval", "loss"), dotted=True) for one in group]
        for first in range(0, len(lines), _MOST_LINES):
            found.append(Curves(title, lines[first : first + _MOST_LINES]))
    return found


def _link(one: Experiment) -> Link:
    return Link(one.id, anchor(one))


def _tried(one: Experiment, names: list[str]) -> list[str]:
    values = comparability.settings(one)
    return [one.model, *(cut(values.get(name, "unknown"), _LONGEST) for name in names)]


def _ran(one: Experiment) -> list[str]:
    step, ending = one.event("step"), one.ending
    steps = f"{ending.get('step') or step['step']} of {step['max_steps']}" if step else "none"
    seconds = ending.get("seconds")
    memory = [figure.value if (figure := one.remembered(kind)) else "not known" for kind in ("predicted", "measured")]
    return [one.state, steps, clock(seconds) if isinstance(seconds, (int, float)) else "", *memory]


def _came(one: Experiment, facts: Facts) -> list[str]:
    found = one.evaluation
    change = f"{found.loss.difference:+.3f} {interval(found.loss.low, found.loss.high, sign=True)}" if found else ""
    verdict = VERDICTS[found.verdict.kind] if found else "not evaluated"
    return [verdict, _losses(one), change, _votes(one, facts), _doctor(one)]


def _losses(one: Experiment) -> str:
    """Held-out losses of the base and at the end, of the evaluation where there is one."""
    if one.evaluation:
        return f"{one.evaluation.loss.base:.3f} → {one.evaluation.loss.adapter:.3f}"
    held_out = one.held_out()
    if not held_out:
        return "none"
    first = f"{held_out[0]['loss']:.3f} → " if held_out[0]["step"] == 0 and len(held_out) > 1 else ""
    return f"{first}{held_out[-1]['loss']:.3f}"


def _votes(one: Experiment, facts: Facts) -> str:
    """Wins and losses of the adapter against its base, which is a contest's first column."""
    told = [
        f"{found.wins[1]}-{found.wins[0]}{_unless_people(found.contest)}"
        for found in facts.ballots.pairs_of(one.id)
        if is_base(found.contest.columns[0])
    ]
    for field in facts.ballots.fields_of(one.id):
        columns = field.rating.columns
        mine = next(number for number, column in enumerate(columns) if not is_base(column) and column.name == one.id)
        if is_base(columns[0]):
            lost, won = field.rating.pair(0, mine).wins
            told.append(f"{won}-{lost} (of {len(columns)} columns){_unless_people(field.contest)}")
    return "; ".join(told) if told else "no votes"


def _unless_people(contest: Contest) -> str:
    return "" if contest.by == HUMAN else " (by a model)"


def _doctor(one: Experiment) -> str:
    if one.no_doctor:
        return "not examined"
    levels = (("bad", "fault"), ("warn", "warning"))
    counts = [(sum(found.level == level for found in one.findings), word) for level, word in levels]
    told = [counted(count, word) for count, word in counts if count]
    return ", ".join(told) if told else "no warning"
