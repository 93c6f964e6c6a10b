"""Scores along the path between two checkpoints, and how far they fall below its ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from raymerge.sweep.barrier import Barrier, over_line
from raymerge.sweep.path import AXIS
from raymerge.sweep.record import TrialRecord
from raymerge.sweep.report.frame import Box, gate_line, scatter
from raymerge.sweep.report.marks import Chart, Line, Mark, Text
from raymerge.sweep.report.ranking import Board, Measure, Ranked
from raymerge.sweep.report.scales import Scale, shown

_LEAST = 3
"""Points that make a path to look at."""
_NOTHING = 1e-9
"""A barrier that is none but for rounding."""


def path_charts(board: Board) -> Iterator[Chart]:
    """A chart per task, and one of the score where that is none of them; the trials are a path."""
    for task in board.tasks:
        yield from _chart(board, Measure(task, task), board.trials)
    if len(board.tasks) > 1 and not board.by_fronts:
        yield from _chart(board, Measure("score", None), board.trials)


def is_path(records: Sequence[TrialRecord]) -> bool:
    """Whether trials differ in `t` alone, from 0 to 1."""
    found = set()
    for record in records:
        t = record.values.get(AXIS)
        if len(record.values) != 1 or isinstance(t, bool) or not isinstance(t, int | float):
            return False
        found.add(t)
    return {0, 1} <= found and 0 <= min(found) <= max(found) <= 1


def _chart(board: Board, measure: Measure, trials: Sequence[Ranked]) -> Iterator[Chart]:
    pairs = sorted(measure.pairs(trials), key=lambda pair: _t(pair[0]))
    points = [(_t(trial), score) for trial, score in pairs]
    if len(points) < _LEAST:
        return
    found = over_line(points) if (points[0][0], points[-1][0]) == (0, 1) else None
    by_rank = {trial.rank: score for trial, score in pairs}

    def behind(box: Box, x: Scale, y: Scale) -> Sequence[Mark]:
        here = tuple((x.at(t), y.at(score)) for t, score in points)
        gate = board.gates.get(measure.name)
        return [
            *(gate_line(box, y, gate) if gate is not None else ()),
            *([Line(points=(here[0], here[-1]), colour="axis", dashed=True)] if found else ()),
            Line(points=here, colour="accent", width=2),
            *(_height(found, x, y, dict(points)) if found else ()),
        ]

    yield scatter(
        board,
        [trial for trial, _ in pairs],
        name=f"path-{measure.name}",
        title=f"{measure.title} along the path",
        summary=_summary(found),
        labels=(AXIS, measure.name),
        x_of=_t,
        y_of=lambda trial: by_rank[trial.rank],
        behind=behind,
    )


def _summary(found: Barrier | None) -> str:
    if found is None:
        return "An end has no score, so there is no line to compare with."
    if found.height < _NOTHING:
        return "No barrier: nowhere below the straight line between the ends."
    return (
        f"A barrier of {found.height:.4g} at t = {shown(found.t)}, below the straight line between "
        "the ends."
    )


def _height(found: Barrier, x: Scale, y: Scale, scores: Mapping[float, float]) -> Iterator[Mark]:
    """From the path up to the line between its ends."""
    if found.height < _NOTHING:
        return
    at, low = x.at(found.t), y.at(scores[found.t])
    high = y.at(scores[found.t] + found.height)
    words = f"barrier {found.height:.4g}"
    yield Line(points=((at, low), (at, high)), colour="failed")
    yield Text(x=at, y=(low + high) / 2, text=words, colour="failed", anchor="middle", halo=True)


def _t(trial: Ranked) -> float:
    return float(trial.record.values[AXIS])
