"""Spherical interpolation of two checkpoints, or of two task vectors, by their weights.

mergekit's variant of SLERP; the arc is Shoemake's. Animating Rotation with Quaternion Curves.
SIGGRAPH 1985.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from raymerge.kernels.groups import Group
from raymerge.methods.registry import Coefficients, Gram, Over, PerSource, span_method

SMALLEST_SUM = 1e-6
"""mergekit's limit: weights that cancel this far give the middle of the arc."""
COLLINEAR = 2.0**-25
"""A cosine this close to 1 or -1 is 1 or -1 in float32: mergekit's test for a straight line."""


def _group(knobs: Mapping[str, Any]) -> Group:
    if knobs["nuslerp_flatten"]:
        return Group.TENSOR
    return Group.COLUMN if knobs["nuslerp_row_wise"] else Group.ROW


@span_method(
    "nuslerp",
    paper="mergekit",
    over=Over.DELTAS_IF_BASE,
    min_sources=2,
    max_sources=2,
    group=_group,
)
def nuslerp(
    gram: Gram,
    *,
    weight: PerSource[float],
    nuslerp_flatten: bool = True,  # noqa: ARG001 - `_group` reads it
    nuslerp_row_wise: bool = False,  # noqa: ARG001 - `_group` reads it
) -> Coefficients:
    """Walk the great circle from the first source to the second, as far as their weights say.

    The position is `t = w2 / (w1 + w2)`. Without a base the arc is between the sources; with one,
    between their task vectors, and the result is added to the base. Angles come from float64 inner
    products; the vectors themselves are not normalised. Where the two are parallel or opposite, or
    one is zero, this is a straight line.

    Args:
        gram: Inner products of the two, `(..., 2, 2)`.
        weight: Pull of each source; weights that cancel pull to the middle.
        nuslerp_flatten: One arc for the whole tensor; else one for each last-dim row.
        nuslerp_row_wise: Not flattened, one arc for each index of the other dims, along dim 0: for
            each column of a matrix.

    Differs from mergekit: a tensor, row or column that is zero in one source is blended in a
    straight line; there it counts as a right angle, which gives 0.707 of the other at `t = 0.5`.
    So are two that are opposite but for rounding; there that rounding is scaled up a thousandfold.
    Vectors shorter than 1e-7 have their true angle; there they approach a right one.
    """
    first, second = weight
    total = first + second
    t = second / total if abs(total) >= SMALLEST_SUM else 0.5
    lengths = np.sqrt(gram[..., 0, 0] * gram[..., 1, 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.clip(gram[..., 0, 1] / lengths, -1.0, 1.0)
    # NaN, from a zero vector or from a source where the recipe lets it pass, makes no arc either.
    arc = 1 - np.abs(cosine) > COLLINEAR
    angle = _each(math.acos, np.where(arc, cosine, 0.0))
    sine = _each(math.sin, angle)
    return [np.where(arc, _each(math.sin, share * angle) / sine, share) for share in (1 - t, t)]


def _each(function: Callable[[float], float], values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """A function of `math` on every entry. numpy's own differ from one processor to another."""
    array = np.asarray(values, np.float64)
    found = np.fromiter(map(function, array.ravel().tolist()), np.float64, array.size)
    return found.reshape(array.shape)
