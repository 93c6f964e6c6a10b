"""The report's files: OUT/report.html, and OUT/report/ with each chart as SVG and PNG."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

from raymerge.errors import StorageError
from raymerge.sweep.record import TrialRecord
from raymerge.sweep.report import png
from raymerge.sweep.report.by_axis import charts_by_axis
from raymerge.sweep.report.cost import cost_charts
from raymerge.sweep.report.marks import Chart
from raymerge.sweep.report.page import Section, render_page
from raymerge.sweep.report.parallel import parallel_chart
from raymerge.sweep.report.pareto import pareto_charts
from raymerge.sweep.report.path import is_path, path_charts
from raymerge.sweep.report.ranking import Board, make_board
from raymerge.sweep.report.svg import file_svg

PAGE_NAME = "report.html"
CHARTS_NAME = "report"
MAX_SHOWN = 500
"""Trials, best first, that are in the page: more make it slow to open, and charts a smear."""
_UNFIT = re.compile(r"[^A-Za-z0-9_.]+")
_MAX_NAME = 80
_ABOUT = {
    "path": "Scores at each point between both checkpoints. The dashed line joins the ends; how "
    "far scores fall below it is the barrier.",
    "axes": "A point per trial; the line joins the best at each value.",
    "pareto": "Circled trials clear the gates on all examples, and no other trial that does is as "
    "good in every task and better in one.",
    "parallel": "A line per trial, from value to value and to its score.",
    "cost": "Trials merged together share the reading of their sources; each has its part of it "
    "here.",
}
"""What stands below the heading of a section."""
_TITLES = {
    "path": "Along the path",
    "axes": "Score by axis",
    "pareto": "Pareto front",
    "parallel": "Parallel coordinates",
    "cost": "Cost",
}


def write_report(
    out: Path,
    records: Sequence[TrialRecord],
    *,
    gates: Mapping[str, float] | None = None,
    by_fronts: bool = False,
) -> Path:
    """Write the report of a sweep, in place of an earlier one.

    The same records make the same page. It shows the best 500 trials, and says so where there are
    more. Charts are also PNG where matplotlib is installed.

    Args:
        out: Folder of the sweep.
        records: Its trials, in any order.
        gates: The least that a kept trial scores, by task: drawn, and filtered by. Which trials
            miss one, their records say.
        by_fronts: Whether trials are ranked by fronts over tasks, so that what is shown is the
            tasks and not the score.

    Returns:
        The page.

    Raises:
        StorageError: A file cannot be written.
    """
    whole = make_board(records, gates or {}, by_fronts=by_fronts)
    board = replace(whole, trials=whole.trials[:MAX_SHOWN])
    sections = sections_of(board)
    charts = [chart for section in sections for chart in section.charts]
    folder = _folder(out, records)
    endings = ("svg", "png") if png.can_paint() else ("svg",)
    page = render_page(
        board,
        sections,
        whole=whole,
        title=out.resolve().name,
        out=str(out),
        files_at=folder.name,
        endings=endings,
    )
    try:
        _write_charts(folder, charts, endings)
        _write(out / PAGE_NAME, page)
    except OSError as error:
        raise StorageError(f"{out / PAGE_NAME} cannot be written: {error.strerror}") from error
    return out / PAGE_NAME


def sections_of(board: Board) -> tuple[Section, ...]:
    """All charts that there is something to see in."""
    along = is_path([trial.record for trial in board.trials])
    parallel = parallel_chart(board)
    found: Mapping[str, Iterable[Chart]] = {
        "path": path_charts(board) if along else (),
        "axes": () if along else charts_by_axis(board),
        "pareto": pareto_charts(board),
        "parallel": [parallel] if parallel else (),
        "cost": cost_charts(board),
    }
    names: dict[str, str] = {}
    return tuple(
        Section(key=key, title=_TITLES[key], about=_ABOUT[key], charts=some)
        for key, charts in found.items()
        if (some := tuple(_with_file_name(chart, names) for chart in charts))
    )


def _folder(out: Path, records: Sequence[TrialRecord]) -> Path:
    """The charts' own folder: what `report.yaml` makes lies in the one of that name."""
    taken = {Path(record.out.removeprefix("file://")).resolve() for record in records}
    names = chain([CHARTS_NAME], (f"{CHARTS_NAME}-{number}" for number in count(2)))
    return next(out / name for name in names if (out / name).resolve() not in taken)


def _with_file_name(chart: Chart, taken: dict[str, str]) -> Chart:
    """The chart under a name that is fit for a file, and no other's."""
    stem = _UNFIT.sub("-", chart.name)[:_MAX_NAME].strip("-.")
    name, number = stem, 2
    while name.lower() in taken:
        name, number = f"{stem}-{number}", number + 1
    taken[name.lower()] = name
    return replace(chart, name=name)


def _write_charts(folder: Path, charts: Iterable[Chart], endings: Sequence[str]) -> None:
    """All charts, and none of an earlier report."""
    folder.mkdir(parents=True, exist_ok=True)
    written = set()
    for chart in charts:
        written |= {f"{chart.name}.{ending}" for ending in endings}
        _write(folder / f"{chart.name}.svg", file_svg(chart))
        if "png" in endings:
            png.paint(chart, folder / f"{chart.name}.png")
    for path in folder.iterdir():
        if path.suffix in {".svg", ".png"} and path.name not in written:
            path.unlink()


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # A lone surrogate, of a file name that is not UTF-8, cannot be written.
        beside.write_bytes(text.encode("utf-8", "replace"))
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
