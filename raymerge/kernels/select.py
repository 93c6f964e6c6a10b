"""Exact selection of the k largest magnitudes, by histogram of the bit pattern. Nothing is sorted.

The bits of a non-negative float32 order as the number does. One pass counts their upper 15 bits,
which names the bin that holds the k-th largest; another counts the lower 16 bits inside that bin
and what lies above it. The second pass alone is enough where a sample names the bin: its counts
prove the bin right or wrong. Counts add up over tiles, tensors and workers, so a whole model is
selected from as exactly as one tensor. `threshold.py` reads the counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raymerge.kernels.constants import BLOCK, HIGH_BINS, STRIPES
from raymerge.kernels.floats import widen
from raymerge.kernels.histogram import add_high, add_low, fold_stripes
from raymerge.kernels.jit import kernel


@kernel("int64(int64[::1], int64[::1], int64, int64[:, ::1])")
def count_high(addresses: Any, codes: Any, count: int, counts: Any) -> int:
    """Add the upper 15 magnitude bits of each delta of a tile to `counts`, `(sources, HIGH_BINS)`.

    Input 0 is the base. Returns the first input that holds a NaN or an Inf, or -1.
    """
    base = np.empty(BLOCK, np.float32)
    values = np.empty(BLOCK, np.float32)
    stripes = np.zeros((addresses.shape[0] - 1, HIGH_BINS, STRIPES), np.uint32)
    bins = np.empty(BLOCK, np.uint16)
    bad = addresses.shape[0]
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        if widen(addresses[0], codes[0], start, width, base):
            bad = 0
        for i in range(1, addresses.shape[0]):
            if widen(addresses[i], codes[i], start, width, values):
                bad = min(bad, i)
            for k in range(width):
                values[k] -= base[k]
            add_high(values, width, bins, stripes[i - 1])
    for i in range(stripes.shape[0]):
        fold_stripes(stripes[i], counts[i])
    return bad if bad < addresses.shape[0] else -1


@kernel("int64(int64[::1], int64[::1], int64, int64[::1], int64[:, ::1])")
def count_low(addresses: Any, codes: Any, count: int, bins: Any, counts: Any) -> int:
    """Add the lower 16 bits of the entries in each source's high bin to `counts`.

    Args:
        addresses: Address of each input's tile; input 0 is the base.
        codes: Element type of each input.
        count: Elements of the tile.
        bins: High bins, the same number for each source, one source's after the other's; -1 counts
            nothing.
        counts: `(bins, LOW_COLUMNS)`; the last column counts what lies above the bin.

    Returns:
        The first input that holds a NaN or an Inf, or -1.
    """
    base = np.empty(BLOCK, np.float32)
    values = np.empty(BLOCK, np.float32)
    words = np.empty(BLOCK, np.uint32)
    each = bins.shape[0] // (addresses.shape[0] - 1)
    bad = addresses.shape[0]
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        if widen(addresses[0], codes[0], start, width, base):
            bad = 0
        for i in range(1, addresses.shape[0]):
            if widen(addresses[i], codes[i], start, width, values):
                bad = min(bad, i)
            for k in range(width):
                values[k] -= base[k]
            for row in range(each * (i - 1), each * i):
                if bins[row] >= 0:
                    add_low(values, width, bins[row], words, counts[row])
    return bad if bad < addresses.shape[0] else -1
