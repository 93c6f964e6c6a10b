"""A chart as PNG, on a light page. matplotlib paints it, and is loaded here alone."""

from __future__ import annotations

import warnings
from functools import singledispatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from raymerge.sweep.report.marks import PALETTE, Bar, Chart, Dot, Line, Mark, Text
from raymerge.sweep.report.svg import clean

_POINTS_PER_PX = 0.72
"""At 100 pixels an inch, in which a figure's size is given."""
_DPI = 200
_SHAPES = {"disc": "o", "ring": "o", "diamond": "D", "cross": "x"}
_SIDES = {"start": "left", "middle": "center", "end": "right"}


def can_paint() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def paint(chart: Chart, path: Path) -> None:
    """Write the picture, two dots to a pixel."""
    # No pyplot: it keeps figures and looks for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(chart.width / 100, chart.height / 100), facecolor=_colour("card"))
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set_axis_off()
    panel.set_xlim(0, chart.width)
    panel.set_ylim(chart.height, 0)
    for level, mark in enumerate(chart.marks):
        _draw(mark, panel, level)
    with warnings.catch_warnings():
        # A name may be in a script that the font has not; SVG leaves that to who looks at it.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(path, dpi=_DPI, format="png")


def _colour(name: str) -> str:
    return PALETTE[name][0]


@singledispatch
def _draw(mark: Mark, panel: Any, level: int) -> None:
    raise TypeError(mark, panel, level)


@_draw.register
def _(mark: Line, panel: Any, level: int) -> None:
    panel.plot(
        *zip(*mark.points, strict=True),
        linestyle=(0, (5, 4)) if mark.dashed else "-",
        color=_colour(mark.colour),
        linewidth=mark.width * _POINTS_PER_PX,
        zorder=level,
    )


@_draw.register
def _(mark: Bar, panel: Any, level: int) -> None:
    from matplotlib.patches import Rectangle

    corner = (mark.x, mark.y)
    colour = _colour(mark.colour)
    panel.add_patch(
        Rectangle(corner, mark.width, mark.height, color=colour, linewidth=0, zorder=level)
    )


@_draw.register
def _(mark: Dot, panel: Any, level: int) -> None:
    filled = mark.shape == "disc"
    size = 2 * mark.radius * (1 if mark.shape in {"disc", "ring"} else 0.75)
    panel.plot(
        [mark.x],
        [mark.y],
        _SHAPES[mark.shape],
        markersize=size * _POINTS_PER_PX,
        markerfacecolor=_colour(mark.colour) if filled else "none",
        markeredgecolor=_colour("card" if filled else mark.colour),
        markeredgewidth=(1 if filled else 2) * _POINTS_PER_PX,
        zorder=level,
    )


@_draw.register
def _(mark: Text, panel: Any, level: int) -> None:
    from matplotlib.patheffects import withStroke

    halo = withStroke(linewidth=4 * _POINTS_PER_PX, foreground=_colour("card"))
    panel.text(
        mark.x,
        mark.y,
        clean(mark.text),
        fontsize=mark.size * _POINTS_PER_PX,
        color=_colour(mark.colour),
        ha=_SIDES[mark.anchor],
        va="baseline",
        fontweight="bold" if mark.bold else "normal",
        parse_math=False,
        path_effects=[halo] if mark.halo else [],
        zorder=level,
    )
