"""Blocks -> one HTML page that needs nothing else: style and plots are inside, and there is no script."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from qlora_gui.report.blocks import (
    Answer,
    Block,
    Box,
    Bullets,
    Curves,
    Heading,
    Link,
    Paragraph,
    SideBySide,
    Table,
    Verbatim,
)
from qlora_gui.report.text import clean
from qlora_gui.runs.curves import Series, short, thinned, ticks

WIDTH, HEIGHT = 480, 210
COLOURS = 6
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 8, 26  # margins, for the labels
_MOST = 120  # points that are drawn of a line

# Were a text ever to come out as a tag, a browser would neither run it nor fetch anything for it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(blocks: Sequence[Block]) -> str:
    """The whole page."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n</head>\n<body>\n{body(blocks)}\n</body>\n</html>\n"
    )


def body(blocks: Sequence[Block]) -> str:
    """The report alone with its style, to be put into another page."""
    parts = "\n".join(_RENDER[type(block)](block) for block in blocks)
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return f'<style>\n{style}</style>\n<article class="report">\n{parts}\n</article>'


def _text(text: str) -> str:
    return escape(clean(text))


def _heading(block: Heading) -> str:
    anchor = f' id="{escape(block.anchor)}"' if block.anchor else ""
    return f"<h{block.level}{anchor}>{_text(block.text)}</h{block.level}>"


def _paragraph(block: Paragraph) -> str:
    return f"<p>{_led(block.lead, block.text)}</p>"


def _led(lead: str, text: str) -> str:
    return f"<b>{_text(lead)}</b> {_text(text)}" if lead else _text(text)


def _box(block: Box) -> str:
    return f'<p class="box {block.kind}">{_text(block.text)}</p>'


def _bullets(block: Bullets) -> str:
    return "<ul>" + "".join(f"<li>{_led(lead, text)}</li>" for lead, text in block.items) + "</ul>"


def _table(block: Table) -> str:
    right = ' class="n"'

    def cells(values: Sequence[str | Link], tag: str) -> str:
        return "".join(
            f"<{tag}{right if number in block.numbers else ''}>{_cell(value)}</{tag}>"
            for number, value in enumerate(values)
        )

    rows = "".join(f"<tr>{cells(row, 'td')}</tr>\n" for row in block.rows)
    head = f"<thead><tr>{cells(block.head, 'th')}</tr></thead>"
    return f'<div class="wide" tabindex="0"><table>{head}\n<tbody>\n{rows}</tbody></table></div>'


def _cell(value: str | Link) -> str:
    if isinstance(value, Link):
        return f'<a href="#{escape(value.anchor)}">{_text(value.text)}</a>'
    return _text(value)


def _curves(block: Curves) -> str:
    drawn = svg(block.title, block.series)
    if not drawn:
        return f"<p><b>{_text(block.title)}</b> No values yet.</p>"
    keys = "".join(
        f'<span class="key s{number % COLOURS}{" dashed" if line.dashed else ""}">{_text(line.name)}</span>'
        for number, line in enumerate(block.series)
        if line.points and line.name
    )
    return f"<figure><figcaption><b>{_text(block.title)}</b> {keys}</figcaption>{drawn}</figure>"


def _side_by_side(block: SideBySide) -> str:
    texts = "".join(
        f"<div><h4>{_text(answer.title)}</h4>{_thought(answer)}{_pre(answer.text)}</div>" for answer in block.texts
    )
    return (
        f'<section class="answers"><h4>{_text(block.title)}</h4><pre class="asked">\n{_text(block.asked)}</pre>'
        f'<div class="sides">{texts}</div></section>'
    )


def _thought(answer: Answer) -> str:
    return f"<details><summary>{_text(answer.fold)}</summary>{_pre(answer.thought)}</details>" if answer.thought else ""


def _pre(text: str) -> str:
    """Text as it stands: of line ends at its beginning HTML drops the first."""
    return f"<pre>\n{_text(text)}</pre>"


def _verbatim(block: Verbatim) -> str:
    return _pre(block.text)


_RENDER: dict[type, Callable[[Any], str]] = {
    Heading: _heading,
    Paragraph: _paragraph,
    Box: _box,
    Bullets: _bullets,
    Table: _table,
    Curves: _curves,
    SideBySide: _side_by_side,
    Verbatim: _verbatim,
}


def svg(title: str, series: Sequence[Series]) -> str:
    """The chart of all series that have a point; "" when none has."""
    shown = [(number, line, thinned(line.points, _MOST)) for number, line in enumerate(series) if line.points]
    if not shown:
        return ""
    xs = [x for _, _, points in shown for x, _ in points]
    ys = [y for _, _, points in shown for _, y in points]
    x_ticks, y_ticks = ticks(min(xs), max(xs), 5), ticks(min(ys), max(ys), 4)
    left, right = min(xs), max(max(xs), min(xs) + 1e-12)
    low, high = y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left) * (WIDTH - _LEFT - _RIGHT)
        return _LEFT + across, _TOP + (high - y) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    parts = []
    for y in y_ticks:
        height = at(left, y)[1]
        parts.append(f'<path class="grid" d="M{_LEFT} {height:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{short(y)}</text>')
    for x in x_ticks:
        if left <= x <= right:
            parts.append(f'<text x="{at(x, low)[0]:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{short(x)}</text>')
    for number, line, points in shown:
        style = f"s{number % COLOURS}" + (" dashed" if line.dashed else "")
        places = [at(x, y) for x, y in points]
        parts.append(f'<path class="{style}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in places)}"/>')
        dotted = line.dotted or len(points) == 1
        for (x, y), (across, down) in zip(points, places, strict=True):
            hint = escape(f"{clean(line.name)} {short(y)}, step {short(x)}".strip())
            radius = 3 if dotted else 0
            spot = f'<circle class="hit" cx="{across:.1f}" cy="{down:.1f}" r="7"><title>{hint}</title></circle>'
            dot = f'<circle class="dot s{number % COLOURS}" cx="{across:.1f}" cy="{down:.1f}" r="{radius}"/>'
            parts.append((dot if dotted else "") + spot)
    summary = "; ".join(
        f"{clean(line.name)} {short(points[0][1])} to {short(points[-1][1])}" for _, line, points in shown
    )
    label = escape(f"{clean(title)}: {summary}")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
