"""The report's order: goal and hardware, comparison, sweeps, observations, every experiment, failed runs, how to read it."""

import time
from collections.abc import Sequence

from qlora_gui.formatting import counted, gigabytes
from qlora_gui.preferences.pairwise import STOPPING
from qlora_gui.report import observations, overview, sweeps
from qlora_gui.report.blocks import Block, Bullets, Heading, Paragraph, Table
from qlora_gui.report.facts import UNKNOWN, Experiment, Facts
from qlora_gui.report.sections import section
from qlora_gui.report.text import and_
from qlora_gui.runs.events import Base, Data
from qlora_gui.runs.store import ELSEWHERE


def blocks(facts: Facts) -> list[Block]:
    """The whole report."""
    wrong = [experiment for experiment in facts.experiments if experiment.went_wrong]
    others = [experiment for experiment in facts.experiments if not experiment.went_wrong]
    parts: list[Block] = [
        Heading(_title(facts.experiments), 1),
        Paragraph(
            f"Written on {_day(facts.made)} from the folders of {counted(len(facts.experiments), 'run')}. Every number is marked "
            "as measured, predicted (from shapes, before anything ran) or estimated (as intervals are)."
        ),
        *(
            [Paragraph(", ".join(facts.gone), "Deleted while the report was being written, and left out.")]
            if facts.gone
            else []
        ),
        *_goal(facts),
        *overview.blocks(facts),
        *sweeps.blocks(facts.experiments),
        *_observations(facts),
    ]
    if others:
        parts.append(Heading("The experiments", 2))
        for experiment in others:
            parts += section(experiment, facts)
    if wrong:
        parts.append(Heading("Runs that failed", 2))
        for experiment in wrong:
            parts += section(experiment, facts)
    return [*parts, *_how_to_read()]


def _title(experiments: Sequence[Experiment]) -> str:
    return f"QLoRA on {and_(_bases(experiments))}: {counted(len(experiments), 'experiment')}"


def _bases(experiments: Sequence[Experiment]) -> list[str]:
    told = [experiment for experiment in experiments if experiment.config or experiment.state == ELSEWHERE]
    names = list(dict.fromkeys(experiment.base for experiment in told if experiment.base != UNKNOWN))
    return names or ["unknown bases"]


def _goal(facts: Facts) -> list[Block]:
    """What the runs were for, as far as their settings tell, and what they ran on."""
    known = [experiment for experiment in facts.experiments if experiment.config]
    elsewhere = [experiment for experiment in facts.experiments if experiment.state == ELSEWHERE]
    if elsewhere and len(elsewhere) == len(facts.experiments):
        goal = "To find out whether adapters that were made elsewhere are better than their base."
        return [Heading("Goal and hardware", 2), Paragraph(goal, "Goal."), *_hardware(facts)]
    bases = list(dict.fromkeys(experiment.model for experiment in known)) or ["unknown bases"]
    data = list(dict.fromkeys(experiment.data for experiment in known)) or ["unknown data"]
    goal = (
        f"To fine-tune {and_(bases)} with QLoRA on {and_(data)}, and to find out whether an adapter is better than its base, "
        "and which settings made it so."
    )
    return [Heading("Goal and hardware", 2), Paragraph(goal, "Goal."), *_data(known), *_hardware(facts)]


def _data(known: Sequence[Experiment]) -> list[Block]:
    lines = []
    for experiment in known:
        if data := experiment.history.latest(Data):
            left_out = f", {data.skipped:,} left out" if data.skipped else ""
            rows = f"{data.used:,} rows to train on, {data.held_out:,} held out"
            lines.append(
                f"{experiment.data}: {rows}, {data.truncated:,} truncated, {data.dropped:,} dropped{left_out} (counted)."
            )
    return [Paragraph(" ".join(dict.fromkeys(lines)), "Data.")] if lines else []


def _hardware(facts: Facts) -> list[Block]:
    """The devices that runs record, with this machine's memory where it is the same."""
    used: dict[tuple[str, str], list[str]] = {}
    for experiment in facts.experiments:
        if base := experiment.history.latest(Base):
            used.setdefault((base.device, base.dtype or "unknown"), []).append(experiment.id)
    rows = []
    for (device, dtype), ids in used.items():
        name = device.upper() if device == "cpu" else device
        rows.append([name, _memory_of(device, facts), dtype, ", ".join(ids)])
    versions = list(dict.fromkeys(_versions(experiment) for experiment in facts.experiments if experiment.versions))
    machine = f"{facts.machine.name}, {gigabytes(facts.machine.total)} of memory."
    tables: list[Block] = [Table(("trained on", "memory (measured)", "computed in", "runs"), rows)] if rows else []
    if "cpu" in {device for device, _ in used} and facts.machine.kind == "cpu":
        machine += " CPU runs do not record the machine; this may not be the one."
    return [*tables, Paragraph(machine, "Written on."), *(Paragraph(text, "Libraries.") for text in versions)]


def _memory_of(device: str, facts: Facts) -> str:
    """A device's memory: of this machine's, or as recorded by a run that ran out of memory on it."""
    histories = [experiment.history for experiment in facts.experiments]
    on_it = [history for history in histories if (base := history.latest(Base)) and base.device == device]
    seen = [(history.oom_report or {}).get("total") for history in on_it]
    sizes = [facts.machine.total] if device == facts.machine.name else [size for size in seen if size is not None]
    return gigabytes(sizes[0]) if sizes else "not recorded"


def _versions(experiment: Experiment) -> str:
    return ", ".join(f"{name} {version}" for name, version in experiment.versions.items()) + "."


def _observations(facts: Facts) -> list[Block]:
    parts: list[Block] = [Heading("Observations", 2)]
    for topic, statements in observations.derive(facts):
        parts += [
            Paragraph("", topic),
            Bullets([(observation.statement, observation.evidence) for observation in statements]),
        ]
    if len(parts) == 1:
        parts.append(
            Paragraph("Nothing can be said about these runs yet: none was evaluated, voted on, or ended badly.")
        )
    return [*parts, Paragraph(facts.ballots.left_out)] if facts.ballots.left_out else parts


def _how_to_read() -> list[Block]:
    return [
        Heading("How to read this", 2),
        Bullets(
            [
                ("Measured:", "recorded while something ran, such as losses, allocator memory, counted votes."),
                ("Predicted:", "from the base's shape and the settings alone, before anything ran."),
                (
                    "Estimated:",
                    "computed from measurements, with their uncertainty. Intervals are 95%: BCa bootstrap of paired differences "
                    "for losses, Wilson for votes on two, bootstrap over prompts for votes on more.",
                ),
                (
                    "Told apart:",
                    "adapters whose 95% intervals do not touch: about 1.96 standard errors of their difference, or more.",
                ),
                ("Votes:", f"no winner is named while the interval covers one half. {STOPPING}"),
                (
                    "Not compared:",
                    "losses of different rows, or per token of bases whose tokenizers differ.",
                ),
            ]
        ),
    ]


def _day(made: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(made))
