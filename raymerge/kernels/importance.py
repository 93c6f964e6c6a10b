"""Arcee fusion's importance: how far an entry moved times how far its row did; histogram and fuse.

A row is the last dimension; a tile may begin and end inside one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raymerge.kernels.constants import BLOCK, HIGH_BINS, STRIPES
from raymerge.kernels.floats import narrow
from raymerge.kernels.fusion import INPUTS, read_pair
from raymerge.kernels.histogram import add_high, add_low, fold_stripes
from raymerge.kernels.jit import kernel, part


@part
def find_importance(
    values: Any, width: int, first: int, length: int, factors: Any, importance: Any
) -> None:
    """Write `|x - b|` times its row's factor; the source in `values` becomes the delta."""
    base, delta = values[0], values[1]
    for k in range(width):
        delta[k] -= base[k]
    begin = 0
    while begin < width:
        row, position = divmod(first + begin, length)
        end = min(width, begin + length - position)
        factor = factors[row]
        moved, weighed = delta[begin:end], importance[begin:end]
        for k in range(end - begin):
            weighed[k] = abs(moved[k]) * factor
        begin = end


@kernel("int64(int64[::1], int64[::1], int64, int64, int64, float32[::1], int64[:, ::1])")
def importance_high(
    addresses: Any, codes: Any, first: int, count: int, length: int, factors: Any, counts: Any
) -> int:
    """Add the upper 15 bits of each entry's importance to `counts`, `(1, HIGH_BINS)`.

    Returns the first input that holds a NaN or an Inf, or -1.
    """
    values = np.empty((INPUTS, BLOCK), np.float32)
    importance = np.empty(BLOCK, np.float32)
    stripes = np.zeros((HIGH_BINS, STRIPES), np.uint32)
    bins = np.empty(BLOCK, np.uint16)
    bad = INPUTS
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        bad = min(bad, read_pair(addresses, codes, start, width, values))
        find_importance(values, width, first + start, length, factors, importance)
        add_high(importance, width, bins, stripes)
    fold_stripes(stripes, counts[0])
    return bad if bad < INPUTS else -1


@kernel(
    "int64(int64[::1], int64[::1], int64, int64, int64, float32[::1], int64[::1], int64[:, ::1])"
)
def importance_low(
    addresses: Any,
    codes: Any,
    first: int,
    count: int,
    length: int,
    factors: Any,
    bins: Any,
    counts: Any,
) -> int:
    """Add the lower 16 bits of the importances in each high bin to its row of `counts`.

    `counts` is `(bins, LOW_COLUMNS)`, and a bin of -1 is left out. Returns the first input that
    holds a NaN or an Inf, or -1.
    """
    values = np.empty((INPUTS, BLOCK), np.float32)
    importance = np.empty(BLOCK, np.float32)
    words = np.empty(BLOCK, np.uint32)
    bad = INPUTS
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        bad = min(bad, read_pair(addresses, codes, start, width, values))
        find_importance(values, width, first + start, length, factors, importance)
        for row in range(bins.shape[0]):
            if bins[row] >= 0:
                add_low(importance, width, bins[row], words, counts[row])
    return bad if bad < INPUTS else -1


@kernel("int64(int64[::1], int64[::1], int64, int64, int64, float32[::1], float32, int64, int64)")
def fusion_tile(
    addresses: Any,
    codes: Any,
    first: int,
    count: int,
    length: int,
    factors: Any,
    threshold: float,
    out_address: int,
    out_code: int,
) -> int:
    """Write the base, plus the delta where the importance reaches the threshold.

    Args:
        addresses: Address of each input's tile: the base, the source.
        codes: Element type of each input.
        first: Flat index of the tile's first element.
        count: Elements of the tile.
        length: Entries of a row.
        factors: float32 divergence of each row.
        threshold: float32 importance from which an entry is taken.
        out_address: Where the tile of the output goes.
        out_code: Element type of the output.

    Returns:
        -1; or the first input that holds a NaN or an Inf; or 2, where all are finite and an output
        is not.
    """
    values = np.empty((INPUTS, BLOCK), np.float32)
    importance = np.empty(BLOCK, np.float32)
    bad = INPUTS + 1
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        found = read_pair(addresses, codes, start, width, values)
        bad = min(bad, found) if found < INPUTS else bad
        find_importance(values, width, first + start, length, factors, importance)
        base, delta = values[0], values[1]
        for k in range(width):
            taken = importance[k] >= threshold
            importance[k] = base[k] + (delta[k] if taken else np.float32(0.0))
        if narrow(importance, width, out_address, out_code, start):
            bad = min(bad, INPUTS)
    return bad if bad <= INPUTS else -1
