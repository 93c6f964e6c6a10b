"""A chart as SVG: inside the page, or as a file of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import singledispatch
from html import escape

from raymerge.sweep.report.marks import PALETTE, Bar, Chart, Dot, Line, Mark, Text

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
_UNFIT = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML cannot hold."""


def style() -> str:
    """The colours of marks: a class per colour and per use, on a light page and on a dark one."""
    return _classes(0) + "@media (prefers-color-scheme: dark) {" + _classes(1) + "}"


def page_svg(chart: Chart) -> str:
    """The chart as part of a page that has `style()`."""
    label = escape(clean(f"{chart.title}. {chart.summary}"))
    return f'<svg {_size(chart)} role="img" aria-label="{label}">{"".join(_all(chart))}</svg>'


def file_svg(chart: Chart) -> str:
    """The chart as a file: with its colours, its background and its title."""
    name, about = escape(clean(chart.title)), escape(clean(chart.summary))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {_size(chart)} width="{_n(chart.width)}" '
        f'height="{_n(chart.height)}" role="img" aria-labelledby="title about">'
        f'<title id="title">{name}</title><desc id="about">{about}</desc>'
        f"<style>text {{ font-family: {FONT} }} {style()}</style>"
        f'<rect class="fill-card" width="100%" height="100%"/>{"".join(_all(chart))}</svg>\n'
    )


def clean(text: str) -> str:
    """The text without what XML cannot hold, such as the colours of a terminal."""
    return _UNFIT.sub("\N{REPLACEMENT CHARACTER}", text)


def _classes(scheme: int) -> str:
    return "".join(
        f".fill-{name}{{fill:{colours[scheme]}}}.stroke-{name}{{stroke:{colours[scheme]}}}"
        for name, colours in PALETTE.items()
    )


def _size(chart: Chart) -> str:
    return f'viewBox="0 0 {_n(chart.width)} {_n(chart.height)}"'


def _all(chart: Chart) -> Iterator[str]:
    for mark in chart.marks:
        drawn = _draw(mark)
        if isinstance(mark, Text) or mark.trial is None:
            yield drawn
        else:
            title = f"<title>{escape(clean(mark.tip))}</title>"
            yield f'<g class="mark" data-trial="{mark.trial}">{title}{drawn}</g>'


@singledispatch
def _draw(mark: Mark) -> str:
    raise TypeError(mark)


@_draw.register
def _(mark: Line) -> str:
    points = " ".join(f"{_n(x)},{_n(y)}" for x, y in mark.points)
    dash = ' stroke-dasharray="5 4"' if mark.dashed else ""
    return (
        f'<polyline class="stroke-{mark.colour}" points="{points}" fill="none" '
        f'stroke-width="{_n(mark.width)}" stroke-linejoin="round"{dash}/>'
    )


@_draw.register
def _(mark: Bar) -> str:
    size = f'width="{_n(mark.width)}" height="{_n(mark.height)}"'
    return f'<rect class="fill-{mark.colour}" x="{_n(mark.x)}" y="{_n(mark.y)}" {size}/>'


@_draw.register
def _(mark: Dot) -> str:
    x, y, r = mark.x, mark.y, mark.radius
    if mark.shape == "disc":
        # The rim keeps neighbours apart.
        return (
            f'<circle class="fill-{mark.colour} stroke-card" cx="{_n(x)}" cy="{_n(y)}" '
            f'r="{_n(r)}" stroke-width="1"/>'
        )
    pen = f'class="stroke-{mark.colour}" stroke-width="2"'
    if mark.shape == "ring":
        return f'<circle {pen} fill="none" cx="{_n(x)}" cy="{_n(y)}" r="{_n(r - 0.5)}"/>'
    if mark.shape == "diamond":
        path = f"M{_n(x - r)} {_n(y)}L{_n(x)} {_n(y - r)}L{_n(x + r)} {_n(y)}L{_n(x)} {_n(y + r)}Z"
        return f'<path {pen} fill="none" d="{path}"/>'
    a = 0.75 * r
    path = f"M{_n(x - a)} {_n(y - a)}L{_n(x + a)} {_n(y + a)}M{_n(x - a)} {_n(y + a)}"
    return f'<path {pen} d="{path}L{_n(x + a)} {_n(y - a)}"/>'


@_draw.register
def _(mark: Text) -> str:
    bold = ' font-weight="600"' if mark.bold else ""
    halo = ' paint-order="stroke" stroke-width="4" stroke-linejoin="round"' if mark.halo else ""
    also = " stroke-card" if mark.halo else ""
    return (
        f'<text class="fill-{mark.colour}{also}" x="{_n(mark.x)}" y="{_n(mark.y)}" '
        f'font-size="{_n(mark.size)}" text-anchor="{mark.anchor}"{bold}{halo}>'
        f"{escape(clean(mark.text))}</text>"
    )


def _n(number: float) -> str:
    """A pixel, to a hundredth."""
    return f"{number:.2f}".rstrip("0").rstrip(".")
