"""Pure functions: a memory plan, its changes and an OOM report -> HTML. Everything from outside is escaped here."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, NamedTuple

from qlora_gui.formatting import GB, gigabytes
from qlora_gui.memory.estimate import MemoryPlan
from qlora_gui.runs.events import Fit, Memory, OomReport
from qlora_gui.runs.history import RunHistory
from qlora_gui.ui.rendering import html

MOST_CHANGES, MOST_RETRIES = 5, 3
_ALIKE = 2  # changes of the same knobs that are shown: the largest saving and the mildest
_MARKS = {"fits": "✓", "tight": "!", "does not fit": "✗"}


class Offer(NamedTuple):
    """A change as a button offers it: the knobs it sets, its sentence, whether the run fits then."""

    knobs: dict[str, Any]
    text: str
    fits: bool


def offers(changes: Iterable[Mapping[str, Any]], most: int = MOST_CHANGES) -> list[Offer]:
    """The changes (`Change.as_dict`) to show: those that fit first, of them those that only cost time, then by bytes."""
    ranked = sorted(
        changes, key=lambda change: (not change["fits"], not change.get("learns_the_same"), -change["saves"])
    )
    groups: dict[frozenset[str], list[Mapping[str, Any]]] = {}
    for change in ranked:
        groups.setdefault(frozenset(change["knobs"]), []).append(change)
    left_out = [change for alike in groups.values() for change in alike[1 : 1 - _ALIKE]]
    return [Offer(change["knobs"], change["text"], change["fits"]) for change in ranked if change not in left_out][
        :most
    ]


def caption(offer: Offer, mark: bool) -> str:
    """What a change's button says; `mark` says of the ones that fit that they do."""
    return f"✓ {offer.text} · fits then" if mark and offer.fits else offer.text


def headline(plan: MemoryPlan) -> str:
    """The verdict in words, with the numbers it rests on."""
    text = plan.figures + (f" free on {plan.budget.name}" if plan.budget.is_here else "")
    tail = f"; {plan.remark}" if plan.remark else ""
    return f'<p class="fit-verdict {_style(plan)}"><b>{_MARKS[plan.verdict]} {plan.words}</b> {escape(text + tail)}</p>'


def line(plan: MemoryPlan) -> str:
    """The verdict in one short line."""
    words = f"<b>{_MARKS[plan.verdict]} {plan.words}</b> {escape(plan.figures)}"
    return f'<p class="fit-verdict {_style(plan)}">{words}</p>'


def unknown(sentence: str) -> str:
    """Why there is no plan."""
    return html.hint(f"No estimate of the memory: {sentence}")


def panel(plan: MemoryPlan, source: str = "") -> str:
    """The verdict, the bar with its key, the moment of the peak, and where the figures come from: an estimate."""
    rows = f"{plan.rows} × {plan.length:,} tokens"
    moment = f"Peak {plan.moment}, with the longest batch ({rows}); gradient checkpointing: {plan.checkpointing}."
    estimate = source or "Estimated from the shape of the base, not measured."
    seen = plan.correction
    if seen.runs and not source:
        estimate = (
            f"An estimate, corrected by {seen.factor:.2f}: predictions for {_count(seen.runs, 'run')} of this size on this "
            f"GPU were off by {seen.error:.0%}."
        )
    return headline(plan) + bar(plan) + f'<p class="hint">{escape(moment)} {escape(estimate)}</p>'


