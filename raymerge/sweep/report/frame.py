"""What the charts share: room for labels, a grid, a legend, and a point per trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from raymerge.sweep.report.marks import (
    Anchor,
    Bar,
    Chart,
    Colour,
    Dot,
    Line,
    Mark,
    Shape,
    Table,
    Text,
    cut,
    text_width,
)
from raymerge.sweep.report.ranking import KINDS, Board, Ranked, colour_of
from raymerge.sweep.report.scales import Scale, linear, scale_for, shown
from raymerge.sweep.trial import Value

WIDTH = 340.0
"""Of a chart that a phone shows whole."""
HEIGHT = 270.0
_RIGHT = 16.0
_TOP = 34.0
_BOTTOM = 66.0
_LABEL_GAP = 8.0
_LEAST_LEFT = 34.0
_KEY_PX = 16.0
_KEY_SIZE = 11.0
_ROW_PX = 18.0
_CROWD = 60
"""Points above which they are small."""
_GOLDEN = 0.618034
"""Multiples of it, less their whole parts, are spread evenly however many there are."""


@dataclass(frozen=True, slots=True)
class Box:
    """Where the points are; the y axis points up, so its pixels run from bottom to top."""

    left: float
    top: float
    right: float
    bottom: float


def box_for(
    y_values: Sequence[float], *, width: float = WIDTH, height: float = HEIGHT, from_zero: bool
) -> tuple[Box, Scale]:
    """The room that the labels of the y axis leave, and that axis."""
    bottom = height - _BOTTOM
    y = linear(y_values, bottom, _TOP, from_zero=from_zero)
    left = max([_LEAST_LEFT, *(text_width(label) + 2 * _LABEL_GAP for _, label in y.ticks)])
    return Box(left, _TOP, width - _RIGHT, bottom), y


def frame(box: Box, x: Scale, y: Scale, x_label: str, y_label: str) -> Iterator[Mark]:
    """Grid, ticks and labels."""
    for at, label in y.ticks:
        yield Line(points=((box.left, at), (box.right, at)), colour="rule", width=1)
        yield Text(x=box.left - _LABEL_GAP, y=at + 4, text=label, anchor="end")
    yield Line(points=((box.left, box.bottom), (box.right, box.bottom)), colour="axis", width=1)
    for at, label in x.ticks:
        yield Line(points=((at, box.bottom), (at, box.bottom + 4)), colour="axis", width=1)
        yield Text(x=at, y=box.bottom + 18, text=label, anchor="middle")
    middle = (box.left + box.right) / 2
    yield _label(middle, box.bottom + 36, x_label, box.right - box.left, "middle")
    yield _label(4, box.top - 16, y_label, box.right - 4, "start")


def legend(
    left: float, right: float, y: float, entries: Sequence[tuple[str, Colour, Shape | None]]
) -> list[Mark]:
    """Rows of keys: a point, or a filled square where no shape is given, and its words."""
    marks: list[Mark] = []
    x = left
    for words, colour, shape in entries:
        wide = text_width(words, _KEY_SIZE)
        if x > left and x + _KEY_PX + wide > right:
            x, y = left, y + _ROW_PX
        if shape is None:
            marks.append(Bar(x=x, y=y - 9, width=10, height=10, colour=colour))
        else:
            marks.append(Dot(x=x + 5, y=y - 4, colour=colour, shape=shape))
        if words:
            marks.append(Text(x=x + _KEY_PX, y=y, text=words, size=_KEY_SIZE))
        x += _KEY_PX + (wide + 12 if words else 0)
    return marks


def kinds_legend(board: Board, trials: Sequence[Ranked], box: Box) -> list[Mark]:
    """Which shape means what, where there are several."""
    kinds = [kind for kind in KINDS if any(trial.kind == kind for trial in trials)]
    if len(kinds) < 2:  # noqa: PLR2004 - a single one needs no key
        return []
    entries = [(board.words(kind), colour_of(kind), KINDS[kind][1]) for kind in kinds]
    return legend(box.left, box.right, box.bottom + 56, entries)


def height_of(marks: Sequence[Mark]) -> float:
    """Of a chart with these marks: more where the legend has several rows."""
    return max([HEIGHT, *(mark.y + 10 for mark in marks if isinstance(mark, Text))])


def gate_line(box: Box, y: Scale, gate: float) -> list[Mark]:
    """A dashed line at the least that a kept trial scores; none outside of the chart."""
    at = y.at(gate)
    if not box.top <= at <= box.bottom:
        return []
    ends = ((box.left, at), (box.right, at))
    words = Text(x=box.right, y=at - 5, text="gate", colour="missed", anchor="end", size=11)
    return [Line(points=ends, colour="missed", width=1, dashed=True), words]


def scatter(
    board: Board,
    trials: Sequence[Ranked],
    *,
    name: str,
    title: str,
    summary: str,
    labels: tuple[str, str],
    x_of: Callable[[Ranked], Value],
    y_of: Callable[[Ranked], float],
    behind: Callable[[Box, Scale, Scale], Sequence[Mark]],
) -> Chart:
    """A point per trial.

    Args:
        board: Of the sweep.
        trials: That are shown; at least one. The best are drawn last, on top.
        name: Of the chart's files.
        title: Above it.
        summary: What there is to see.
        labels: Of both axes.
        x_of: What a trial has on the first axis.
        y_of: And on the second.
        behind: What is drawn before the points.
    """
    box, y = box_for([y_of(trial) for trial in trials], from_zero=False)
    x = scale_for([x_of(trial) for trial in trials], box.left + 8, box.right - 8)
    marks = [*frame(box, x, y, *labels), *behind(box, x, y)]
    for trial in reversed(trials):
        here = f"{labels[0]} {shown(x_of(trial))}, {labels[1]} {shown(y_of(trial))}"
        at = x.at(x_of(trial)) + _aside(trial.rank, x.band)
        marks.append(trial.dot(at, y.at(y_of(trial)), here, small=len(trials) > _CROWD))
    marks += kinds_legend(board, trials, box)
    rows = [
        (str(trial.rank), trial.record.name, shown(x_of(trial)), shown(y_of(trial)))
        for trial in trials
    ]
    return Chart(
        name=name,
        title=title,
        summary=summary,
        width=WIDTH,
        height=height_of(marks),
        marks=tuple(marks),
        table=Table(head=("#", "trial", *labels), rows=tuple(rows)),
    )


def _aside(rank: int, band: float) -> float:
    """How far from the middle of its place a point is put, so that all of them are seen."""
    return (rank * _GOLDEN % 1 - 0.5) * min(0.6 * band, 60.0)


def _label(x: float, y: float, text: str, room: float, anchor: Anchor) -> Text:
    return Text(x=x, y=y, text=cut(text, room), colour="ink", anchor=anchor, bold=True)
