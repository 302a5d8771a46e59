"""One experiment as blocks: verdict, settings, curve, figures, votes, the doctor's findings, answers, autopsy."""

from typing import Any

from qlora_gui.data import reasoning
from qlora_gui.report import comparability, figures
from qlora_gui.report.blocks import Answer, Block, Box, Bullets, Curves, Heading, Paragraph, SideBySide, Table, Verbatim
from qlora_gui.report.facts import Experiment, Facts
from qlora_gui.report.preferences import result
from qlora_gui.report.text import cut, knob, shortened
from qlora_gui.report.votes import judge
from qlora_gui.runs.curves import Series, by_step, points
from qlora_gui.runs.event_text import autopsy_lines, not_all

ANSWERS = 3
_LONGEST, _LONGEST_SETTING = 900, 60  # characters of an answer or a prompt, and of a setting
_BOXES = {"better": "good", "worse": "bad", "unclear": "plain"}
_LEVELS = {"bad": "Breaks the run", "warn": "Warning", "note": "Note"}


def anchor(one: Experiment) -> str:
    """What a link to this experiment points to."""
    return f"report-run-{one.number}"


def section(one: Experiment, facts: Facts) -> list[Block]:
    """Everything that is known of a run, under its heading."""
    return [
        Heading(f"{one.number} · {one.id}", 3, anchor(one)),
        _verdict(one),
        *_ended(one),
        *_settings(one, facts),
        *_curve(one),
        *_figures(one),
        *_votes(one, facts),
        *_findings(one),
        *_answers(one),
    ]


def _verdict(one: Experiment) -> Box:
    if one.evaluation:
        told = one.evaluation.verdict
        return Box(told.text, _BOXES[told.kind])  # type: ignore[arg-type]
    return Box(f"{one.state.capitalize()}. {one.no_evaluation}", "bad" if one.went_wrong else "plain")


def _ended(one: Experiment) -> list[Block]:
    """How a run ended that did not end well, and its autopsy where it died of memory."""
    found: list[Block] = [Paragraph(one.fault, "Settings unknown.")] if one.fault else []
    if not one.events:
        found.append(Paragraph("The run has written no events.", "Nothing recorded."))
    found += [Paragraph(said, "Not all events.") for said in not_all(one.events)]
    if message := one.ending.get("message"):
        found.append(Paragraph(shortened(str(message), one), "Its last word."))
    if one.autopsy:
        found += _autopsy(one.autopsy)
    elif one.went_wrong and one.last_words:
        found += [Paragraph("", "The end of its log:"), Verbatim(cut(one.last_words, _LONGEST))]
    return found


def _autopsy(found: dict[str, Any]) -> list[Block]:
    """When memory ran out, who else held it, and the changes that would have helped."""
    when = f"after step {found['step']}" if found.get("step") else "before the first step"
    said = f"It ran out of memory in the stage '{found.get('phase')}', {when}."
    total, free = found.get("total"), found.get("free")
    if isinstance(total, int) and isinstance(free, int):
        said += f" The device has {total / 2**30:.1f} GB, {free / 2**30:.1f} GB of them free for it (measured)."
    try:
        lines = autopsy_lines({"held_by": found.get("held_by") or [], "changes": found.get("changes") or []})
    except (KeyError, TypeError, AttributeError):
        lines = []
    told: list[Block] = [Paragraph(said, "Autopsy.")]
    if lines:
        told += [Paragraph("Savings are predicted.", "What else held memory, and what would have helped:")]
        told.append(Verbatim("\n".join(lines)))
    return told


