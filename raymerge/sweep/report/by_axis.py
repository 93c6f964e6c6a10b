"""The score against each axis: which values are good ones, and which matter at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from raymerge.sweep.report.frame import Box, gate_line, scatter
from raymerge.sweep.report.marks import Chart, Line, Mark
from raymerge.sweep.report.ranking import Board, Ranked
from raymerge.sweep.report.scales import Scale, is_numeric, shown
from raymerge.sweep.trial import Value

_MAX_STEPS = 30
"""Values up to which the best at each are joined."""


def charts_by_axis(board: Board) -> Iterator[Chart]:
    """A chart per axis that has several values."""
    for axis in board.axes:
        trials = [trial for trial in board.scored if axis in trial.record.values]
        values = dict.fromkeys(trial.record.values[axis] for trial in trials)
        if len(values) > 1:
            yield _chart(board, axis, trials)


def _chart(board: Board, axis: str, trials: Sequence[Ranked]) -> Chart:
    best = best_by_value(axis, trials)
    [value] = [value for value, score in best.items() if score == max(best.values())][:1]
    is_grid = len(best) <= min(_MAX_STEPS, len(trials) - 1)
    spread = float(max(best.values()) - min(best.values()))
    differ = f"; the best at each value differ by {shown(spread)}" if is_grid else ""

    def behind(box: Box, x: Scale, y: Scale) -> Sequence[Mark]:
        gates = gate_line(box, y, *board.gates.values()) if _is_of_score(board) else []
        joined = is_grid and is_numeric(list(best))
        points = tuple((x.at(value), y.at(score)) for value, score in sorted(best.items()))
        return [*gates, Line(points=points, colour="axis", width=1.5)] if joined else gates

    return scatter(
        board,
        trials,
        name=f"score-by-{axis}",
        title=f"Score against {axis}",
        summary=f"Best at {axis} = {shown(value)}{differ}.",
        labels=(axis, "score"),
        x_of=lambda trial: trial.record.values[axis],
        y_of=score_of,
        behind=behind,
    )


def best_by_value(axis: str, trials: Sequence[Ranked]) -> Mapping[Value, float]:
    """The best score at each value, of trials that clear the gates where any do."""
    cleared = [trial for trial in trials if trial.kind in {"kept", "cleared"}]
    best: dict[Value, float] = {}
    for trial in cleared or trials:
        value, score = trial.record.values[axis], score_of(trial)
        best[value] = max(score, best.get(value, score))
    return best


def score_of(trial: Ranked) -> float:
    """What a scored trial is ranked by."""
    assert trial.record.score is not None
    return trial.record.score


def _is_of_score(board: Board) -> bool:
    """Whether the only gate is on the only task, which then is the score."""
    return len(board.gates) == 1 and board.tasks == tuple(board.gates)
