"""What `--stats` tells of the vectors that a tensor is merged from: lengths and angles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raymerge.methods.registry import Gram


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Of the inputs of a tensor, or of its task vectors where the merge is relative to a base."""

    norms: tuple[float, ...]
    cosines: tuple[float | None, ...]
    """Of every pair: of the first with each that follows, then of the second, and so on. None
    where a vector is zero, which has no direction."""


def statistics(gram: Gram) -> Statistics:
    """Norms and cosines, from the inner products of some vectors.

    >>> statistics(np.array([[4.0, 1.0], [1.0, 0.25]]))
    Statistics(norms=(2.0, 0.5), cosines=(1.0,))
    """
    norms = np.sqrt(np.diagonal(gram))
    cosines = (
        _cosine(float(gram[i, j]), float(norms[i] * norms[j]))
        for i, j in zip(*np.triu_indices(len(gram), 1), strict=True)
    )
    return Statistics(norms=tuple(norms.tolist()), cosines=tuple(cosines))


def _cosine(product: float, lengths: float) -> float | None:
    if lengths == 0:
        return None
    # Rounding may carry the cosine of equal directions past 1; a NaN stays one.
    return float(np.clip(product / lengths, -1.0, 1.0))
