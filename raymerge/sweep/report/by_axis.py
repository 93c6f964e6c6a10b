"""The score against each axis: which values are good ones, and which matter at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from raymerge.sweep.report.frame import Box, gate_line, scatter
from raymerge.sweep.report.marks import Chart, Line, Mark
from raymerge.sweep.report.ranking import Board, Measure, Ranked
from raymerge.sweep.report.scales import Scale, is_numeric, shown
from raymerge.sweep.trial import Value

_MAX_STEPS = 30
"""Values up to which the best at each are joined."""


def charts_by_axis(board: Board) -> Iterator[Chart]:
    """A chart per axis that has several values, and measure."""
    for axis in board.axes:
        for measure in board.measures:
            there = [trial for trial in board.scored if axis in trial.record.values]
            pairs = measure.pairs(there)
            if len({trial.record.values[axis] for trial, _ in pairs}) > 1:
                yield _chart(board, axis, measure, pairs)


def best_by_value(axis: str, pairs: Sequence[tuple[Ranked, float]]) -> Mapping[Value, float]:
    """The best at each value, of trials that clear the gates where any do."""
    cleared = [pair for pair in pairs if pair[0].kind in {"kept", "cleared"}]
    best: dict[Value, float] = {}
    for trial, measured in cleared or pairs:
        value = trial.record.values[axis]
        best[value] = max(measured, best.get(value, measured))
    return best


def _chart(
    board: Board, axis: str, measure: Measure, pairs: Sequence[tuple[Ranked, float]]
) -> Chart:
    best = best_by_value(axis, pairs)
    value = max(best, key=best.__getitem__)
    is_grid = len(best) <= min(_MAX_STEPS, len(pairs) - 1)
    spread = float(max(best.values()) - min(best.values()))
    differ = f"; the best at each value differ by {shown(spread)}" if is_grid else ""
    by_rank = {trial.rank: measured for trial, measured in pairs}

    def behind(box: Box, x: Scale, y: Scale) -> Sequence[Mark]:
        gate = _gate(board, measure)
        gates = [] if gate is None else gate_line(box, y, gate)
        joined = is_grid and is_numeric(list(best))
        points = tuple((x.at(value), y.at(score)) for value, score in sorted(best.items()))
        return [*gates, Line(points=points, colour="axis", width=1.5)] if joined else gates

    return scatter(
        board,
        [trial for trial, _ in pairs],
        name=f"{measure.name}-by-{axis}",
        title=f"{measure.title} against {axis}",
        summary=f"Best at {axis} = {shown(value)}{differ}.",
        labels=(axis, measure.name),
        x_of=lambda trial: trial.record.values[axis],
        y_of=lambda trial: by_rank[trial.rank],
        behind=behind,
    )


def _gate(board: Board, measure: Measure) -> float | None:
    """The gate on the measure; the score is a task where there is no other."""
    task = board.tasks[0] if len(board.tasks) == 1 and measure.task is None else measure.task
    return board.gates.get(task) if task else None
