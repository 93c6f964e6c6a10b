"""Model Stock: how far from the base to go, by the angles between fine-tunes.

Jang, Yun, Han. Model Stock: All We Need Is Just a Few Fine-Tuned Models. ECCV 2024,
arXiv:2403.19522.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from raymerge.kernels.groups import Group
from raymerge.methods.registry import Coefficients, Gram, Over, span_method

SMALLEST_DIVISOR = 1e-6
"""mergekit's limit: below it the task vectors sum to zero, and the base comes out."""


def _group(knobs: Mapping[str, Any]) -> Group:
    return Group.ROW if knobs["filter_wise"] else Group.TENSOR


@span_method("model_stock", paper="arXiv:2403.19522", over=Over.DELTAS, min_sources=2, group=_group)
def model_stock(
    gram: Gram,
    *,
    filter_wise: bool = False,  # noqa: ARG001 - `_group` reads it
) -> Coefficients:
    """Go from the base towards the mean of the fine-tunes: `base + t * mean(x_i - base)`.

    The ratio is `t = N c / (1 + (N - 1) c)` for N fine-tunes, where c is the mean cosine between
    their task vectors: 1 where all agree, 0 where they are at right angles. Where they oppose each
    other t is negative, and where they cancel the base comes out.

    Args:
        gram: Inner products of the task vectors, `(..., N, N)`.
        filter_wise: One ratio for each last-dim row; else one for the tensor. A 1-D tensor is one
            row.

    Differs from the paper: there all pairs have one angle; here, as in mergekit, the mean of their
    cosines stands for it. Differs from mergekit: cosines of short task vectors are their true ones;
    there the product of two lengths counts as 1e-6 if it is smaller, which takes fine-tunes that
    moved a tensor by 1e-3 or less back to the base. A task vector of zero has cosine 0, as there.
    """
    count = gram.shape[-1]
    cosines = [_cosine(gram, i, j) for i, j in combinations(range(count), 2)]
    cosine = sum(cosines[1:], cosines[0]) / len(cosines)
    divisor = 1 + (count - 1) * cosine
    usable = np.abs(divisor) >= SMALLEST_DIVISOR
    ratio = np.where(usable, count * cosine / np.where(usable, divisor, 1.0), 0.0)
    return [ratio / count] * count


def _cosine(gram: Gram, i: int, j: int) -> npt.NDArray[np.float64]:
    lengths = np.sqrt(gram[..., i, i] * gram[..., j, j])
    # NaN or Inf, where the recipe lets it pass, has no direction, and neither has zero.
    known = np.isfinite(lengths) & (lengths > 0)
    cosine = gram[..., i, j] / np.where(known, lengths, 1.0)
    return np.where(known, np.clip(cosine, -1.0, 1.0), 0.0)
