"""From a delta rule to the figures of the fused pass: thresholds, selectors, shares per source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from raymerge.kernels.delta import (
    BITS,
    KEEP_DRAWN,
    KEEP_LARGEST,
    KEPT,
    KEY,
    LIMIT,
    MODE,
    SEEN,
    SELECTOR_COLUMNS,
    TIED,
)
from raymerge.kernels.philox import draw_key, draw_limit
from raymerge.kernels.threshold import NOTHING, Threshold, kept_count
from raymerge.kernels.tile import DeltaPass, Selectors
from raymerge.methods.rules import DeltaRule, KeepDrawn, KeepLargest, Rescale
from raymerge.runtime.inputs import Inputs
from raymerge.runtime.selection import Counting, select

SMALLEST_DENSITY = 2.0**-32
"""The smallest probability a 32-bit word can be drawn with."""
SMALLEST_NORM = 1e-7
"""mergekit's limit: a smaller L1 norm is not scaled up to."""


def find_thresholds(
    keep: KeepLargest, inputs: Inputs, counting: Counting
) -> list[Threshold | None]:
    """The exact threshold of each source over one tensor; None keeps everything."""

    def ranks(entries: int, _zeros: int) -> list[int]:
        return [kept_count(density, entries) if density < 1 else 0 for density in keep.density]

    found = select(inputs, counting, ranks, kinds=len(keep.density))
    return [
        NOTHING if density <= 0 else exact
        for density, exact in zip(keep.density, found, strict=True)
    ]


def largest(thresholds: Sequence[Threshold | None], ties_before: Sequence[int]) -> Selectors:
    """Selectors that keep what passes each threshold; None keeps everything."""
    selectors = np.zeros((len(thresholds), SELECTOR_COLUMNS), np.uint64)
    for row, found, before in zip(selectors, thresholds, ties_before, strict=True):
        if found is not None:
            row[MODE] = KEEP_LARGEST
            row[BITS], row[KEPT], row[TIED] = found.bits, found.kept, found.tied
            row[SEEN] = before * found.kept % found.tied if found.tied else 0
    return selectors


def drawn(keep: KeepDrawn, *, seed: int, labels: Sequence[str], tensor: str) -> Selectors:
    """Selectors that keep what is drawn for each source."""
    selectors = np.zeros((len(labels), SELECTOR_COLUMNS), np.uint64)
    for row, density, label in zip(selectors, keep.density, labels, strict=True):
        row[MODE] = KEEP_DRAWN
        row[KEY] = draw_key(seed, label=label, tensor=tensor)
        row[LIMIT] = draw_limit(density)
    return selectors


def delta_pass(
    rule: DeltaRule, selectors: Selectors, norms: npt.NDArray[np.float64] | None
) -> DeltaPass:
    """The figures of the pass.

    Args:
        rule: The method's rule.
        selectors: How each source's entries are kept.
        norms: L1 norms, whole and kept of each source in turn, where the rule rescales by them.
    """
    return DeltaPass(
        selectors=selectors,
        # Worked out in float64 and rounded once.
        shares=(np.array(rule.weight) * _rescaling(rule, norms)).astype(np.float32),
        weights=np.array(rule.weight, np.float32),
        elect=rule.elect,
        normalize=rule.normalize,
        scale=np.float32(rule.scale),
    )


def _rescaling(rule: DeltaRule, norms: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64]:
    factors = np.ones(len(rule.weight))
    if rule.rescale is Rescale.DENSITY and isinstance(rule.keep, KeepDrawn):
        density = np.array(rule.keep.density)
        # Below this nothing can be drawn, and nothing is left to scale.
        np.divide(1.0, density, out=factors, where=density >= SMALLEST_DENSITY)
    elif rule.rescale is Rescale.L1 and norms is not None:
        whole, kept = norms[::2], norms[1::2]
        # A NaN or Inf that the recipe lets pass leaves nothing to measure by.
        measurable = (whole >= SMALLEST_NORM) & (kept >= SMALLEST_NORM) & np.isfinite(whole)
        np.divide(whole, kept, out=factors, where=measurable)
    return factors
