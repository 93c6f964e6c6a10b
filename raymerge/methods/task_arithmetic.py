"""Task arithmetic: add, scale and negate task vectors.

Ilharco, Ribeiro, Wortsman, Gururangan, Schmidt, Hajishirzi, Farhadi. Editing Models with Task
Arithmetic. ICLR 2023, arXiv:2212.04089.
"""

from __future__ import annotations

from raymerge.methods.registry import Coefficients, Over, PerSource, span_method
from raymerge.methods.rules import check_divisors


@span_method("task_arithmetic", paper="arXiv:2212.04089", over=Over.DELTAS)
def task_arithmetic(
    *, weight: PerSource[float], normalize: bool = False, lambda_: float = 1.0
) -> Coefficients:
    """Add weighted task vectors to the base: `base + lambda * sum w_i (x_i - base)`.

    A negative weight subtracts what a fine-tune learnt.

    Args:
        weight: Factor of each task vector.
        normalize: Divide by the sum of the weights.
        lambda_: Factor of the merged delta, applied after `normalize`.

    Raises:
        ValueError: The weights cancel and cannot be normalised.

    Differs from the paper: one factor per source besides the common one. All weights 0 give the
    base, normalised or not.
    """
    if not normalize or not any(weight):
        return [lambda_ * share for share in weight]
    check_divisors(tuple(weight), every_subset=False)
    total = sum(weight)
    return [lambda_ * share / total for share in weight]
