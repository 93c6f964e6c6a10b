"""RAM's passes: count who shares an entry, then average what is shared and keep what is not."""

from __future__ import annotations

from typing import Any

import numpy as np

from raymerge.kernels.constants import BLOCK
from raymerge.kernels.floats import narrow, widen
from raymerge.kernels.jit import kernel


@kernel("int64(int64[::1], int64[::1], int64, int64, float32, int64[:, ::1])")
def ram_count(
    addresses: Any, codes: Any, first: int, count: int, epsilon: float, counts: Any
) -> int:
    """Add a tile to the number of each source's active entries, those with `|delta| > epsilon`.

    Args:
        addresses: Address of each input's tile; input 0 is the base.
        codes: Element type of each input.
        first: Flat index of the tile's first element, which does not matter here.
        count: Elements of the tile.
        epsilon: What a delta has to exceed to be active.
        counts: `(sources, 2)`: entries active in others too, entries active in this one alone.

    Returns:
        The first input that holds a NaN or an Inf, or -1.
    """
    inputs = addresses.shape[0]
    base = np.empty(BLOCK, np.float32)
    values = np.empty(BLOCK, np.float32)
    active = np.empty((inputs - 1, BLOCK), np.int32)
    number = np.empty(BLOCK, np.int32)
    bad = inputs
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        if widen(addresses[0], codes[0], start, width, base):
            bad = 0
        number[:width] = 0
        for i in range(inputs - 1):
            if widen(addresses[i + 1], codes[i + 1], start, width, values):
                bad = min(bad, i + 1)
            for k in range(width):
                active[i, k] = np.int32(abs(values[k] - base[k]) > epsilon)
                number[k] += active[i, k]
        for i in range(inputs - 1):
            shared, alone = np.int32(0), np.int32(0)
            for k in range(width):
                shared += active[i, k] & np.int32(number[k] > 1)
                alone += active[i, k] & np.int32(number[k] == 1)
            counts[i, 0] += shared
            counts[i, 1] += alone
    return bad if bad < inputs else -1


@kernel("int64(int64[::1], int64[::1], int64, int64, float32, float32[::1], int64, int64)")
def ram_tile(
    addresses: Any,
    codes: Any,
    first: int,
    count: int,
    epsilon: float,
    factors: Any,
    out_address: int,
    out_code: int,
) -> int:
    """Write the base plus, per entry, the mean of the active deltas; a lone one times its factor.

    Args:
        addresses: Address of each input's tile; input 0 is the base.
        codes: Element type of each input.
        first: Flat index of the tile's first element, which does not matter here.
        count: Elements of the tile.
        epsilon: What a delta has to exceed in magnitude to be active.
        factors: float32 factor per source of the entries that it alone has.
        out_address: Where the tile of the output goes.
        out_code: Element type of the output.

    Returns:
        -1; or the first input that holds a NaN or an Inf; or the number of inputs, where all are
        finite and an output is not.
    """
    inputs = addresses.shape[0]
    base = np.empty(BLOCK, np.float32)
    values = np.empty(BLOCK, np.float32)
    total = np.empty(BLOCK, np.float32)
    alone = np.empty(BLOCK, np.float32)
    number = np.empty(BLOCK, np.float32)
    zero, one = np.float32(0.0), np.float32(1.0)
    bad = inputs + 1
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        if widen(addresses[0], codes[0], start, width, base):
            bad = 0
        total[:width] = 0.0
        alone[:width] = 0.0
        number[:width] = 0.0
        for i in range(inputs - 1):
            if widen(addresses[i + 1], codes[i + 1], start, width, values):
                bad = min(bad, i + 1)
            factor = factors[i]
            for k in range(width):
                delta = values[k] - base[k]
                active = abs(delta) > epsilon
                delta = delta if active else zero
                total[k] += delta
                alone[k] += delta * factor
                number[k] += one if active else zero
        for k in range(width):
            mean = total[k] / number[k]
            total[k] = base[k] + (mean if number[k] > one else alone[k])
        if narrow(total, width, out_address, out_code, start):
            bad = min(bad, inputs)
    return bad if bad <= inputs else -1
