"""DARE: drop entries of the task vectors at random and rescale the rest.

Yu, Yu, Yu, Huang, Li. Language Models are Super Mario: Absorbing Abilities from Homologous Models
as a Free Lunch. ICML 2024, arXiv:2311.03099.
"""

from __future__ import annotations

from typing import Literal

from raymerge.methods.registry import Density, PerSource, delta_method
from raymerge.methods.rules import DeltaRule, KeepDrawn, drawn_rescale


@delta_method("dare_linear", paper="arXiv:2311.03099")
def dare_linear(
    *,
    weight: PerSource[float],
    density: PerSource[Density] = (1.0,),
    normalize: bool = False,
    rescale: bool | Literal["l1"] = True,
    lambda_: float = 1.0,
) -> DeltaRule:
    """Drop entries of each task vector at random, rescale the rest, add them up.

    Args:
        weight: Share of each source in the sum.
        density: Probability that an entry stays, 1 - p in the paper.
        normalize: Divide by the sum of the weights.
        rescale: true divides what stays by its density, so that the mean is unchanged; `l1` scales
            each task vector so that its L1 norm is unchanged; false does neither.
        lambda_: Factor of the merged delta.

    Differs from mergekit: its `rescale: true` is what `l1` is here, and its
    draws depend on the order of the tensors and on the device; ours on seed, source label, tensor
    name and position alone.
    """
    return DeltaRule(
        keep=KeepDrawn(density=tuple(density)),
        weight=tuple(weight),
        rescale=drawn_rescale(rescale),
        elect=False,
        normalize=normalize,
        scale=lambda_,
    )
