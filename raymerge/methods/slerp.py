"""Spherical linear interpolation between two checkpoints.

Shoemake. Animating Rotation with Quaternion Curves. SIGGRAPH 1985. Applied to whole weight tensors
by the model-merging community; no paper defines that use.
"""

from __future__ import annotations

import math

from raymerge.methods.registry import Coefficients, Gram, Over, span_method

PARALLEL = 0.9995
"""mergekit's limit. Past this cosine the arc and the straight line differ by less than 1.3e-4 of
the norm, inside bfloat16's 3.9e-3."""
SMALLEST_NORM = 1e-8
"""mergekit's limit: a shorter vector has no direction."""


@span_method(
    "slerp",
    paper="Shoemake, SIGGRAPH 1985",
    over=Over.BASE_AND_SOURCES,
    min_sources=1,
    max_sources=1,
)
def slerp(gram: Gram, *, t: float) -> Coefficients:
    """Walk the great circle from the base (`t = 0`) to the other source (`t = 1`).

    The angle is between the flattened tensors, from their float64 inner products; the vectors
    themselves are not normalised, so magnitudes are blended along with the directions. Where the
    two are almost parallel or opposite, or one has no direction, this is a straight line.

    Args:
        gram: Inner products of base and source, `(2, 2)`.
        t: Position on the arc. Outside 0 to 1 it extrapolates.

    Differs from mergekit: a tensor that is zero in one source is blended in a straight line; there
    it counts as a right angle, which gives 0.707 of the other source at `t = 0.5`.
    """
    norms = math.sqrt(gram[0, 0]), math.sqrt(gram[1, 1])
    # NaN or Inf in a source, where the recipe lets it pass, leaves no direction either.
    if not all(SMALLEST_NORM < norm < math.inf for norm in norms):
        return [1 - t, t]
    cosine = max(-1.0, min(1.0, gram[0, 1] / (norms[0] * norms[1])))
    if abs(cosine) > PARALLEL:
        return [1 - t, t]
    angle = math.acos(cosine)
    return [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]
