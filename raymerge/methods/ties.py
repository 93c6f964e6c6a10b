"""TIES-merging: trim, elect a sign, average what agrees.

Yadav, Tam, Choshen, Raffel, Bansal. TIES-Merging: Resolving Interference When Merging Models.
NeurIPS 2023, arXiv:2306.01708.
"""

from __future__ import annotations

from typing import Literal

from raymerge.methods.registry import Density, PerSource, delta_method
from raymerge.methods.rules import DeltaRule, KeepLargest, Rescale, Scope


@delta_method("ties", paper="arXiv:2306.01708")
def ties(
    *,
    weight: PerSource[float],
    density: PerSource[Density] = (1.0,),
    normalize: bool = True,
    rescale: bool | Literal["l1"] = False,
    lambda_: float = 1.0,
    trim: Literal["tensor", "model"] = "tensor",
) -> DeltaRule:
    """Merge task vectors entry by entry, keeping only those that agree on the sign.

    Trim (3.1 of the paper): each task vector keeps its largest entries by magnitude. Elect: at
    every entry the sign with the greater total mass wins. Disjoint merge: the result is the
    weighted mean of the entries that carry that sign. An entry trimmed away has no vote and no
    share.

    Args:
        weight: Share of each source in the vote and in the mean.
        density: Fraction of each task vector to keep.
        normalize: Divide by the weights of the sources that agree; else add them up.
        rescale: `l1` (or true) scales what is kept so that its L1 norm is that of the whole.
        lambda_: Factor of the merged delta.
        trim: What `density` is a fraction of: each tensor, as in mergekit, or the whole model, as
            in the paper.

    Differs from the paper: sources have weights (there, all count alike), a tied vote elects `+`
    (mergekit's rule; there the majority sign of the whole vector), and `trim: tensor` is the
    default. Exactly `max(1, int(density * n))` entries are kept, where the authors' code keeps
    every entry tied with the last. Differs from mergekit: of entries tied at the threshold an
    evenly spread set is kept, there whichever an unstable sort puts first.
    """
    return DeltaRule(
        keep=KeepLargest(density=tuple(density), scope=Scope(trim)),
        weight=tuple(weight),
        rescale=Rescale.L1 if rescale else Rescale.NONE,
        elect=True,
        normalize=normalize,
        scale=lambda_,
    )
