"""Barycentric interpolation on a hypersphere, of any number of checkpoints.

mergekit's method; no paper defines it. Its tangent step adds nothing: the weighted directions are
projected onto the tangent space at their own mean, where they sum to zero.
"""

from __future__ import annotations

import math
from typing import Annotated

from raymerge.methods.registry import Coefficients, Gram, Over, PerSource, Range, span_method
from raymerge.methods.rules import check_divisors

ROUNDING = 2.0**-20
"""A mean direction shorter than a millionth of what it is made of points where the rounding of
float32 entries does."""


@span_method("multislerp", paper="mergekit", over=Over.DELTAS_IF_BASE)
def multislerp(
    gram: Gram,
    *,
    weight: PerSource[float],
    normalize_weights: bool = True,
    eps: Annotated[float, Range(0.0, 1.0)] = 1e-8,
) -> Coefficients:
    """Take the mean direction of all sources, at their mean length.

    The direction is that of `sum w_i x_i / (|x_i| + eps)`, the length `sum w_i |x_i|`. With a base
    this is done to the task vectors and added to it. One source is itself, whatever its weight.
    Where two sources cancel, this is the straight line `w_1 x_1 + w_2 x_2`.

    Args:
        gram: Inner products of the sources, or of their task vectors.
        weight: Share of each source.
        normalize_weights: Divide the weights by their sum.
        eps: Added to lengths before dividing by them; a shorter mean direction is none.

    Raises:
        ValueError: Three or more sources cancel, or the weights do.

    Differs from mergekit: sources cancel where their mean direction is shorter than a millionth,
    too, for what is left then is float32's rounding. Three or more sources that are all zero, as
    the task vectors of a frozen tensor are, give zero; there they are refused. Weights that cancel
    are refused; there they give NaN or Inf.
    """
    count = len(weight)
    if count == 1:
        return [1.0]
    shares = _normalised(weight) if normalize_weights else list(weight)
    lengths = [math.sqrt(gram[i, i]) for i in range(count)]
    if not any(lengths) or not all(map(math.isfinite, lengths)):
        return shares
    parts = [
        w / (length + eps) if length else 0.0 for w, length in zip(shares, lengths, strict=True)
    ]
    squared = math.fsum(
        a * b * product
        for a, row in zip(parts, gram.tolist(), strict=True)
        for b, product in zip(parts, row, strict=True)
    )
    mean = math.sqrt(max(0.0, squared))
    if mean <= max(eps, ROUNDING * sum(map(abs, shares))):
        if count == 2:  # noqa: PLR2004 - a pair
            return shares
        raise ValueError(
            f"the weighted directions of {count} sources cancel: their mean has length {mean:.3g}, "
            "so there is no direction to take. Change a weight, leave a source out, or merge it "
            "with `linear`"
        )
    mean_length = math.fsum(w * length for w, length in zip(shares, lengths, strict=True))
    return [mean_length * part / mean for part in parts]


def _normalised(weight: PerSource[float]) -> list[float]:
    check_divisors(tuple(weight), every_subset=False)
    total = sum(weight)
    if total == 0:
        raise ValueError(
            "the weights are all 0, and `normalize_weights: true` divides by their sum; give some "
            "source a weight"
        )
    return [share / total for share in weight]
