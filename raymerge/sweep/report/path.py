"""Scores along the path between two checkpoints, and how far they fall below its ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raymerge.sweep.record import TrialRecord
from raymerge.sweep.report.frame import Box, gate_line, scatter
from raymerge.sweep.report.marks import Chart, Line, Mark, Text
from raymerge.sweep.report.ranking import Board, Measure, Ranked
from raymerge.sweep.report.scales import Scale, is_numeric, shown

T = "t"
"""The axis of a path: 0 is its first end, 1 its last."""
_LEAST = 3


def path_charts(board: Board) -> Iterator[Chart]:
    """A chart per task, and one of the score where that is none of them."""
    on_path = [
        trial
        for trial in board.trials
        if T in trial.record.values and is_numeric([trial.record.values[T]])
    ]
    for task in board.tasks:
        yield from _chart(board, task, Measure(task, task).pairs(on_path))
    if len(board.tasks) > 1 and not board.by_fronts:
        yield from _chart(board, "score", Measure("score", None).pairs(on_path))


def is_path(records: Sequence[TrialRecord]) -> bool:
    """Whether trials differ in `t` alone, from 0 to 1."""
    found = set()
    for record in records:
        t = record.values.get(T)
        if len(record.values) != 1 or isinstance(t, bool) or not isinstance(t, int | float):
            return False
        found.add(t)
    return {0, 1} <= found and 0 <= min(found) <= max(found) <= 1


def barrier(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """How far scores fall below the line between both ends at most, and at which t.

    Args:
        points: t and score, t rising, at least two.

    >>> barrier([(0.0, 0.8), (0.25, 0.5), (0.5, 0.1), (1.0, 0.6)])
    (0.6, 0.5)
    """
    (first, start), (last, end) = points[0], points[-1]
    falls = [(start + (end - start) * (t - first) / (last - first) - y, t) for t, y in points]
    height, t = max(falls, key=lambda fall: fall[0])
    return round(max(height, 0.0), 12), t


def _chart(board: Board, name: str, scores: Sequence[tuple[Ranked, float]]) -> Iterator[Chart]:
    points = sorted({_t(trial): score for trial, score in scores}.items())
    if len(points) < _LEAST:
        return
    height, worst = barrier(points)
    ends = f"t = {shown(points[0][0])} to {shown(points[-1][0])}"
    found = f"a barrier of {shown(height)} at t = {shown(worst)}" if height else "no barrier"

    def behind(box: Box, x: Scale, y: Scale) -> Sequence[Mark]:
        here = [(x.at(t), y.at(score)) for t, score in points]
        marks: list[Mark] = [
            *(gate_line(box, y, board.gates[name]) if name in board.gates else ()),
            Line(points=(here[0], here[-1]), colour="axis", dashed=True),
            Line(points=tuple(here), colour="accent", width=2),
        ]
        if height:
            at, low = x.at(worst), y.at(dict(points)[worst])
            high = low - (y.at(0) - y.at(height))
            marks.append(Line(points=((at, low), (at, high)), colour="failed", width=1.5))
            words, middle = f"barrier {shown(height)}", (low + high) / 2
            marks.append(
                Text(x=at, y=middle, text=words, colour="failed", anchor="middle", halo=True)
            )
        return marks

    by_t = sorted((trial for trial, _ in scores), key=_t)
    by_rank = {trial.rank: score for trial, score in scores}
    yield scatter(
        board,
        by_t,
        name=f"path-{name}",
        title=f"{name} along the path",
        summary=f"From {ends}: {found} below the straight line between the ends.",
        labels=(T, name),
        x_of=_t,
        y_of=lambda trial: by_rank[trial.rank],
        behind=behind,
    )


def _t(trial: Ranked) -> float:
    return float(trial.record.values[T])
