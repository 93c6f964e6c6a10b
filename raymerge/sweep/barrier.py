"""How high the barrier is along the path between two checkpoints: in loss, or in any score.

Frankle, Dziugaite, Roy, Carbin. Linear Mode Connectivity and the Lottery Ticket Hypothesis. ICML
2020, arXiv:1912.05671. Entezari, Sedghi, Saukh, Neyshabur. The Role of Permutation Invariance in
Linear Mode Connectivity of Neural Networks. ICLR 2022, arXiv:2110.06296.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raymerge.sweep.choice import newest
from raymerge.sweep.path import AXIS
from raymerge.sweep.record import TrialRecord

_DIGITS = 12
"""Of a height: the points of a straight line are below it by rounding alone."""


@dataclass(frozen=True, slots=True)
class Barrier:
    """How much worse a path is than the straight line between what its ends score."""

    height: float
    """In points of the score, 0 or above: the ends themselves are on the line."""
    t: float
    """Where it is highest."""


def over_line(points: Sequence[tuple[float, float]]) -> Barrier:
    """The barrier: max over t of loss(t) - ((1 - t) loss(0) + t loss(1)).

    Scores are higher for better, so the loss is the score with its sign turned. The height of an
    accuracy is therefore in points of accuracy, that of a mean log-likelihood in nats.

    Args:
        points: t and score, t rising, at least two.

    >>> over_line([(0.0, 0.8), (0.25, 0.5), (0.5, 0.1), (1.0, 0.6)])
    Barrier(height=0.6, t=0.5)
    """
    (first, start), (last, end) = points[0], points[-1]
    falls = [(start + (end - start) * (t - first) / (last - first) - y, t) for t, y in points]
    height, t = max(falls, key=lambda fall: fall[0])
    return Barrier(round(max(height, 0.0), _DIGITS), t)


def barriers(records: Sequence[TrialRecord]) -> dict[str, Barrier]:
    """The barrier by task, of the trials of a path, or of a grid over `t` alone.

    A task is left out where an end lacks its score, and all are where there is another axis.
    """
    found: dict[str, dict[float, float]] = {}
    for record in records:
        whole = newest(record, "search", None)
        t = record.values.get(AXIS) if len(record.values) == 1 else None
        if whole is not None and isinstance(t, int | float):
            for task, score in whole.scores.items():
                found.setdefault(task, {})[float(t)] = score
    return {
        task: over_line(sorted(points.items()))
        for task, points in found.items()
        if {0.0, 1.0} <= points.keys()
    }


def barrier_lines(records: Sequence[TrialRecord]) -> list[str]:
    """The barriers of a path in words, a line each."""
    return [
        f"barrier of {task}: {one.height:.4g} at t={one.t:g}"
        for task, one in barriers(records).items()
    ]