def bar(plan: MemoryPlan) -> str:
    """Terms side by side against the card's memory, after what others hold; a line where the card ends."""
    budget = plan.budget
    others = max(budget.total - budget.free, 0)
    scale = 100 / max(others + plan.total, budget.total, 1)
    held = [("others", "Used by other programs", others)] if others else []
    parts = [*held, *((term.key, term.label, term.bytes) for term in plan.terms)]
    pieces = "".join(
        f'<i class="term t-{escape(key)}" style="width:{size * scale:.2f}%" '
        f'title="{escape(label)}: {gigabytes(size)}"></i>'
        for key, label, size in parts
        if size > 0
    )
    end = budget.total * scale
    mark = f'<u style="left:{end:.2f}%"></u>' if end < 99.9 else ""
    label = escape(f"{gigabytes(plan.total)} needed, {gigabytes(budget.free)} free of {gigabytes(budget.total)}")
    key_line = "".join(
        f'<span class="t-{escape(key)}">{escape(name)}</span>' for key, name, size in parts if size * scale >= 3
    )
    return (
        f'<div class="fit-bar" role="img" aria-label="{label}">{pieces}{mark}</div>'
        f'<div class="fit-scale"><span>0</span><span>{gigabytes(max(others + plan.total, budget.total))}</span></div>'
        f'<div class="fit-key">{key_line}</div>'
    )


def table(plan: MemoryPlan) -> str:
    """Every term with its GB and its share, the total, and what the card has."""
    rows = "".join(
        f'<tr><td class="t-{escape(term.key)} swatch">{escape(term.label)}</td><td class="n">{term.bytes / GB:.2f}</td>'
        f'<td class="n">{term.bytes / max(plan.total, 1):.0%}</td></tr>'
        for term in plan.terms
    )
    budget = plan.budget
    sums = [("Peak", plan.total), ("Free", budget.free), ("The card has", budget.total)]
    if budget.total > budget.free:
        sums.insert(2, ("Used by other programs", budget.total - budget.free))
    foot = "".join(
        f'<tr><th>{name}</th><td class="n">{size / GB:.2f}</td><td class="n"></td></tr>' for name, size in sums
    )
    head = '<tr><th>What</th><th class="n">GB</th><th class="n">share</th></tr>'
    return (
        '<div class="scroll" tabindex="0"><table class="plain">'
        f"<thead>{head}</thead><tbody>{rows}{foot}</tbody></table></div>"
    )


def summary(history: RunHistory) -> str:
    """What a run reported on its memory: what preflight changed, and how far the prediction was off."""
    changes = dict.fromkeys(event.text for event in history.all(Fit))
    body = html.note(*changes)
    memory = history.latest(Memory)
    if memory and memory.measured:
        off = abs(memory.measured - memory.predicted) / memory.predicted
        on = f" on {memory.gpu}" if memory.gpu else ""
        numbers = f"predicted {gigabytes(memory.predicted)}, measured {gigabytes(memory.measured)}"
        body += html.hint(f"Memory{on}: {numbers} ({off:.0%} off).")
    return body


def oom_report(report: OomReport) -> str:
    """Why a run died of memory: when, how much was expected and taken, and who else held the GPU."""
    values = [("when", str(report.get("phase") or "")), ("step", _plain(report.get("step")))]
    values += [("predicted", _size(report.get("predicted"))), ("measured", _size(report.get("measured")))]
    values += [("the card has", _size(report.get("total"))), ("free at the end", _size(report.get("free")))]
    body = '<h3 class="part">Out of memory: what happened</h3>' + html.tiles([value for value in values if value[1]])
    holders = report.get("held_by") or []
    if not holders:
        return body + html.hint("No other program was seen using GPU memory.")
    rows = [(holder["name"], holder["pid"], _size(holder["bytes"])) for holder in holders]
    return (
        body + html.hint("What else used GPU memory:") + html.table(("program", "pid", "memory"), rows, numbers=(1, 2))
    )


def retries(report: OomReport) -> list[Offer]:
    """The changes of an OOM report to show, best first."""
    return offers(report.get("changes") or [], MOST_RETRIES)


def _style(plan: MemoryPlan) -> str:
    return {"fits": "fits", "tight": "tight", "does not fit": "over"}[plan.verdict]


def _size(value: int | None) -> str:
    return gigabytes(value) if value else ""


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
