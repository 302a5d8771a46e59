"""Blocks -> one HTML page that needs nothing else: style and plots are inside, and there is no script."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from qlora_gui.report import plot
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
    drawn = plot.svg(block.title, block.series)
    if not drawn:
        return f"<p><b>{_text(block.title)}</b> No values yet.</p>"
    keys = "".join(
        f'<span class="key s{number % plot.COLOURS}{" dashed" if one.dashed else ""}">{_text(one.name)}</span>'
        for number, one in enumerate(block.series)
        if one.points and one.name
    )
    return f"<figure><figcaption><b>{_text(block.title)}</b> {keys}</figcaption>{drawn}</figure>"


def _side_by_side(block: SideBySide) -> str:
    texts = "".join(f"<div><h4>{_text(one.title)}</h4>{_thought(one)}{_pre(one.text)}</div>" for one in block.texts)
    return (
        f'<section class="answers"><h4>{_text(block.title)}</h4><pre class="asked">\n{_text(block.asked)}</pre>'
        f'<div class="sides">{texts}</div></section>'
    )


def _thought(one: Answer) -> str:
    return f"<details><summary>{_text(one.fold)}</summary>{_pre(one.thought)}</details>" if one.thought else ""


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
