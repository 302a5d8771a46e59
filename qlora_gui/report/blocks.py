"""The parts a report is made of, as plain text: what they look like, and what must be escaped, the renderers know."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qlora_gui.runs.curves import Series


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 to 3; `anchor` is what links can point to."""

    text: str
    level: int
    anchor: str = ""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph, begun by bold words where `lead` is given."""

    text: str
    lead: str = ""


@dataclass(frozen=True)
class Box:
    """A sentence to be seen first."""

    text: str
    kind: Literal["good", "bad", "plain"] = "plain"


@dataclass(frozen=True)
class Bullets:
    """Items of (bold words or "", text)."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Link:
    """A cell that leads to a heading of this report."""

    text: str
    anchor: str


@dataclass(frozen=True)
class Table:
    """A table; `numbers` are the columns set to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str | Link]]
    numbers: Sequence[int] = ()


@dataclass(frozen=True)
class Curves:
    """Lines over steps in one chart."""

    title: str
    series: Sequence[Series]


@dataclass(frozen=True)
class Answer:
    """An answer under its title. A thought before it is folded away under `fold`."""

    title: str
    text: str
    fold: str = ""
    thought: str = ""


@dataclass(frozen=True)
class SideBySide:
    """Answers next to each other, and what they answer."""

    title: str
    asked: str
    texts: Sequence[Answer]


@dataclass(frozen=True)
class Verbatim:
    """Text as it stands, line by line."""

    text: str


Block = Heading | Paragraph | Box | Bullets | Table | Curves | SideBySide | Verbatim
