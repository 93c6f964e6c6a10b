"""SCE's passes: histogram of the spread, energies of what is selected, then erase and fuse.

The spread of an entry is n times the population variance of its n task vectors, in float32 and
recipe order, taken from the first one so that equal entries have none:

    e_i = delta_i - delta_0,   m = (e_1 + e_2 + ...) / n,   spread = (e_0 - m)^2 + (e_1 - m)^2 + ...
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raymerge.kernels.constants import BLOCK, HIGH_BINS, STRIPES
from raymerge.kernels.delta import KEEP_ALL, MODE, keep_largest
from raymerge.kernels.floats import narrow, widen
from raymerge.kernels.histogram import add_high, add_low, fold_stripes
from raymerge.kernels.jit import kernel, part
from raymerge.kernels.reduce import REDUCTION_BLOCK, add_products, close_block


@part
def read_deltas(addresses: Any, codes: Any, start: int, width: int, base: Any, deltas: Any) -> Any:
    """Widen a block to base and task vectors; the first input with a NaN or Inf, or their count."""
    inputs = addresses.shape[0]
    bad = inputs
    if widen(addresses[0], codes[0], start, width, base):
        bad = 0
    for i in range(inputs - 1):
        delta = deltas[i]
        if widen(addresses[i + 1], codes[i + 1], start, width, delta):
            bad = min(bad, i + 1)
        for k in range(width):
            delta[k] -= base[k]
    return bad


@part
def find_spread(deltas: Any, width: int, mean: Any, spread: Any) -> None:
    """Write the spread of a block's entries; `mean` is scratch."""
    sources = deltas.shape[0]
    origin = deltas[0]
    number = np.float32(sources)
    mean[:width] = 0.0
    for i in range(1, sources):
        delta = deltas[i]
        for k in range(width):
            mean[k] += delta[k] - origin[k]
    for k in range(width):
        mean[k] /= number
    spread[:width] = 0.0
    for i in range(sources):
        delta = deltas[i]
        for k in range(width):
            apart = (delta[k] - origin[k]) - mean[k]
            spread[k] += apart * apart


@part
def select_deltas(
    deltas: Any, width: int, selector: Any, mean: Any, spread: Any, words: Any
) -> None:
    """Zero the entries of every task vector whose spread the selector drops."""
    if selector[MODE] == KEEP_ALL:
        return
    find_spread(deltas, width, mean, spread)
    # Whatever stays has a spread: no more are kept than have one.
    keep_largest(spread, width, selector, words)
    for i in range(deltas.shape[0]):
        delta = deltas[i]
        for k in range(width):
            delta[k] = delta[k] if spread[k] != 0 else np.float32(0.0)


@kernel("int64(int64[::1], int64[::1], int64, int64, int64[:, ::1])")
def spread_high(addresses: Any, codes: Any, first: int, count: int, counts: Any) -> int:
    """Add the upper 15 bits of each entry's spread to `counts`, `(1, HIGH_BINS)`.

    Input 0 is the base. Returns the first input that holds a NaN or an Inf, or -1.
    """
    inputs = addresses.shape[0]
    scratch = np.empty((3, BLOCK), np.float32)
    base, mean, spread = scratch[0], scratch[1], scratch[2]
    deltas = np.empty((inputs - 1, BLOCK), np.float32)
    stripes = np.zeros((HIGH_BINS, STRIPES), np.uint32)
    bins = np.empty(BLOCK, np.uint16)
    bad = inputs
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        bad = min(bad, read_deltas(addresses, codes, start, width, base, deltas))
        find_spread(deltas, width, mean, spread)
        add_high(spread, width, bins, stripes)
    fold_stripes(stripes, counts[0])
    return bad if bad < inputs else -1


@kernel("int64(int64[::1], int64[::1], int64, int64, int64[::1], int64[:, ::1])")
def spread_low(addresses: Any, codes: Any, first: int, count: int, bins: Any, counts: Any) -> int:
    """Add the lower 16 bits of the spreads in each high bin to its row of `counts`.

    `counts` is `(bins, LOW_COLUMNS)`, and a bin of -1 is left out. Input 0 is the base. Returns the
    first input that holds a NaN or an Inf, or -1.
    """
    inputs = addresses.shape[0]
    scratch = np.empty((3, BLOCK), np.float32)
    base, mean, spread = scratch[0], scratch[1], scratch[2]
    deltas = np.empty((inputs - 1, BLOCK), np.float32)
    words = np.empty(BLOCK, np.uint32)
    bad = inputs
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        bad = min(bad, read_deltas(addresses, codes, start, width, base, deltas))
        find_spread(deltas, width, mean, spread)
        for row in range(bins.shape[0]):
            if bins[row] >= 0:
                add_low(spread, width, bins[row], words, counts[row])
    return bad if bad < inputs else -1


