"""What a selection decides, and how it is read off the counts of `select.py`. No compiled code.

Of m entries tied at the threshold q are kept, evenly spread: the j-th in index order iff
`(j + 1) * q // m > j * q // m`. Keeping the lowest indices would starve the end of every tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raymerge.kernels.constants import HIGH_BINS, LOW_BINS
from raymerge.kernels.tile import Counts


@dataclass(frozen=True, slots=True)
class Threshold:
    """Which entries stay: magnitudes whose bits exceed `bits`, and `kept` of `tied` equal ones."""

    bits: int
    kept: int
    tied: int


NOTHING = Threshold(bits=0xFFFFFFFF, kept=0, tied=0)
"""No magnitude exceeds this: density 0."""


def kept_count(density: float, size: int) -> int:
    """mergekit's count: `max(1, int(density * size))`, and 0 at density 0 or for nothing."""
    if density <= 0 or size == 0:
        return 0
    return min(size, max(1, int(density * size)))


def band_ranks(density: float, gamma: float, size: int) -> tuple[int, int]:
    """mergekit's band: `(first, last)`, the ranks from the largest magnitude of what stays.

    `int(density * size)` entries stay between `int(gamma * size)` larger ones and the smaller rest;
    where both do not fit, fewer of the larger ones are dropped and none of the smaller.
    """
    target = int(density * size)
    bottom = max(0, size - target - int(gamma * size))
    return size - bottom - target, size - bottom


def high_bin(high: Counts, keep: int) -> int:
    """The upper 15 bits of the `keep`-th largest magnitude; `keep` is at least 1."""
    from_top = np.cumsum(high[::-1])
    return HIGH_BINS - 1 - int(np.searchsorted(from_top, keep))


def threshold(low: Counts, bin_: int, keep: int) -> Threshold | None:
    """The exact threshold, or None if the `keep`-th largest magnitude is not in the bin.

    Args:
        low: What `count_low` counted for one source, `(LOW_COLUMNS,)`.
        bin_: The high bin it was counted for.
        keep: Entries to keep, at least 1.
    """
    above = int(low[LOW_BINS])
    from_top = np.cumsum(low[LOW_BINS - 1 :: -1])
    if not above < keep <= above + int(from_top[-1]):
        return None
    step = int(np.searchsorted(from_top, keep - above))
    bottom = LOW_BINS - 1 - step
    tied = int(low[bottom])
    kept = keep - above - (int(from_top[step]) - tied)
    return Threshold(bits=bin_ << 16 | bottom, kept=kept, tied=tied)
