"""Small pieces of HTML. Everything that comes from data, models or people is escaped here."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from qlora_gui.data import reasoning
from qlora_gui.system import console

Piece = tuple[str, bool]  # a stretch of text, and whether it is learned from


class Markup(str):
    """HTML that is made already: a cell that is not escaped again."""


def escaped(plain: str) -> str:
    """Text as HTML; characters that are no text, or turn it round, come out as a mark."""
    return escape(clean(plain))


def clean(plain: str) -> str:
    """Text that can be written and read: line ends alike, and a mark for characters that are no text or turn it round."""
    return console.printable(plain.replace("\r\n", "\n").replace("\r", "\n").expandtabs(4))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], numbers: Sequence[int] = (), box: str = "scroll") -> str:
    """A plain table; `numbers` are the columns set to the right. `box` is the class of what it scrolls in."""

    right = ' class="n"'

    def cells(values: Sequence[Any], tag: str) -> str:
        return "".join(
            f"<{tag}{right if number in numbers else ''}>{_cell(value)}</{tag}>" for number, value in enumerate(values)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>\n" for row in rows)
    top = f"<thead><tr>{cells(head, 'th')}</tr></thead>" if head else ""
    return f'<div class="{box}" tabindex="0"><table class="plain">{top}<tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    return value if isinstance(value, Markup) else escaped(str(value))


def note(*sentences: str, bad: bool = False) -> str:
    """A box with a paragraph per sentence; empty sentences are left out."""
    body = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences if sentence)
    return f'<div class="note{" bad" if bad else ""}">{body}</div>' if body else ""


def hint(text: str) -> str:
    return f'<p class="hint">{escape(text)}</p>' if text else ""


def faults(sentences: Iterable[str]) -> str:
    """What keeps a form from being sent."""
    return "".join(f'<p class="faults" role="alert">⚠ {escape(sentence)}</p>' for sentence in sentences)


def empty(text: str) -> str:
    """An empty place that says what to do next."""
    return f'<div class="empty">{escape(text)}</div>'


def bar(share: float) -> str:
    """A progress bar, 0 to 1."""
    percent = 100 * min(max(share, 0), 1)
    return (
        f'<div class="bar" role="progressbar" aria-label="Progress" aria-valuenow="{percent:.0f}" aria-valuemin="0" '
        f'aria-valuemax="100"><i style="width:{percent:.1f}%"></i></div>'
    )


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Numbers with their names below."""
    return (
        '<div class="tiles">'
        + "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in values)
        + "</div>"
    )


def marked_row(title: str, pieces: Sequence[Piece]) -> str:
    """One row of data; what is learned from is marked."""
    body = "".join(
        f'<mark title="trained on">{escape(text)}</mark>' if learned else escape(text) for text, learned in pieces
    )
    return f'<p class="row-title">{escape(title)}</p><div class="row-preview" tabindex="0">{body}</div>'


def folded(title: str, body: str) -> str:
    """Something to open when wanted."""
    return f'<details class="folded"><summary>{escape(title)}</summary>{body}</details>' if body else ""


def listed(title: str, sentences: Sequence[str]) -> str:
    """Sentences folded away."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<details class="hint"><summary>{escape(title)}</summary><ul>{items}</ul></details>' if items else ""


def log(text: str) -> str:
    """The end of a log, scrolled to its newest line."""
    return f'<p class="row-title">Log</p><div class="log" tabindex="0" role="log"><pre>{escape(text)}</pre></div>'


def literal(text: str) -> str:
    """Text as it stands, line by line."""
    return f'<pre class="literal" tabindex="0">{escape(text)}</pre>' if text else ""


def answer(text: str) -> Markup:
    """An answer as it was written, its thought folded above it."""
    parts = reasoning.parted(text)
    above = (
        f'<details class="thinking"><summary>{escape(parts.title())}</summary><div>{escape(parts.thought)}</div></details>'
        if parts.thought
        else ""
    )
    return Markup(f'<div class="as-written">{above}<div>{escape(parts.answer)}</div></div>')
