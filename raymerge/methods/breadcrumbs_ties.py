"""Model Breadcrumbs with TIES sign election.

Davari, Belilovsky. Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks. ECCV
2024, arXiv:2312.06795. Election: arXiv:2306.01708.
"""

from __future__ import annotations

from typing import Literal

from raymerge.methods.registry import Density, Fraction, PerSource, delta_method
from raymerge.methods.rules import DeltaRule, KeepBand, Rescale


@delta_method("breadcrumbs_ties", paper="arXiv:2312.06795")
def breadcrumbs_ties(
    *,
    weight: PerSource[float],
    density: PerSource[Density] = (1.0,),
    gamma: PerSource[Fraction] = (0.01,),
    normalize: bool = False,
    rescale: bool | Literal["l1"] = False,
    lambda_: float = 1.0,
) -> DeltaRule:
    """Drop the largest and the smallest entries of each task vector, elect a sign, fuse.

    Of the n entries of each tensor `int(gamma * n)` with the largest magnitudes are dropped as
    outliers, the next `int(density * n)` stay, and the smallest rest is dropped as noise.

    Args:
        weight: Share of each source in the vote and in the sum.
        density: Fraction of each task vector to keep; 1 keeps all, outliers too.
        gamma: Fraction of each task vector to drop as outliers; less where density leaves less.
        normalize: Divide by the weights of the sources that agree; else add them up.
        rescale: `l1` (or true) scales what is kept so that its L1 norm is that of the whole.
        lambda_: Factor of the merged delta.

    Differs from the paper: sources have weights, and the outliers' share is given by itself. As in
    mergekit a tensor with `density * n` below 1 keeps nothing. Differs from mergekit: of entries
    tied at either end of the band an evenly spread set is kept, there whichever an unstable sort
    puts first.
    """
    return DeltaRule(
        keep=KeepBand(density=tuple(density), gamma=tuple(gamma)),
        weight=tuple(weight),
        rescale=Rescale.L1 if rescale else Rescale.NONE,
        elect=True,
        normalize=normalize,
        scale=lambda_,
    )
