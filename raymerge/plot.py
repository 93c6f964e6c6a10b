"""An inspection as a picture: norms by layer, and cosines between sources.

matplotlib draws it, and is loaded here alone. The picture has no background, and greys that can be
read on a white page and on a black one.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymerge.errors import PlanError, StorageError

if TYPE_CHECKING:
    from raymerge.runtime.inspection import Inspection

ENDINGS = (".png", ".svg")
_GREY = "#808080"
# Apart in brightness too, and clear of both white and black (Okabe and Ito's, without the palest).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# Fine-tunes of one kind lie on top of each other.
_STYLES = ("-", "--", ":", "-.")
_MAX_WRITTEN = 8
"""Sources up to which each field of the heat map has its figure written in."""


def check_plot(path: Path) -> None:
    """Raise PlanError, before anything is read, if there is no drawing to this file."""
    if path.suffix.lower() not in ENDINGS:
        raise PlanError(f"--plot {path}: the name has to end in {' or '.join(ENDINGS)}")
    if find_spec("matplotlib") is None:
        raise PlanError(
            "--plot needs matplotlib, which is not installed; install it with: "
            'pip install "raymerge[plot]"'
        )


def draw(found: Inspection, path: Path) -> None:
    """Write the picture: PNG or SVG by the name's ending.

    Raises:
        PlanError: Neither of the two, or matplotlib is not installed.
        StorageError: The file cannot be written.
    """
    check_plot(path)
    # No pyplot: it keeps figures and looks for a display.
    from matplotlib.figure import Figure

    several = len(found.total.sources) > 1
    figure = Figure(figsize=(11.0 if several else 7.0, 4.5), layout="constrained")
    panels = figure.subplots(1, 2 if several else 1, squeeze=False)[0]
    _draw_layers(panels[0], found)
    if several:
        _draw_cosines(figure, panels[1], found)
    for panel in figure.axes:
        _neutral(panel)
    try:
        figure.savefig(path, transparent=True, dpi=150)
    except OSError as error:
        why = f"{path} cannot be written: {error.strerror}"
        raise StorageError(why, file=path.name) from error


def _draw_layers(panel: Any, found: Inspection) -> None:
    """A line per source: ||delta|| / ||base||; without a base per pair: how far apart."""
    positions = range(len(found.groups))
    lines: dict[str, list[float | None]] = {}
    for group in found.groups:
        if found.base is None:
            for pair in group.pairs:
                lines.setdefault(", ".join(pair.sources), []).append(pair.distance)
        else:
            for source in group.sources:
                lines.setdefault(source.label, []).append(source.norm_ratio)
    for number, (label, figures) in enumerate(lines.items()):
        known = [float("nan") if figure is None else figure for figure in figures]
        colour, style = _COLOURS[number % len(_COLOURS)], _STYLES[number % len(_STYLES)]
        panel.plot(positions, known, style, label=label, color=colour, marker="o", markersize=3)
    step = max(1, -(-len(found.groups) // 24))
    panel.set_xticks(
        list(positions)[::step], [g.name for g in found.groups][::step], rotation=90, fontsize=7
    )
    panel.set_ylim(bottom=0)
    panel.set_xlabel("layer")
    if found.base is None:
        panel.set_ylabel("||a - b|| / mean of ||a||, ||b||")
        panel.set_title("Distance between sources by layer")
    else:
        panel.set_ylabel("||delta|| / ||base||")
        panel.set_title(f"Task vectors over {found.base} by layer")
    panel.grid(color=_GREY, alpha=0.25)
    panel.legend(frameon=False, labelcolor=_GREY)


def _draw_cosines(figure: Any, panel: Any, found: Inspection) -> None:
    labels = [source.label for source in found.total.sources]
    cosines = [[1.0 if i == j else float("nan") for j in labels] for i in labels]
    for pair in found.total.pairs:
        i, j = map(labels.index, pair.sources)
        if pair.cosine is not None:
            cosines[i][j] = cosines[j][i] = pair.cosine
    image = panel.imshow(cosines, vmin=-1, vmax=1, cmap="PuOr")
    panel.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    panel.set_yticks(range(len(labels)), labels)
    if len(labels) <= _MAX_WRITTEN:
        for i, row in enumerate(cosines):
            for j, cosine in enumerate(row):
                # The field is its own background: dark at both ends of the scale.
                ink = "white" if abs(cosine) > 0.7 else "black"  # noqa: PLR2004
                written = f"{round(cosine, 2) + 0.0:.2f}"  # -0.001 is written 0.00
                panel.text(j, i, written, ha="center", va="center", color=ink)
    panel.set_title("Cosines of " + ("deltas" if found.base else "weights"))
    panel.set_xlabel("source")
    panel.set_ylabel("source")
    bar = figure.colorbar(image, ax=panel, shrink=0.8)
    bar.set_label("cosine", color=_GREY)


def _neutral(panel: Any) -> None:
    panel.tick_params(colors=_GREY)
    for text in (panel.title, panel.xaxis.label, panel.yaxis.label):
        text.set_color(_GREY)
    for spine in panel.spines.values():
        spine.set_color(_GREY)
