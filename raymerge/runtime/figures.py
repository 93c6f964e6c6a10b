"""From a delta rule to the figures of the fused pass: thresholds, selectors, shares per source."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from raymerge.kernels.delta import (
    BITS,
    KEEP_BAND,
    KEEP_DRAWN,
    KEEP_LARGEST,
    KEEP_RANKED,
    KEPT,
    KEY,
    LIMIT,
    MODE,
    SEEN,
    SELECTOR_COLUMNS,
    TIED,
    UPPER,
    UPPER_KEPT,
    UPPER_TIED,
)
from raymerge.kernels.philox import draw_key, draw_limit
from raymerge.kernels.rows import Rows, keep_probabilities
from raymerge.kernels.threshold import NOTHING, Threshold, band_ranks, kept_count
from raymerge.kernels.tile import DeltaPass, Figure, Ranked, Selectors
from raymerge.methods.rules import (
    DeltaRule,
    KeepBand,
    KeepDrawn,
    KeepLargest,
    KeepRanked,
    Rescale,
    is_ranked,
)
from raymerge.runtime.selection import Counting, Swept, select

SMALLEST_DENSITY = 2.0**-32
"""The smallest probability a 32-bit word can be drawn with."""
HIGHEST = 0xFFFFFFFF
"""No magnitude reaches this: a band without an upper end."""
SMALLEST_NORM = 1e-7
"""mergekit's limit: a smaller L1 norm is not scaled up to."""


def trimmed(
    keep: KeepLargest | KeepBand, found: Sequence[Threshold | None], elements: int
) -> Selectors:
    """Selectors by what `find_thresholds` found in a tensor of so many elements."""
    if isinstance(keep, KeepBand):
        return banded(keep, found, elements)
    exact = [
        NOTHING if density <= 0 else one for density, one in zip(keep.density, found, strict=True)
    ]
    return largest(exact, [0] * len(exact))


def find_thresholds(
    keep: KeepLargest | KeepBand, inputs: Swept, counting: Counting
) -> list[Threshold | None]:
    """The exact thresholds of each source over one tensor, None where it needs none."""

    def ranks(entries: int, _zeros: int) -> list[int]:
        return _wanted(keep, entries)

    return select(inputs, counting, ranks, kinds=len(keep.density))


def _wanted(keep: KeepLargest | KeepBand, size: int) -> list[int]:
    """The ranks, from the largest of `size` magnitudes, that are thresholds; 0 where none is.

    A source has one, or in a band two: how many are dropped at the top, and how many do not reach
    the bottom.
    """
    if isinstance(keep, KeepLargest):
        return [kept_count(density, size) if density < 1 else 0 for density in keep.density]
    wanted = []
    for density, gamma in zip(keep.density, keep.gamma, strict=True):
        first, last = band_ranks(density, gamma, size) if 0 < density < 1 else (0, 0)
        wanted += [first, last] if first < last < size else [first if first < last else 0, 0]
    return wanted


def largest(thresholds: Sequence[Threshold | None], ties_before: Sequence[int]) -> Selectors:
    """Selectors that keep what passes each threshold; None keeps everything."""
    selectors = np.zeros((len(thresholds), SELECTOR_COLUMNS), np.uint64)
    for row, found, before in zip(selectors, thresholds, ties_before, strict=True):
        if found is not None:
            row[MODE] = KEEP_LARGEST
            row[BITS], row[KEPT], row[TIED] = found.bits, found.kept, found.tied
            row[SEEN] = before * found.kept % found.tied if found.tied else 0
    return selectors


