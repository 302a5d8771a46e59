"""One experiment as blocks: verdict, settings, curve, figures, votes, findings, answers, autopsy."""

from qlora_gui.data import reasoning
from qlora_gui.formatting import gigabytes
from qlora_gui.report import comparability, figures
from qlora_gui.report.blocks import Answer, Block, Box, Bullets, Curves, Heading, Paragraph, SideBySide, Table, Verbatim
from qlora_gui.report.facts import Experiment, Facts
from qlora_gui.report.preferences import result
from qlora_gui.report.text import cut, knob, shortened
from qlora_gui.report.votes import judge
from qlora_gui.runs.curves import Series
from qlora_gui.runs.event_text import not_all, oom_report_lines
from qlora_gui.runs.events import Base, Eval, Fit, OomReport, Probe, Step
from qlora_gui.runs.store import ELSEWHERE

ANSWERS = 3
_LONGEST, _LONGEST_SETTING = 900, 60  # characters of an answer or a prompt, and of a setting
_BOXES = {"better": "good", "worse": "bad", "unclear": "plain"}
_LEVELS = {"bad": "Breaks the run", "warn": "Warning", "note": "Note"}


def anchor(experiment: Experiment) -> str:
    """What a link to this experiment points to."""
    return f"report-run-{experiment.number}"


def section(experiment: Experiment, facts: Facts) -> list[Block]:
    """Everything that is known of a run, under its heading."""
    return [
        Heading(f"{experiment.number} · {experiment.id}", 3, anchor(experiment)),
        _verdict(experiment),
        *_ended(experiment),
        *_settings(experiment, facts),
        *_curve(experiment),
        *_figures(experiment),
        *_votes(experiment, facts),
        *_findings(experiment),
        *_answers(experiment),
    ]


def _verdict(experiment: Experiment) -> Box:
    if experiment.evaluation:
        verdict = experiment.evaluation.verdict
        return Box(verdict.text, _BOXES[verdict.kind])  # type: ignore[arg-type]
    return Box(
        f"{experiment.state.capitalize()}. {experiment.no_evaluation}", "bad" if experiment.went_wrong else "plain"
    )


def _ended(experiment: Experiment) -> list[Block]:
    """How a run ended that did not end well, and its autopsy where it ran out of memory."""
    parts: list[Block] = [Paragraph(experiment.fault, "Settings unknown.")] if experiment.fault else []
    if experiment.state == ELSEWHERE:
        text = "It has PEFT's files and no training history here."
        parts.append(Paragraph(text, "Made elsewhere."))
    elif not experiment.history:
        parts.append(Paragraph("The run has written no events.", "Nothing recorded."))
    parts += [Paragraph(remark, "Not all events.") for remark in not_all(experiment.history)]
    if message := experiment.ending.message:
        parts.append(Paragraph(shortened(message, experiment), "Its last message."))
    if experiment.oom_report:
        parts += _out_of_memory(experiment.oom_report)
    elif experiment.went_wrong and experiment.last_words:
        parts += [Paragraph("", "The end of its log:"), Verbatim(cut(experiment.last_words, _LONGEST))]
    return parts


def _out_of_memory(report: OomReport) -> list[Block]:
    """When memory ran out, who else held it, and the changes that would have helped."""
    when = f"after step {report['step']}" if report.get("step") else "before the first step"
    text = f"It ran out of memory in the stage '{report.get('phase')}', {when}."
    total, free = report.get("total"), report.get("free")
    if total is not None and free is not None:
        text += f" The device has {gigabytes(total)}, {gigabytes(free)} of them free for it (measured)."
    parts: list[Block] = [Paragraph(text, "Autopsy.")]
    if lines := oom_report_lines(report):
        parts += [Paragraph("Savings are predicted.", "What else held memory, and what would have helped:")]
        parts.append(Verbatim("\n".join(lines)))
    return parts


