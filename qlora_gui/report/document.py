"""The report's order: goal and hardware, comparison, sweeps, observations, every experiment, failed runs, how to read it."""

import time
from collections.abc import Sequence

from qlora_gui.preferences.pairwise import STOPPING, counted
from qlora_gui.report import observations, overview, sweeps
from qlora_gui.report.blocks import Block, Bullets, Heading, Paragraph, Table
from qlora_gui.report.facts import Experiment, Facts
from qlora_gui.report.sections import section
from qlora_gui.report.text import and_


def blocks(facts: Facts) -> list[Block]:
    """The whole report."""
    wrong = [one for one in facts.experiments if one.went_wrong]
    others = [one for one in facts.experiments if not one.went_wrong]
    found: list[Block] = [
        Heading(_title(facts.experiments), 1),
        Paragraph(
            f"Written on {_day(facts.made)} from the folders of {counted(len(facts.experiments), 'run')}. Every number says "
            "whether it was measured, predicted from shapes before anything ran, or estimated, as intervals are."
        ),
        *([Paragraph(", ".join(facts.gone), "Deleted while this was written, and left out.")] if facts.gone else []),
        *_goal(facts),
        *overview.blocks(facts),
        *sweeps.blocks(facts.experiments),
        *_observations(facts),
    ]
    if others:
        found.append(Heading("The experiments", 2))
        for one in others:
            found += section(one, facts)
    if wrong:
        found.append(Heading("Runs that failed", 2))
        for one in wrong:
            found += section(one, facts)
    return [*found, *_how_to_read()]


def _title(experiments: Sequence[Experiment]) -> str:
    return f"QLoRA on {and_(_bases(experiments))}: {counted(len(experiments), 'experiment')}"


def _bases(experiments: Sequence[Experiment]) -> list[str]:
    names = list(dict.fromkeys(one.base for one in experiments if one.config))
    return names or ["unknown bases"]


def _goal(facts: Facts) -> list[Block]:
    """What the runs were for, as far as their settings tell, and what they ran on."""
    known = [one for one in facts.experiments if one.config]
    bases = list(dict.fromkeys(one.model for one in known)) or ["unknown bases"]
    data = list(dict.fromkeys(one.data for one in known)) or ["unknown data"]
    goal = (
        f"To fine-tune {and_(bases)} with QLoRA on {and_(data)}, and to find out whether an adapter is better than its base, "
        "and which settings made it so."
    )
    return [Heading("Goal and hardware", 2), Paragraph(goal, "Goal."), *_data(known), *_hardware(facts)]


def _data(known: Sequence[Experiment]) -> list[Block]:
    told = []
    for one in known:
        if event := one.event("data"):
            skipped = event.get("skipped")
            left_out = f", {skipped:,} left out" if skipped else ""
            rows = f"{event['used']:,} rows to learn from, {event['held_out']:,} held out"
            told.append(
                f"{one.data}: {rows}, {event['truncated']:,} truncated, {event['dropped']:,} dropped{left_out} (counted)."
            )
    return [Paragraph(" ".join(dict.fromkeys(told)), "Data.")] if told else []


def _hardware(facts: Facts) -> list[Block]:
    """The devices that runs name; of this machine's more, where it is the same."""
    used: dict[tuple[str, str], list[str]] = {}
    for one in facts.experiments:
        if base := one.event("base"):
            used.setdefault((base["device"], str(base.get("dtype") or "unknown")), []).append(one.id)
    rows = []
    for (device, dtype), ids in used.items():
        name = device.upper() if device == "cpu" else device
        rows.append([name, _memory_of(device, facts), dtype, ", ".join(ids)])
    versions = list(dict.fromkeys(_versions(one) for one in facts.experiments if one.versions))
    machine = f"{facts.machine.name}, {facts.machine.total / 2**30:.1f} GB of memory."
    found: list[Block] = [Table(("trained on", "memory (measured)", "computed in", "runs"), rows)] if rows else []
    if "cpu" in {device for device, _ in used} and facts.machine.kind == "cpu":
        machine += " Runs on a CPU do not record which; this may not be the one."
    return [*found, Paragraph(machine, "Written on."), *(Paragraph(told, "Libraries.") for told in versions)]


def _memory_of(device: str, facts: Facts) -> str:
    """A device's memory: of this machine's, or as a run found it that died of memory on it."""
    seen = [
        one.autopsy.get("total")
        for one in facts.experiments
        if one.autopsy and one.event("base").get("device") == device
    ]
    sizes = [facts.machine.total] if device == facts.machine.name else [size for size in seen if isinstance(size, int)]
    return f"{sizes[0] / 2**30:.1f} GB" if sizes else "not recorded"


def _versions(one: Experiment) -> str:
    return ", ".join(f"{name} {version}" for name, version in one.versions.items()) + "."


def _observations(facts: Facts) -> list[Block]:
    found: list[Block] = [Heading("Observations", 2)]
    for topic, told in observations.of(facts):
        found += [Paragraph("", topic), Bullets([(one.statement, one.evidence) for one in told])]
    if len(found) == 1:
        found.append(Paragraph("Nothing can be said of these runs yet: none was evaluated, voted on, or ended badly."))
    return [*found, Paragraph(facts.ballots.left_out)] if facts.ballots.left_out else found


def _how_to_read() -> list[Block]:
    return [
        Heading("How to read this", 2),
        Bullets(
            [
                ("Measured:", "read off while something ran, such as losses, memory of the allocator, votes counted."),
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
