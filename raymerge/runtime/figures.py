"""From a delta rule to the figures of the fused pass: thresholds, selectors, shares per source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from raymerge.kernels.constants import HIGH_BINS, LOW_COLUMNS
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
from raymerge.kernels.threshold import NOTHING, Threshold, high_bin, kept_count, threshold
from raymerge.kernels.tile import Counts, DeltaPass, Selectors, Tile
from raymerge.methods.rules import DeltaRule, KeepDrawn, KeepLargest, Rescale
from raymerge.runtime.inputs import Inputs

SMALLEST_DENSITY = 2.0**-32
"""The smallest probability a 32-bit word can be drawn with."""
SMALLEST_NORM = 1e-7
"""mergekit's limit: a smaller L1 norm is not scaled up to."""


class Counting(Protocol):
    """Adds a tile to `counts`, and raises for a NaN or an Inf in it."""

    def count_high(self, tile: Tile, counts: Counts) -> None:
        """Upper magnitude bits."""

    def count_low(self, tile: Tile, bins: Sequence[int], counts: Counts) -> None:
        """Lower bits inside each source's bin, and what lies above it."""


def find_thresholds(
    keep: KeepLargest, inputs: Inputs, counting: Counting
) -> list[Threshold | None]:
    """The exact threshold of each source over one tensor; None keeps everything.

    A sample names the bin that holds the threshold and one sweep counts inside it. Where the counts
    prove the sample wrong two more sweeps find it: the result is the same.
    """
    wanted = [
        kept_count(density, inputs.elements) if density < 1 else 0 for density in keep.density
    ]
    for tiles in (inputs.sample, inputs.sweep):
        bins = _likely_bins(tiles(), keep, counting)
        low = np.zeros((len(wanted), LOW_COLUMNS), np.int64)
        for tile in inputs.sweep():
            counting.count_low(tile, bins, low)
        found = [
            threshold(row, bin_, k) if k else None
            for row, bin_, k in zip(low, bins, wanted, strict=True)
        ]
        if all(found[i] is not None for i, k in enumerate(wanted) if k):
            break
    return [
        NOTHING if density <= 0 else exact
        for density, exact in zip(keep.density, found, strict=True)
    ]


def _likely_bins(tiles: Iterator[Tile], keep: KeepLargest, counting: Counting) -> list[int]:
    """The high bin of each density's threshold over these tiles; -1 where nothing is trimmed."""
    high = np.zeros((len(keep.density), HIGH_BINS), np.int64)
    counted = 0
    for tile in tiles:
        counting.count_high(tile, high)
        counted += tile.count
    return [
        high_bin(row, kept_count(density, counted)) if 0 < density < 1 and counted else -1
        for row, density in zip(high, keep.density, strict=True)
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


def has_ties(selectors: Selectors) -> bool:
    """Whether some of the entries at a threshold go, so that `SEEN` counts from tile to tile."""
    return bool((selectors[:, KEPT] < selectors[:, TIED]).any())


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
