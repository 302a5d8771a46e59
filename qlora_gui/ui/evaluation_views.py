"""Pure functions: evaluations and probe answers -> HTML."""

from collections.abc import Mapping

from qlora_gui import formatting
from qlora_gui.evaluation import results, verdict
from qlora_gui.evaluation.job import State
from qlora_gui.evaluation.results import Evaluation, Example
from qlora_gui.runs.events import Answer, Probe
from qlora_gui.runs.history import RunHistory
from qlora_gui.ui.rendering import html

_STYLE = {"better": "good", "worse": "bad", "unclear": ""}
_SHORT = 160


def working(state: State) -> str:
    """An evaluation that runs, or why it ended badly."""
    if state.fault:
        return html.note(f"Not evaluated: {state.fault}", bad=True)
    if not state.running:
        return ""
    return html.hint(f"Evaluating: {state.text} · {state.share:.0%}") + html.bar(state.share)


def verdict_box(evaluation: Evaluation) -> str:
    """The verdict as a box."""
    style = _STYLE[evaluation.verdict.kind]
    return f'<div class="note verdict {style}"><p>{html.escape(evaluation.verdict.text)}</p></div>'


def render(evaluation: Evaluation) -> str:
    """An evaluation: its verdict, figures of base and adapter, drift, and answers side by side."""
    loss, data = evaluation.loss, evaluation.data
    table = html.table(("", "base", "adapter", ""), results.rows(evaluation), numbers=(1, 2))
    about = (
        f"{data.rows} rows ({data.source}), {data.tokens:,} tokens. Interval: 95%, BCa bootstrap of the paired "
        f"differences; p = {loss.p_holm:.2g}, sign-flip permutation, corrected for the adapters evaluated together."
    )
    if drift := evaluation.drift:
        first = drift.first_divergence
        differ = f" (first token that differs, median: {first:.0f})" if first is not None else ""
        about += (
            f" Drift from the base: KL {drift.kl:.3f} nats per token; {drift.same:.0%} of the answers are the same{differ}. "
            "Different is not wrong."
        )
    return (
        f'<h3 class="part">Is it better than the base?</h3>{verdict_box(evaluation)}'
        + html.folded("Figures", table + html.hint(about))
        + html.folded("Answers side by side", "".join(map(_side_by_side, evaluation.examples or ())))
    )


def _side_by_side(example: Example) -> str:
    answers = (("data's own answer", example.reference), ("base", example.base), ("adapter", example.adapter))
    items = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.answer(text)}</dd>" for name, text in answers)
    return f'<dl class="answer-pair"><dt>prompt</dt><dd>{html.escape(example.prompt)}</dd>{items}</dl>'


def several(evaluations: Mapping[str, Evaluation | None]) -> str:
    """Evaluations of several runs in one table; "" where none was evaluated."""
    if not any(evaluations.values()):
        return ""
    lines = []
    for name, evaluation in evaluations.items():
        if evaluation is None:
            lines.append([name, "not evaluated", "", "", "", ""])
            continue
        loss, data = evaluation.loss, evaluation.data
        ended = evaluation.texts and evaluation.texts.adapter.get("ended_by_eos")
        ends = f"{ended:.0%}" if ended is not None else ""
        where = f"{data.source}, {data.rows}"
        label = verdict.LABELS[evaluation.verdict.kind]
        lines.append(
            [
                name,
                label,
                formatting.difference(loss.difference, loss.low, loss.high),
                f"{loss.p_holm:.2g}",
                ends,
                where,
            ]
        )
    head = ("run", "verdict", "loss difference, 95% interval", "p", "end properly", "rows")
    return '<h3 class="part">Are they better than their base?</h3>' + html.table(head, lines, numbers=(3, 4))


def timeline(history: RunHistory) -> str:
    """Probe answers over the steps of a run: when they got better, or broke. "" where none were asked."""
    probes = history.by_step(Probe)
    if not probes:
        return ""
    parts = []
    for number, first in enumerate(probes[0].answers):
        lines = [
            (_step(event.step), html.answer(event.answers[number]["answer"]), _ending(event.answers[number]))
            for event in probes
            if number < len(event.answers)
        ]
        parts.append(html.folded(_cut(first["prompt"]), html.table(("step", "answer", "end"), lines)))
    ends = [probes[0], *probes[1:][-1:]]
    counts = ", ".join(
        f"{sum(bool(answer['ended']) for answer in event.answers)} of {len(event.answers)} at {_step(event.step)}"
        for event in ends
    )
    head = f'<h3 class="part">Probe answers over time</h3>{html.hint(f"Finished answers: {counts}.")}'
    return head + "".join(parts)


def _step(step: int) -> str:
    return "the base" if step == 0 else f"step {step}"


def _ending(answer: Answer) -> str:
    return "by itself" if answer["ended"] else "cut"


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHORT else line[: _SHORT - 1] + "…"
