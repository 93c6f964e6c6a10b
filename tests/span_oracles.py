"""The span methods that take angles, written slowly: groups one by one, coefficients by the book.

As in `oracles.py` nothing comes from `raymerge.kernels` or `raymerge.methods`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import numpy.typing as npt

from tests.oracles import Doubles, Floats, inner, relative_span_pass, span_pass

Grouping = Literal["tensor", "row", "column"]
Indices = npt.NDArray[np.int64]


def groups_of(shape: Sequence[int], grouping: Grouping) -> list[Indices]:
    """Flat indices of each group's elements, in rising order; a 1-D tensor is one group."""
    indices = np.arange(math.prod(shape))
    if grouping == "tensor" or len(shape) < 2 or not indices.size:
        return [indices]
    if grouping == "row":
        return list(indices.reshape(-1, shape[-1]))
    return list(indices.reshape(shape[0], -1).T)


def column_inner(left: Floats, right: Floats) -> float:
    """The contract's inner product of two columns: one product after another."""
    total = 0.0
    for product in (left.astype(np.float64) * right.astype(np.float64)).tolist():
        total += product
    return total


def grams_of(
    vectors: Sequence[Floats], shape: Sequence[int], grouping: Grouping
) -> list[tuple[Indices, Doubles]]:
    """Every group with its Gram matrix."""
    groups = groups_of(shape, grouping)
    product = column_inner if grouping == "column" and len(groups) > 1 else inner
    return [
        (group, np.array([[product(a[group], b[group]) for b in vectors] for a in vectors]))
        for group in groups
    ]


def grouped_span_pass(
    sources: Sequence[Floats],
    base: Floats | None,
    coefficients: Callable[[Doubles], Sequence[float]],
    *,
    shape: Sequence[int] | None = None,
    grouping: Grouping = "tensor",
) -> Floats:
    """The span pass over sources, or over task vectors, with each group's own coefficients."""
    vectors = list(sources) if base is None else [source - base for source in sources]
    merged = np.zeros_like(sources[0])
    for group, gram in grams_of(vectors, shape or sources[0].shape, grouping):
        found = coefficients(gram)
        own = [source[group] for source in sources]
        merged[group] = (
            span_pass(own, found) if base is None else relative_span_pass(base[group], own, found)
        )
    return merged


def oracle_nuslerp(
    sources: Sequence[Floats],
    base: Floats | None,
    *,
    weight: Sequence[float],
    shape: Sequence[int] | None = None,
    grouping: Grouping = "tensor",
) -> Floats:
    """The arc between two vectors, a straight line where there is none."""
    total = weight[0] + weight[1]
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total

    def arc(gram: Doubles) -> list[float]:
        product = math.sqrt(gram[0, 0] * gram[1, 1])
        if product == 0 or 1 - abs(gram[0, 1] / product) <= 2.0**-25:
            return [1 - t, t]
        angle = math.acos(gram[0, 1] / product)
        return [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]

    return grouped_span_pass(sources, base, arc, shape=shape, grouping=grouping)


def oracle_model_stock(
    base: Floats,
    sources: Sequence[Floats],
    *,
    shape: Sequence[int] | None = None,
    grouping: Grouping = "tensor",
) -> Floats:
    """From the base towards the mean, by the mean cosine of the task vectors."""
    count = len(sources)

    def ratio(gram: Doubles) -> list[float]:
        cosines = []
        for i, j in combinations(range(count), 2):
            product = math.sqrt(gram[i, i] * gram[j, j])
            cosines.append(max(-1.0, min(1.0, gram[i, j] / product)) if product else 0.0)
        cosine = sum(cosines) / len(cosines)
        divisor = 1 + (count - 1) * cosine
        t = 0.0 if abs(divisor) < 1e-6 else count * cosine / divisor
        return [t / count] * count

    return grouped_span_pass(sources, base, ratio, shape=shape, grouping=grouping)


def oracle_multislerp(
    sources: Sequence[Floats],
    base: Floats | None,
    *,
    weight: Sequence[float],
    normalize_weights: bool = True,
    eps: float = 1e-8,
) -> Floats:
    """The weighted mean direction at the weighted mean length, of vectors that do not cancel."""
    shares = np.array(weight)
    if normalize_weights:
        shares = shares / shares.sum()

    def mean(gram: Doubles) -> list[float]:
        lengths = np.sqrt(np.diagonal(gram))
        if len(lengths) == 1:
            return [1.0]
        if not lengths.any():
            return list(shares)
        parts = shares / (lengths + eps)
        length = math.sqrt(parts @ gram @ parts)
        if length <= max(eps, 2.0**-20 * np.abs(shares).sum()):
            return list(shares)
        return list(parts / length * (shares @ lengths))

    return grouped_span_pass(sources, base, mean)


def oracle_karcher(sources: Sequence[Floats], *, max_iter: int = 10, tol: float = 1e-5) -> Floats:
    """The mean on the sphere, as coefficients of the sources' unit vectors."""

    def mean(gram: Doubles) -> list[float]:
        lengths = np.sqrt(np.diagonal(gram))
        long = lengths > tol
        if not long.any():
            return [0.0] * len(sources)
        cosines = gram[np.ix_(long, long)] / np.outer(lengths[long], lengths[long])
        direction = np.full(long.sum(), 1 / long.sum())
        direction /= math.sqrt(direction @ cosines @ direction)
        for _ in range(max_iter):
            reached = np.clip(cosines @ direction, -1, 1)
            angles = np.arccos(reached)
            pulls = np.where(angles < tol, 0, angles / np.where(angles < tol, 1, np.sin(angles)))
            step = (pulls - (pulls @ reached) * direction) / len(direction)
            length = math.sqrt(max(0.0, step @ cosines @ step))
            if length < tol:
                break
            direction = math.cos(length) * direction + math.sin(length) / length * step
            direction /= math.sqrt(direction @ cosines @ direction)
        found = np.zeros(len(sources))
        found[long] = direction * lengths.mean() / lengths[long]
        return list(found)

    return grouped_span_pass(sources, None, mean)


def karcher_of_vectors(sources: Sequence[Floats], *, max_iter: int = 10) -> Doubles:
    """The mean on the sphere by float64 vectors alone: no Gram matrix, no coefficients."""
    vectors = [source.astype(np.float64) for source in sources]
    lengths = [float(np.linalg.norm(vector)) for vector in vectors]
    units = [vector / length for vector, length in zip(vectors, lengths, strict=True)]
    mean: Doubles = np.mean(units, axis=0)
    mean = mean / np.linalg.norm(mean)
    for _ in range(max_iter):
        step = np.zeros_like(mean)
        for unit in units:
            cosine = min(1.0, float(mean @ unit))
            across = unit - cosine * mean
            length = float(np.linalg.norm(across))
            if length > 1e-9:
                step += math.acos(cosine) / len(units) * across / length
        length = float(np.linalg.norm(step))
        if length < 1e-5:
            break
        mean = math.cos(length) * mean + math.sin(length) / length * step
    return mean * float(np.mean(lengths))
