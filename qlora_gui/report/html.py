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
from qlora_gui.ui.rendering import chart
from qlora_gui.ui.rendering.html import Markup, escaped, table

_STYLE = Path(__file__).with_name("report.css")
# Were a text ever to come out as a tag, a browser would neither run it nor fetch anything for it.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def render(blocks: Sequence[Block]) -> str:
    """The whole page."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n</head>\n<body>\n{body(blocks)}\n</body>\n</html>\n"
    )


def body(blocks: Sequence[Block]) -> str:
    """The report alone with its style, to be put into another page."""
    parts = "\n".join(_RENDER[type(block)](block) for block in blocks)
    style = "".join(path.read_text(encoding="utf-8") for path in (_STYLE, chart.STYLE))
    return f'<style>\n{style}</style>\n<article class="report">\n{parts}\n</article>'


def _heading(block: Heading) -> str:
    anchor = f' id="{escape(block.anchor)}"' if block.anchor else ""
    return f"<h{block.level}{anchor}>{escaped(block.text)}</h{block.level}>"


def _paragraph(block: Paragraph) -> str:
    return f"<p>{_led(block.lead, block.text)}</p>"


def _led(lead: str, text: str) -> str:
    return f"<b>{escaped(lead)}</b> {escaped(text)}" if lead else escaped(text)


def _box(block: Box) -> str:
    return f'<p class="box {block.kind}">{escaped(block.text)}</p>'


def _bullets(block: Bullets) -> str:
    return "<ul>" + "".join(f"<li>{_led(lead, text)}</li>" for lead, text in block.items) + "</ul>"


def _table(block: Table) -> str:
    rows = [[_cell(value) for value in row] for row in block.rows]
    return table(block.head, rows, block.numbers, box="wide")


def _cell(value: str | Link) -> str:
    if isinstance(value, Link):
        return Markup(f'<a href="#{escape(value.anchor)}">{escaped(value.text)}</a>')
    return value


def _curves(block: Curves) -> str:
    return chart.line_chart(block.title, block.series)


def _side_by_side(block: SideBySide) -> str:
    texts = "".join(
        f"<div><h4>{escaped(answer.title)}</h4>{_thought(answer)}{_pre(answer.text)}</div>" for answer in block.texts
    )
    return (
        f'<section class="answers"><h4>{escaped(block.title)}</h4><pre class="asked">\n{escaped(block.asked)}</pre>'
        f'<div class="sides">{texts}</div></section>'
    )


def _thought(answer: Answer) -> str:
    return (
        f"<details><summary>{escaped(answer.fold)}</summary>{_pre(answer.thought)}</details>" if answer.thought else ""
    )


def _pre(text: str) -> str:
    """Text as it stands: of line ends at its beginning HTML drops the first."""
    return f"<pre>\n{escaped(text)}</pre>"


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