@kernel("int64(int64[::1], int64[::1], int64, int64, uint64[:, ::1], float64[:, ::1])")
def sce_energies(
    addresses: Any, codes: Any, first: int, count: int, selectors: Any, sums: Any
) -> int:
    """Add a tile to the sum of squares of what is selected of each task vector.

    Args:
        addresses: Address of each input's tile; input 0 is the base.
        codes: Element type of each input.
        first: Flat index of the tile's first element, a multiple of `LANES`.
        count: Elements of the tile.
        selectors: One row: which spreads are kept; its count of ties seen is updated.
        sums: State of one sum per source.

    Returns:
        The first input that holds a NaN or an Inf, or -1.
    """
    inputs = addresses.shape[0]
    scratch = np.empty((3, BLOCK), np.float32)
    base, mean, spread = scratch[0], scratch[1], scratch[2]
    deltas = np.empty((inputs - 1, BLOCK), np.float32)
    words = np.empty(BLOCK, np.uint32)
    bad = inputs
    start = 0
    while start < count:
        # A tile may straddle the edge of a reduction block; a block of scratch never does.
        room = REDUCTION_BLOCK - (first + start) % REDUCTION_BLOCK
        width = min(BLOCK, count - start, room)
        bad = min(bad, read_deltas(addresses, codes, start, width, base, deltas))
        select_deltas(deltas, width, selectors[0], mean, spread, words)
        for i in range(inputs - 1):
            add_products(sums, i, deltas[i], deltas[i], width)
        if width == room:
            close_block(sums)
        start += width
    return bad if bad < inputs else -1


@kernel("int64(int64[::1], int64[::1], int64, int64, uint64[:, ::1], float32[::1], int64, int64)")
def sce_tile(
    addresses: Any,
    codes: Any,
    first: int,
    count: int,
    selectors: Any,
    weights: Any,
    out_address: int,
    out_code: int,
) -> int:
    """Write the base plus, per entry, the weighted mean of the selected deltas of the elected sign.

    Args:
        addresses: Address of each input's tile; input 0 is the base.
        codes: Element type of each input.
        first: Flat index of the tile's first element.
        count: Elements of the tile.
        selectors: One row: which spreads are kept; its count of ties seen is updated.
        weights: float32 weight per source.
        out_address: Where the tile of the output goes.
        out_code: Element type of the output.

    Returns:
        -1; or the first input that holds a NaN or an Inf; or the number of inputs, where all are
        finite and an output is not.
    """
    inputs = addresses.shape[0]
    scratch = np.empty((6, BLOCK), np.float32)
    base, mean, spread = scratch[0], scratch[1], scratch[2]
    votes, mix, divisor = scratch[3], scratch[4], scratch[5]
    deltas = np.empty((inputs - 1, BLOCK), np.float32)
    words = np.empty(BLOCK, np.uint32)
    zero, one = np.float32(0.0), np.float32(1.0)
    bad = inputs + 1
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        found = read_deltas(addresses, codes, start, width, base, deltas)
        bad = min(bad, found) if found < inputs else bad
        select_deltas(deltas, width, selectors[0], mean, spread, words)
        votes[:width] = 0.0
        for i in range(inputs - 1):
            delta = deltas[i]
            for k in range(width):
                votes[k] += delta[k]
        for k in range(width):
            votes[k] = one if votes[k] >= 0 else -one
        mix[:width] = 0.0
        divisor[:width] = 0.0
        for i in range(inputs - 1):
            delta = deltas[i]
            weight = weights[i]
            for k in range(width):
                agrees = delta[k] * votes[k] > 0
                mix[k] += delta[k] * weight if agrees else zero
                divisor[k] += weight if agrees else zero
        for k in range(width):
            mix[k] = base[k] + mix[k] / (divisor[k] if divisor[k] != 0 else one)
        if narrow(mix, width, out_address, out_code, start):
            bad = min(bad, inputs)
    return bad if bad <= inputs else -1
