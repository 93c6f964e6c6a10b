"""Tasks against each other, and the trials that no other beats in all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise

from raymerge.sweep.choice import beats
from raymerge.sweep.report.frame import Box, gate_line, scatter
from raymerge.sweep.report.marks import Chart, Dot, Line, Mark, Table
from raymerge.sweep.report.ranking import Board, Ranked
from raymerge.sweep.report.scales import Scale

MAX_TASKS = 4
"""Tasks of which every pair has a chart."""
_MAX_NAMED = 8
_PAIR = 2


def pareto_charts(board: Board) -> Iterator[Chart]:
    """A chart per pair of the first tasks; the front is over all of them."""
    trials = [trial for trial in board.scored if all(t in trial.scores for t in board.tasks)]
    best = front(trials, board.tasks)
    for first, second in combinations(board.tasks[:MAX_TASKS], 2):
        if trials:
            yield _chart(board, trials, best, (first, second))


def front(trials: Sequence[Ranked], tasks: Sequence[str]) -> tuple[Ranked, ...]:
    """The trials, of those that clear the gates, that no other beats in one task for free."""
    clear = [trial for trial in trials if trial.kind in {"kept", "cleared"}]
    return tuple(
        trial
        for trial in clear
        if not any(beats(other.scores, trial.scores, tasks) for other in clear)
    )


def _chart(
    board: Board, trials: Sequence[Ranked], best: Sequence[Ranked], pair: tuple[str, str]
) -> Chart:
    first, second = pair
    over = "both tasks" if len(board.tasks) == _PAIR else f"all {len(board.tasks)} tasks"
    ranks = ", ".join(f"#{trial.rank}" for trial in best[:_MAX_NAMED])
    more = " and more" if len(best) > _MAX_NAMED else ""
    left = f" Pairs of the first {MAX_TASKS} tasks have a chart." * (len(board.tasks) > MAX_TASKS)

    def behind(box: Box, x: Scale, y: Scale) -> Sequence[Mark]:
        marks = list(_gates(board, box, x, y, pair))
        points = sorted((x.at(t.scores[first]), y.at(t.scores[second])) for t in best)
        # In two tasks the front is a line; of more, one sees a shadow of it.
        if len(board.tasks) == _PAIR and len(points) > 1:
            marks.append(_steps(points))
        halos = (Dot(x=a, y=b, colour="accent", shape="ring", radius=8.5) for a, b in points)
        return [*marks, *halos]

    chart = scatter(
        board,
        trials,
        name=f"pareto-{first}-{second}",
        title=f"{second} against {first}",
        summary=f"{len(best)} on the front over {over}"
        + (f": {ranks}{more}." if best else ".")
        + left,
        labels=pair,
        x_of=lambda trial: trial.scores[first],
        y_of=lambda trial: trial.scores[second],
        behind=behind,
    )
    on_front = {str(trial.rank) for trial in best}
    rows = tuple((*row, "yes" if row[0] in on_front else "no") for row in chart.table.rows)
    return replace(chart, table=Table(head=(*chart.table.head, "on the front"), rows=rows))


def _gates(board: Board, box: Box, x: Scale, y: Scale, pair: tuple[str, str]) -> Iterator[Mark]:
    first, second = pair
    if second in board.gates:
        yield from gate_line(box, y, board.gates[second])
    if first in board.gates and box.left <= (at := x.at(board.gates[first])) <= box.right:
        ends = ((at, box.top), (at, box.bottom))
        yield Line(points=ends, colour="missed", width=1, dashed=True)


def _steps(points: Sequence[tuple[float, float]]) -> Line:
    """What the front leaves behind it: down at a point, then right to the next."""
    corners = [points[0]]
    for (left, _), (right, low) in pairwise(points):
        corners += [(left, low), (right, low)]
    return Line(points=tuple(corners), colour="accent", width=1.5)