def banded(keep: KeepBand, thresholds: Sequence[Threshold | None], size: int) -> Selectors:
    """Selectors that keep what lies between two thresholds of each source."""
    selectors = np.zeros((len(keep.density), SELECTOR_COLUMNS), np.uint64)
    for i, (row, density, gamma) in enumerate(
        zip(selectors, keep.density, keep.gamma, strict=True)
    ):
        if density >= 1:
            continue
        row[MODE], row[UPPER] = KEEP_BAND, HIGHEST
        first, last = band_ranks(density, gamma, size)
        upper, lower = thresholds[2 * i : 2 * i + 2]
        if first == last:
            row[BITS] = NOTHING.bits
            continue
        if lower is not None:
            row[BITS], row[KEPT], row[TIED] = lower.bits, lower.kept, lower.tied
        if upper is not None:
            # Of the entries tied with the last one dropped, the others stay.
            row[UPPER] = upper.bits
            row[UPPER_KEPT], row[UPPER_TIED] = upper.tied - upper.kept, upper.tied
        if lower is not None and upper is not None and lower.bits == upper.bits:
            row[KEPT] = lower.kept - upper.kept
            row[UPPER_KEPT] = row[UPPER_TIED] = 0
    return selectors


def has_ties(selectors: Selectors) -> bool:
    """Whether some of the entries at a threshold go, so that ties are counted from tile to tile."""
    lower, upper = (KEPT, TIED), (UPPER_KEPT, UPPER_TIED)
    return any((selectors[:, kept] < selectors[:, tied]).any() for kept, tied in (lower, upper))


def carried_among(figures: Sequence[Figure]) -> Selectors | None:
    """The selectors among the figures of a free method, where they count ties."""
    for one in figures:
        if not isinstance(one, np.ndarray) or one.dtype != np.uint64:
            continue
        words = one.view(np.uint64)
        if words.shape[1:] == (SELECTOR_COLUMNS,) and has_ties(words):
            return words
    return None


def drawn(keep: KeepDrawn, *, seed: int, labels: Sequence[str], tensor: str) -> Selectors:
    """Selectors that keep what is drawn for each source."""
    selectors = np.zeros((len(labels), SELECTOR_COLUMNS), np.uint64)
    for row, density, label in zip(selectors, keep.density, labels, strict=True):
        row[MODE] = KEEP_DRAWN
        row[KEY] = draw_key(seed, label=label, tensor=tensor)
        row[LIMIT] = draw_limit(density)
    return selectors


def drawn_by_rank(keep: KeepRanked, *, seed: int, labels: Sequence[str], tensor: str) -> Selectors:
    """Selectors that draw each source's entries by rank, where there is anything to draw."""
    selectors = drawn(KeepDrawn(density=keep.density), seed=seed, labels=labels, tensor=tensor)
    for row, density in zip(selectors, keep.density, strict=True):
        if is_ranked(density):
            row[MODE] = KEEP_RANKED
    return selectors


def by_rank(keep: KeepRanked, rescale: Rescale, rows: Rows) -> Ranked:
    """What an entry's rank decides, for each source."""
    shape = len(keep.density), rows.length
    limits, factors = np.zeros(shape, np.uint64), np.ones(shape, np.float32)
    for i, (density, epsilon) in enumerate(zip(keep.density, keep.epsilon, strict=True)):
        if is_ranked(density):
            probability = keep_probabilities(density, epsilon, rows.length)
            limits[i] = probability * 2**32
            if rescale is Rescale.DENSITY:
                drawable = limits[i] > 0
                factors[i, drawable] = 1 / probability[drawable]
    return Ranked(rows=rows, limits=limits, factors=factors)


def delta_pass(
    rule: DeltaRule,
    selectors: Selectors,
    norms: npt.NDArray[np.float64] | None,
    ranked: Ranked | None = None,
) -> DeltaPass:
    """The figures of the pass.

    Args:
        rule: The method's rule.
        selectors: How each source's entries are kept.
        norms: L1 norms, whole and kept of each source in turn, where the rule rescales by them.
        ranked: What ranks decide, where entries are drawn by them.
    """
    return DeltaPass(
        selectors=selectors,
        # Worked out in float64 and rounded once.
        shares=(np.array(rule.weight) * _rescaling(rule, norms)).astype(np.float32),
        weights=np.array(rule.weight, np.float32),
        elect=rule.elect,
        normalize=rule.normalize,
        scale=np.float32(rule.scale),
        ranked=ranked,
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
