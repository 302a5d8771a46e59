"""Blocks -> Markdown (GitHub's): every text comes out as text, whatever pipes, tags or marks are in it."""

import re
from collections.abc import Callable, Sequence
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
from qlora_gui.runs.curves import Series, short, thinned
from qlora_gui.ui.rendering.html import clean

_MARKS = re.compile(r"[\\`*_\[\]|~$@]")
_LINKS = re.compile(r"://|\bwww\.")  # addresses that GitHub would make links of
_START = re.compile(r"^(?=[-+=#])|(?<=^\d)(?=[.)])|(?<=^\d\d)(?=[.)])")  # of a list, a heading, or a rule
_BARS = "▁▂▃▄▅▆▇█"
_MOST_BARS, _MOST_POINTS = 32, 8


def render(blocks: Sequence[Block]) -> str:
    """The whole report."""
    return "\n\n".join(_RENDER[type(block)](block) for block in blocks) + "\n"


def inline(text: str) -> str:
    """Text in one line, as it is to be read: tags become entities, marks get a backslash."""
    return _START.sub(r"\\", _marked(" ".join(clean(text).split())), count=1)


def cell(text: str) -> str:
    """Text in a table's cell; line ends become <br>, and what lines are indented by stays."""
    return "<br>".join(_indented(line.rstrip()) for line in clean(text).strip("\r\n").splitlines())


def _indented(line: str) -> str:
    body = line.lstrip()
    return "&nbsp;" * (len(line) - len(body)) + _marked(body)


def _marked(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    marked = _MARKS.sub(r"\\\g<0>", escaped)
    return _LINKS.sub(lambda match: match[0].replace(":", "\\:").replace(".", "\\."), marked)


def _fenced(text: str) -> str:
    """A fence that is longer than any in the text."""
    body = clean(text).rstrip()
    longest = max((len(run) for run in re.findall(r"`+", body)), default=0)
    fence = "`" * max(longest + 1, 3)
    return f"{fence}text\n{body}\n{fence}"


def _heading(block: Heading) -> str:
    text = inline(block.text)
    return f"{'#' * block.level} {text[:-1]}\\#" if text.endswith("#") else f"{'#' * block.level} {text}"


def _paragraph(block: Paragraph) -> str:
    return _led(block.lead, block.text)


def _led(lead: str, text: str) -> str:
    return f"**{inline(lead)}** {inline(text)}".rstrip() if lead else inline(text)


def _box(block: Box) -> str:
    return f"> **{inline(block.text)}**"


def _bullets(block: Bullets) -> str:
    return "\n".join(f"- {_led(lead, text)}" for lead, text in block.items)


def _table(block: Table) -> str:
    def line(values: Sequence[str | Link]) -> str:
        return "| " + " | ".join(cell(value.text if isinstance(value, Link) else value) for value in values) + " |"

    rule = "|" + "|".join("---:" if number in block.numbers else "---" for number in range(len(block.head))) + "|"
    return "\n".join([line(block.head), rule, *map(line, block.rows)])


def _curves(block: Curves) -> str:
    """A line of bars per series, and its values at a few steps."""
    drawn = [line for line in block.series if line.points]
    if not drawn:
        return _led(block.title, "No values yet.")
    lines = [f"**{inline(block.title)}** ({'; '.join(inline(_spark(line)) for line in drawn)})"]
    sparsest = min(drawn, key=lambda line: len(line.points))
    rows = [[short(step), *(_at(line, step) for line in drawn)] for step, _ in _few(sparsest)]
    lines.append(_table(Table(["step", *(line.name for line in drawn)], rows, range(len(drawn) + 1))))
    return "\n\n".join(lines)


def _spark(series: Series) -> str:
    """`training 1.2 █▅▃▁ 0.7`."""
    values = [y for _, y in thinned(series.points, _MOST_BARS)]
    low, high = min(values), max(values)
    bars = "".join(_BARS[round((value - low) / ((high - low) or 1) * (len(_BARS) - 1))] for value in values)
    return f"{series.name} {values[0]:.3f} {bars} {values[-1]:.3f}"


def _few(series: Series) -> Sequence[tuple[float, float]]:
    """Points spread over the series, the first and the last among them."""
    count = len(series.points)
    if count <= _MOST_POINTS:
        return series.points
    return [series.points[round(place * (count - 1) / (_MOST_POINTS - 1))] for place in range(_MOST_POINTS)]


def _at(series: Series, step: float) -> str:
    """The value at a step, or the last one before it."""
    before = [y for x, y in series.points if x <= step]
    return f"{before[-1]:.3f}" if before else ""


def _side_by_side(block: SideBySide) -> str:
    head = " | ".join(cell(answer.title) for answer in block.texts)
    answers = " | ".join(_thought(answer) + cell(answer.text) for answer in block.texts)
    table = f"| {head} |\n|{'---|' * len(block.texts)}\n| {answers} |"
    return f"**{inline(block.title)}**\n\n{_fenced(block.asked)}\n\n{table}"


def _thought(answer: Answer) -> str:
    return f"<details><summary>{cell(answer.fold)}</summary>{cell(answer.thought)}</details>" if answer.thought else ""


def _verbatim(block: Verbatim) -> str:
    return _fenced(block.text)


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
