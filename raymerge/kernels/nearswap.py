"""The nearswap pass: swap an entry for the other source's as far as the two are near."""

from __future__ import annotations

from typing import Any

import numpy as np

from raymerge.kernels.constants import BLOCK
from raymerge.kernels.floats import narrow, widen
from raymerge.kernels.jit import kernel

SMALLEST_DISTANCE = 1e-6
"""mergekit's limit: nearer entries count as this far apart."""


@kernel("int64(int64[::1], int64[::1], int64, int64, float32, int64, int64)")
def nearswap_tile(
    addresses: Any, codes: Any, first: int, count: int, t: float, out_address: int, out_code: int
) -> int:
    """Write `w x + (1 - w) b`, where `w = min(1, t / max(|b - x|, SMALLEST_DISTANCE))`.

    Args:
        addresses: Address of each input's tile: the base b, the source x.
        codes: Element type of each input.
        first: Flat index of the tile's first element, which does not matter here.
        count: Elements of the tile.
        t: The distance up to which an entry is swapped whole, at least 0.
        out_address: Where the tile of the output goes.
        out_code: Element type of the output.

    Returns:
        -1; or the first input that holds a NaN or an Inf; or the number of inputs, where all are
        finite and an output is not.
    """
    base = np.empty(BLOCK, np.float32)
    values = np.empty(BLOCK, np.float32)
    one, nearest = np.float32(1.0), np.float32(SMALLEST_DISTANCE)
    inputs = addresses.shape[0]
    bad = inputs + 1
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        if widen(addresses[0], codes[0], start, width, base):
            bad = 0
        if widen(addresses[1], codes[1], start, width, values):
            bad = min(bad, 1)
        for k in range(width):
            distance = abs(base[k] - values[k])
            # In this order of arguments a NaN stays one.
            distance = max(distance, nearest)
            share = t / distance
            share = min(share, one)
            values[k] = share * values[k] + (one - share) * base[k]
        if narrow(values, width, out_address, out_code, start):
            bad = min(bad, inputs)
    return bad if bad <= inputs else -1