def _settings(experiment: Experiment, facts: Facts) -> list[Block]:
    """The four that matter most, and what else differs among the runs of this report."""
    values = comparability.settings(experiment)
    if not values:
        return []
    names = [*comparability.ALWAYS, *comparability.differing(facts.experiments)]
    listed = [
        f"{knob(name)} {cut(values[name], _LONGEST_SETTING)}"
        for name in dict.fromkeys(names)
        if name not in ("base_model", "dataset")
    ]
    base = experiment.history.latest(Base)
    dtype = f", computed in {base.dtype} on {base.device}" if base and base.dtype else ""
    trained = f"; {base.trained:,} parameters trained (counted)" if base and base.trained is not None else ""
    return [
        Paragraph(f"{experiment.model} on {experiment.data}: {', '.join(listed)}{dtype}{trained}.", "Settings."),
        *(Paragraph(event.text, "Changed by preflight.") for event in experiment.history.all(Fit)),
    ]


def _curve(experiment: Experiment) -> list[Block]:
    training, held_out = experiment.history.points(Step, "loss"), experiment.history.points(Eval, "loss")
    if not training and not held_out:
        return []
    lines = [Series("training", training), Series("held-out", held_out, dashed=True, dotted=True)]
    return [Curves("Loss, nats per token (measured)", lines)]


def _figures(experiment: Experiment) -> list[Block]:
    """Every number of the run with what it is."""
    rows = [(figure.what, figure.value, figure.kind, figure.how) for figure in figures.collect(experiment)]
    return [Table(("what", "value", "it is", "how"), rows)] if rows else []


def _votes(experiment: Experiment, facts: Facts) -> list[Block]:
    """What votes say of it, in the words of the count itself."""
    items = [(f"Votes by {judge(tally.contest)}.", result(tally)) for tally in facts.ballots.pairs_of(experiment.id)]
    items += [
        (f"Votes by {judge(field.contest)}.", result(field.rating)) for field in facts.ballots.fields_of(experiment.id)
    ]
    return [Bullets(items)] if items else []


def _findings(experiment: Experiment) -> list[Block]:
    if experiment.no_diagnostics:
        return [Paragraph(experiment.no_diagnostics, "Diagnostics.")]
    if not experiment.findings:
        return [Paragraph("Nothing found.", "Diagnostics.")]
    items = [
        (
            f"{_LEVELS[finding.level]}: {finding.check.replace('_', ' ')}.",
            shortened(f"{finding.evidence} {finding.why} Fix: {finding.fix} (Source: {finding.source}.)", experiment),
        )
        for finding in experiment.findings
    ]
    return [Paragraph("", "Diagnostics:"), Bullets(items)]


def _answers(experiment: Experiment) -> list[Block]:
    """Base and adapter side by side: of the evaluation, else the probes of the training."""
    if experiment.evaluation and experiment.evaluation.examples:
        return [
            _side_by_side(number, example.prompt, example.base, example.adapter, example.reference)
            for number, example in enumerate(experiment.evaluation.examples[:ANSWERS], 1)
        ]
    probes = experiment.history.by_step(Probe)
    if len(probes) < 2 or probes[0].step != 0:
        return []
    pairs = zip(probes[0].answers, probes[-1].answers, strict=False)
    sides = [
        _side_by_side(number, first["prompt"], first["answer"], later["answer"], "")
        for number, (first, later) in enumerate(pairs, 1)
    ]
    note = f"Short greedy answers to probes while training, of the base and at step {probes[-1].step}."
    return [Paragraph(note, "Answers."), *sides[:ANSWERS]] if sides else []


def _side_by_side(number: int, asked: str, base: str, adapter: str, reference: str) -> SideBySide:
    texts = [("base", base), ("adapter", adapter), ("the data's own answer", reference)]
    shown = [_written(title, text) for title, text in texts]
    return SideBySide(f"Prompt {number}", cut(asked, _LONGEST), shown if reference else shown[:2])


def _written(title: str, text: str) -> Answer:
    """An answer as it was written; of a long thought and of a long answer each the beginning."""
    parts = reasoning.parted(text)
    answer = cut(parts.answer, _LONGEST) if parts.answer.strip() else "(an empty answer)"
    return Answer(title, answer, parts.title() if parts.thought else "", cut(parts.thought, _LONGEST))
