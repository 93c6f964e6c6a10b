"""Weighted average of checkpoints; with equal weights, a uniform model soup.

Wortsman, Ilharco, Gadre, Roelofs, Gontijo-Lopes, Morcos, Namkoong, Farhadi, Carmon, Kornblith,
Schmidt. Model soups: averaging weights of multiple fine-tuned models improves accuracy without
increasing inference time. ICML 2022, arXiv:2203.05482.
"""

from __future__ import annotations

from raymerge.methods.registry import Coefficients, Over, PerSource, span_method
from raymerge.methods.rules import check_divisors


@span_method("linear", paper="arXiv:2203.05482", over=Over.SOURCES)
def linear(*, weight: PerSource[float], normalize: bool = True) -> Coefficients:
    """Average the sources: `sum w_i x_i / sum w_i`.

    A base named in the recipe is one more source, as in mergekit, and needs a weight as any does.

    Args:
        weight: Share of each source. Negative shares are allowed.
        normalize: Divide by the sum of the weights.

    Raises:
        ValueError: The weights cancel and cannot be normalised.

    Differs from mergekit: each coefficient is divided by the sum first, in float64, and rounded to
    float32 once; there the float32 sum of products is divided. The two differ by at most 2e-7 of
    the largest product. Weights that cancel are refused; there they give NaN or Inf.
    """
    if not normalize:
        return list(weight)
    check_divisors(tuple(weight), every_subset=False)
    total = sum(weight)
    if total == 0:
        raise ValueError(
            "the weights are all 0, and `normalize: true` divides by their sum; give some source "
            "a weight"
        )
    return [share / total for share in weight]
