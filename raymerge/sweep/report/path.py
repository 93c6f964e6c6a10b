"""Scores along the path between two checkpoints, and how far they fall below its ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raymerge.sweep.barrier import over_line
from raymerge.sweep.path import AXIS as T
from raymerge.sweep.report.by_axis import score_of
from raymerge.sweep.report.frame import Box, gate_line, scatter
from raymerge.sweep.report.marks import Chart, Line, Mark, Text
from raymerge.sweep.report.ranking import Board, Ranked
from raymerge.sweep.report.scales import Scale, is_numeric, shown

_LEAST = 3


def path_charts(board: Board) -> Iterator[Chart]:
    """A chart per task, and one of the score where that is none of them."""
    on_path = [
        trial
        for trial in board.trials
        if T in trial.record.values and is_numeric([trial.record.values[T]])
    ]
    for task in board.tasks:
        yield from _chart(board, task, [(t, t.scores[task]) for t in on_path if task in t.scores])
    if len(board.tasks) != 1:
        scored = [trial for trial in on_path if trial.record.score is not None]
        yield from _chart(board, "score", [(trial, score_of(trial)) for trial in scored])


def _chart(board: Board, name: str, scores: Sequence[tuple[Ranked, float]]) -> Iterator[Chart]:
    points = sorted({_t(trial): score for trial, score in scores}.items())
    if len(points) < _LEAST:
        return
    found = over_line(points)
    height, worst = found.height, found.t
    ends = f"t = {shown(points[0][0])} to {shown(points[-1][0])}"
    fall = f"a barrier of {shown(height)} at t = {shown(worst)}" if height else "no barrier"

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
        summary=f"From {ends}: {fall} below the straight line between the ends.",
        labels=(T, name),
        x_of=_t,
        y_of=lambda trial: by_rank[trial.rank],
        behind=behind,
    )


def _t(trial: Ranked) -> float:
    return float(trial.record.values[T])
