"""DELLA: drop entries of the task vectors at random, the small ones more often, and elect a sign.

Deep, Bhardwaj, Poria. DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based
Sampling. 2024, arXiv:2406.11617.
"""

from __future__ import annotations

from typing import Literal

from raymerge.methods.registry import Density, Fraction, PerSource, delta_method
from raymerge.methods.rules import DeltaRule, KeepRanked, drawn_rescale


@delta_method("della", paper="arXiv:2406.11617")
def della(
    *,
    weight: PerSource[float],
    density: PerSource[Density] = (1.0,),
    epsilon: PerSource[Fraction] = (0.15,),
    normalize: bool = True,
    rescale: bool | Literal["l1"] = True,
    lambda_: float = 1.0,
) -> DeltaRule:
    """Drop small entries of each row more often than large ones, rescale, elect a sign, average.

    Within a row the probability to stay rises evenly with the rank of the magnitude, from
    `density - epsilon` for the smallest entry to `density + epsilon` for the largest. Rows run
    along the second dimension, as in mergekit: the rows of a matrix, the input channels of a
    convolution; a vector is one row. A row of one entry stays with probability `density`.

    Args:
        weight: Share of each source in the vote and in the mean.
        density: Mean probability that an entry stays, 1 - p in the paper. 1 keeps all, whatever
            epsilon is.
        epsilon: How far the probability departs from density at the ends of a row.
        normalize: Divide by the weights of the sources that agree; else add them up.
        rescale: true divides what stays by its probability, so that the mean is unchanged; `l1`
            scales each task vector so that its L1 norm is unchanged; false does neither.
        lambda_: Factor of the merged delta.

    Raises:
        ValueError: `density - epsilon` is below 0, or `density + epsilon` above 1.

    Differs from mergekit: its `rescale: true` is what `l1` is here; ranks are exact, where it takes
    them in the tensors' dtype, so that in bfloat16 those above 256 are rounded; entries of equal
    magnitude rank in index order; rows of one entry are no error; and its draws depend on the order
    of the tensors and on the device, ours on seed, source label, tensor name and position alone.
    """
    return DeltaRule(
        keep=KeepRanked(density=tuple(density), epsilon=tuple(epsilon)),
        weight=tuple(weight),
        rescale=drawn_rescale(rescale),
        elect=True,
        normalize=normalize,
        scale=lambda_,
    )
