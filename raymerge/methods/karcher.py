"""The Riemannian (Karcher) mean of checkpoints on the sphere.

Wang, Ye, Yin. Functionality-Oriented LLM Merging on the Fisher-Rao Manifold. 2026,
arXiv:2603.04972. The mean itself: Karcher. Riemannian Center of Mass and Mollifier Smoothing.
Communications on Pure and Applied Mathematics 30(5), 1977.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from raymerge.methods.registry import Coefficients, Gram, Over, Range, span_method

SMALLEST_SINE = 1e-7
"""Float32 entries cannot tell the direction of an arc nearer to half a turn than this, nor of a
shorter mean."""


@span_method("karcher", paper="arXiv:2603.04972", over=Over.SOURCES)
def karcher(
    gram: Gram,
    *,
    max_iter: Annotated[int, Range(0, 100_000)] = 10,
    tol: Annotated[float, Range(0.0, 1.0)] = 1e-5,
) -> Coefficients:
    """Find the direction that all sources are nearest to, at their mean length.

    The point on the unit sphere with the smallest sum of squared angles to the sources, each of
    which counts alike. It starts at their mean direction and moves along the mean of the arcs to
    them until that is shorter than `tol`. The direction is always a sum of the sources, so the
    iteration is on its coefficients and takes no pass over the tensor. A base named in the recipe
    is one more source, as in mergekit.

    Args:
        gram: Inner products of the sources.
        max_iter: Steps at most.
        tol: A shorter step is the last. Sources no longer than this have no direction, and count
            in the mean length only.

    Differs from mergekit: of a source opposite to the mean, whose arc has no direction, the arc is
    left out; there the noise of its direction is scaled up.
    """
    count = len(gram)
    lengths = [math.sqrt(gram[i, i]) for i in range(count)]
    if not all(map(math.isfinite, lengths)):  # NaN or Inf where the recipe lets it pass
        return [1 / count] * count
    found = [i for i in range(count) if lengths[i] > tol]
    if not found:
        return [0.0] * count
    squares = gram.tolist()
    cosines = [
        [squares[i][j] / math.sqrt(squares[i][i] * squares[j][j]) for j in found] for i in found
    ]
    mean_length = math.fsum(lengths) / count
    coefficients = [0.0] * count
    for i, share in zip(found, _mean_direction(cosines, max_iter, tol), strict=True):
        coefficients[i] = mean_length * share / lengths[i]
    return coefficients


Direction = list[float]
"""A vector as coefficients of the unit vectors whose cosines are known."""
Cosines = Sequence[Sequence[float]]


def _mean_direction(cosines: Cosines, max_iter: int, tol: float) -> Direction:
    count = len(cosines)
    mean = [1 / count] * count
    length = _length(mean, cosines)
    found = length >= tol and length >= SMALLEST_SINE
    mean = [share / length for share in mean] if found else _first(count)
    for _ in range(max_iter):
        step = _mean_arc(mean, cosines, tol)
        length = _length(step, cosines)
        if length < tol or not length:
            break
        along, across = math.cos(length), math.sin(length) / length
        mean = [along * a + across * b for a, b in zip(mean, step, strict=True)]
        length = _length(mean, cosines)
        mean = [share / length for share in mean]
    return mean


def _mean_arc(mean: Direction, cosines: Cosines, tol: float) -> Direction:
    """The mean of the arcs from `mean` to all units, in the tangent space at `mean`."""
    count = len(mean)
    step = [0.0] * count
    drift = 0.0
    for i, row in enumerate(cosines):
        cosine = max(-1.0, min(1.0, _dot(row, mean)))
        angle = math.acos(cosine)
        sine = math.sin(angle)
        if angle < tol or sine < SMALLEST_SINE:
            continue
        step[i] = angle / sine / count
        drift += step[i] * cosine
    return [pull - drift * share for pull, share in zip(step, mean, strict=True)]


def _length(vector: Direction, cosines: Cosines) -> float:
    squared = _dot(vector, [_dot(row, vector) for row in cosines])
    return math.sqrt(max(0.0, squared))


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def _first(count: int) -> Direction:
    return [1.0] + [0.0] * (count - 1)
