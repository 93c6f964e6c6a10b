"""What a chart is drawn with, in pixels from its upper left corner, and in which colours.

Marks know no format: `svg` and `png` write the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Colour = str
"""A name in `PALETTE`."""
Shape = Literal["disc", "ring", "diamond", "cross"]
Anchor = Literal["start", "middle", "end"]

PALETTE: Mapping[Colour, tuple[str, str]] = {
    "page": ("#f3f5f8", "#0e1217"),
    "card": ("#ffffff", "#171c23"),
    "ink": ("#17202b", "#e7ecf2"),
    "muted": ("#566272", "#a3aebb"),
    "rule": ("#dfe4ea", "#2d3641"),
    "axis": ("#848f9c", "#6f7b88"),
    "accent": ("#0a5fb4", "#74b6ff"),
    "kept": ("#0a62b8", "#64b0ff"),
    "cleared": ("#0b7560", "#46c5a4"),
    "missed": ("#a94a06", "#f5a15a"),
    "stopped": ("#626e7b", "#98a4b1"),
    "failed": ("#b3261e", "#ff9187"),
    # Scores from low to high: also a step in brightness each, against the card.
    "score0": ("#8a94a1", "#697583"),
    "score1": ("#6e90b5", "#6b8cb0"),
    "score2": ("#3f7fc1", "#5fa3dd"),
    "score3": ("#175ea8", "#8fc8f7"),
    "score4": ("#0a3a72", "#d9eeff"),
}
"""On a light page and on a dark one. Text keeps a contrast of 4.5 to the card, marks one of 3."""
FONT_SIZE = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line through points."""

    points: tuple[tuple[float, float], ...]
    colour: Colour
    width: float = 1.5
    dashed: bool = False
    trial: int | None = None
    """Rank of the trial that it stands for."""
    tip: str = ""
    """What it says when it is pointed at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A point."""

    x: float
    y: float
    colour: Colour
    shape: Shape = "disc"
    radius: float = 4.5
    trial: int | None = None
    tip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A filled rectangle."""

    x: float
    y: float
    width: float
    height: float
    colour: Colour
    trial: int | None = None
    tip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A line of text on its baseline."""

    x: float
    y: float
    text: str
    colour: Colour = "muted"
    anchor: Anchor = "start"
    size: float = FONT_SIZE
    bold: bool = False
    halo: bool = False
    """Whether it keeps clear of the lines that it lies on."""


Mark = Line | Dot | Bar | Text


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The figures of a chart, for who reads them rather than looks at them."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A plot."""

    name: str
    """Of its files."""
    title: str
    summary: str
    """What there is to see, in a sentence."""
    width: float
    height: float
    marks: tuple[Mark, ...]
    table: Table


def text_width(text: str, size: float = FONT_SIZE) -> float:
    """How wide a text is, about: no font is at hand to ask."""
    return 0.58 * size * len(text)


def cut(text: str, width: float, size: float = FONT_SIZE) -> str:
    """The text, or its beginning and an ellipsis where it is too wide."""
    if text_width(text, size) <= width:
        return text
    room = max(1, int(width / (0.58 * size)) - 1)
    return text[:room] + "\N{HORIZONTAL ELLIPSIS}"
