"""The table of all runs: sorted by a press on a heading, and a press on a row chooses it."""

import math
import re
from collections.abc import Callable, Collection, Sequence
from html import escape
from typing import Any

from qlora_gui.ui.runs.summary import COLUMNS, Summary

Order = tuple[int, bool]  # by which of COLUMNS, and whether from the highest down
NEWEST_FIRST: Order = (COLUMNS.index("Created"), True)
NUMBERS = range(4, 8)  # the columns set to the right
# Which heading or run was pressed is sent; what has the focus has it again when the table was drawn anew.
PRESSED = """
const key = (button) => button.dataset.column ? `[data-column="${button.dataset.column}"]`
  : `button[data-run="${CSS.escape(button.dataset.run)}"]`;
let held = null;
element.addEventListener('click', (event) => {
  const heading = event.target.closest('button[data-column]'), row = event.target.closest('tr[data-run]');
  if (heading) trigger('sort', {column: Number(heading.dataset.column)});
  else if (row) trigger('select', {run: row.dataset.run});
});
element.addEventListener('focusin', (event) => { held = event.target.matches('button') ? key(event.target) : null; });
element.addEventListener('focusout', (event) => { if (event.relatedTarget) held = null; });
document.addEventListener('mousedown', (event) => { if (!element.contains(event.target)) held = null; });
new MutationObserver(() => {
  const button = held && document.activeElement === document.body && element.querySelector(held);
  if (button) button.focus({preventScroll: true});
}).observe(element, {childList: true, subtree: true});"""
_DIGITS = {5: 3, 6: 3, 7: 1}  # by column
PAGE = 100  # rows that are drawn at first
_VERDICTS = ("better", "unclear", "worse")


def drawn(
    summaries: Sequence[Summary], order: Order, chosen: Collection[str], sought: str | None = "", most: int = PAGE
) -> str:
    """The first `most` rows of what is sought, as HTML; "" where there are no runs."""
    if not summaries:
        return ""
    head = "".join(_heading(number, name, order) for number, name in enumerate(COLUMNS))
    shown = matching(summaries, sought)
    rows = "".join(_row(summary, summary.id in chosen) for summary in ordered(shown, order)[:most])
    return (
        f'<table class="plain runs"><caption><span>{_caption(summaries, len(shown), most)}</span></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def matching(summaries: Sequence[Summary], sought: str | None) -> list[Summary]:
    """The runs of which each word of `sought` stands in some cell, in any case of letters; a hidden field sends None."""
    words = (sought or "").casefold().split()
    if not words:
        return list(summaries)
    return [summary for summary in summaries if all(word in summary.text for word in words)]


def _caption(summaries: Sequence[Summary], matching: int, most: int) -> str:
    """How many there are, how many of them are shown, and what a press does."""
    how = "click a heading to sort, a row to choose it"
    unread = sum(not summary.read for summary in summaries)
    still = f"; {unread:,} are still being read" if unread else ""
    if matching == len(summaries) <= most:
        return f"All runs: {how}{still}"
    which = f"{min(matching, most):,} of {matching:,} runs"
    return f"{which}{'' if matching == len(summaries) else f' that match, of {len(summaries):,}'}: {how}{still}"


def ordered(summaries: Sequence[Summary], order: Order) -> list[Summary]:
    """Runs by a column, those without a value there last in both directions, equal ones as they stood."""
    column, down = order
    key = _KEYS.get(COLUMNS[column], lambda summary: _natural(str(summary.row()[column])))
    keyed = [(key(summary), summary) for summary in summaries]
    known = [pair for pair in keyed if pair[0] not in (None, [])]
    empty = [summary for value, summary in keyed if value in (None, [])]
    return [summary for _, summary in sorted(known, key=lambda pair: pair[0], reverse=down)] + empty


def pressed(order: Order, column: int) -> Order:
    """The order after a press on a heading: upwards by that column, or turned round where it is so already."""
    return (column, not order[1] if order[0] == column else False)


def _heading(number: int, name: str, order: Order) -> str:
    by, down = order
    direction = ("descending" if down else "ascending") if number == by else "none"
    arrow = {"descending": "▼", "ascending": "▲", "none": ""}[direction]
    style = ' class="n"' if number in NUMBERS else ""
    return (
        f'<th scope="col" aria-sort="{direction}"{style}><button type="button" data-column="{number}">{escape(name)}'
        f'<i aria-hidden="true">{arrow}</i></button></th>'
    )


def _row(summary: Summary, chosen: bool) -> str:
    name, *rest = [escape(_cell_text(place, cell)) for place, cell in enumerate(summary.row())]
    style = ' class="chosen"' if chosen else ""
    right = ' class="n"'
    cells = "".join(f"<td{right if place in NUMBERS else ''}>{cell}</td>" for place, cell in enumerate(rest, 1))
    button = f'<button type="button" data-run="{name}" aria-pressed="{str(chosen).lower()}">{name}</button>'
    return f'<tr data-run="{name}"{style}><td>{button}</td>{cells}</tr>'


def _cell_text(place: int, cell: object) -> str:
    """A cell as text: numbers of a column with the same digits, so that they stand below each other."""
    return (
        f"{cell:.{_DIGITS[place]}f}"
        if isinstance(cell, float) and place in _DIGITS
        else ""
        if cell is None
        else str(cell)
    )


def _natural(text: str) -> list[tuple[str, int]]:
    """What sorts `run-2` before `run-10`."""
    return [(word.casefold(), int(digits or 0)) for word, digits in re.findall(r"(\D*)(\d*)", text) if word or digits]


def _number(value: float | None) -> float | None:
    """A loss that is no number is the worst there is."""
    return math.inf if value is not None and math.isnan(value) else value


_KEYS: dict[str, Callable[[Summary], Any]] = {
    "Steps": lambda summary: None if summary.elsewhere else summary.step,
    "Held-out loss, base": lambda summary: _number(summary.before),
    "Held-out loss, now": lambda summary: _number(summary.after),
    "Change, %": lambda summary: _number(summary.change),
    "Verdict": lambda summary: _VERDICTS.index(summary.verdict) if summary.verdict else None,
    "Created": lambda summary: summary.made,
}