def _settings(one: Experiment, facts: Facts) -> list[Block]:
    """The four that matter most, and what else differs among the runs of this report."""
    values = comparability.settings(one)
    if not values:
        return []
    names = [*comparability.ALWAYS, *comparability.differing(facts.experiments)]
    told = [
        f"{knob(name)} {cut(values[name], _LONGEST_SETTING)}"
        for name in dict.fromkeys(names)
        if name not in ("base_model", "dataset")
    ]
    base = one.event("base")
    dtype = f", computed in {base['dtype']} on {base['device']}" if base.get("dtype") else ""
    trained = f"; {base['trained']:,} parameters trained (counted)" if isinstance(base.get("trained"), int) else ""
    return [
        Paragraph(f"{one.model} on {one.data}: {', '.join(told)}{dtype}{trained}.", "Settings."),
        *(
            Paragraph(str(event.get("text", "")), "Changed by preflight.")
            for event in one.events
            if event["kind"] == "fit"
        ),
    ]


def _curve(one: Experiment) -> list[Block]:
    training, held_out = points(one.events, "step", "loss"), points(one.events, "eval", "loss")
    if not training and not held_out:
        return []
    lines = [Series("training", training), Series("held-out", held_out, dashed=True, dotted=True)]
    return [Curves("Loss, nats a token (measured)", lines)]


def _figures(one: Experiment) -> list[Block]:
    """Every number of the run with what it is."""
    rows = [(figure.what, figure.value, figure.kind, figure.how) for figure in figures.of(one)]
    return [Table(("what", "value", "it is", "how"), rows)] if rows else []


def _votes(one: Experiment, facts: Facts) -> list[Block]:
    """What votes say of it, in the words of the count itself."""
    items = [(f"Votes by {judge(told.contest)}.", result(told)) for told in facts.ballots.pairs_of(one.id)]
    items += [(f"Votes by {judge(told.contest)}.", result(told.rating)) for told in facts.ballots.fields_of(one.id)]
    return [Bullets(items)] if items else []


def _findings(one: Experiment) -> list[Block]:
    if one.no_doctor:
        return [Paragraph(one.no_doctor, "The doctor.")]
    if not one.findings:
        return [Paragraph("Nothing found.", "The doctor.")]
    items = [
        (
            f"{_LEVELS[found.level]}: {found.check.replace('_', ' ')}.",
            shortened(f"{found.evidence} {found.why} What mends it: {found.mend} (Source: {found.source}.)", one),
        )
        for found in one.findings
    ]
    return [Paragraph("", "What the doctor finds:"), Bullets(items)]


def _answers(one: Experiment) -> list[Block]:
    """Base and adapter side by side: of the evaluation, else the probes of the training."""
    if one.evaluation and one.evaluation.examples:
        return [
            _side_by_side(number, example.prompt, example.base, example.adapter, example.reference)
            for number, example in enumerate(one.evaluation.examples[:ANSWERS], 1)
        ]
    probes = [event for event in by_step(one.events, "probe") if isinstance(event.get("answers"), list)]
    if len(probes) < 2 or probes[0]["step"] != 0:
        return []
    pairs = zip(probes[0]["answers"], probes[-1]["answers"], strict=False)
    told = [
        _side_by_side(number, str(first["prompt"]), str(first["answer"]), str(later["answer"]), "")
        for number, (first, later) in enumerate(pairs, 1)
        if isinstance(first, dict) and isinstance(later, dict)
    ]
    note = f"Short greedy answers to probes while training, of the base and at step {probes[-1]['step']}."
    return [Paragraph(note, "Answers."), *told[:ANSWERS]] if told else []


def _side_by_side(number: int, asked: str, base: str, adapter: str, reference: str) -> SideBySide:
    texts = [("base", base), ("adapter", adapter), ("the data's own answer", reference)]
    shown = [_written(title, text) for title, text in texts]
    return SideBySide(f"Prompt {number}", cut(asked, _LONGEST), shown if reference else shown[:2])


def _written(title: str, text: str) -> Answer:
    """An answer as it was written; of a long thought and of a long answer each the beginning."""
    found = reasoning.parted(text)
    said = cut(found.answer, _LONGEST) if found.answer.strip() else "(an empty answer)"
    return Answer(title, said, found.title() if found.thought else "", cut(found.thought, _LONGEST))
