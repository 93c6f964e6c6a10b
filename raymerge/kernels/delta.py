"""The fused delta pass: delta, mask, weight, elect, mean, scale, add and cast in one loop.

Works on blocks that fit the cache, so that a tile is read once and written once whatever the
number of sources. See `methods/rules.py` for the formula and `torch_kernels.py` for the same pass
as ten lines of torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.cpython.unsafe.numbers import trailing_zeros
from numba.extending import intrinsic

from raymerge.kernels.constants import BLOCK
from raymerge.kernels.floats import narrow, widen
from raymerge.kernels.jit import kernel, part
from raymerge.kernels.philox import philox_words
from raymerge.kernels.reduce import REDUCTION_BLOCK, add_products, close_block

KEEP_ALL, KEEP_LARGEST, KEEP_DRAWN, KEEP_BAND, KEEP_RANKED = range(5)

# One row per source, as the kernels take it: how entries are kept. `selectors` columns:
MODE, BITS, KEPT, TIED, SEEN, KEY, LIMIT, UPPER, UPPER_KEPT, UPPER_TIED, UPPER_SEEN = range(11)
"""`SEEN` is carried from tile to tile: `j * kept mod tied` after j tied entries. The last four are
for the upper end of a band what `BITS` to `SEEN` are for the lower."""
SELECTOR_COLUMNS = 11


@intrinsic  # type: ignore[untyped-decorator]
def equal_mask(_typing: Any, address: Any, _value: Any) -> Any:
    """Bit k of the result: whether the k-th of 64 words at `address` equals the value."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        lanes = ir.VectorType(ir.IntType(32), 64)
        words = builder.load(builder.inttoptr(args[0], lanes.as_pointer()), align=4)
        one = builder.insert_element(ir.Constant(lanes, ir.Undefined), args[1], ir.IntType(32)(0))
        every = builder.shuffle_vector(
            one, ir.Constant(lanes, ir.Undefined), ir.Constant(lanes, [0] * 64)
        )
        return builder.bitcast(builder.icmp_unsigned("==", words, every), ir.IntType(64))

    return types.uint64(types.int64, types.uint32), generate


@part
def drop_tied(delta: Any, count: int, selector: Any, column: int, magnitudes: Any) -> None:
    """Keep `kept` of every `tied` entries at a threshold, evenly spread in index order.

    `column` is `BITS` or `UPPER`; the figures of that threshold stand in the four from there on.
    `magnitudes` has room up to the next multiple of 64.
    """
    limit = np.uint32(selector[column])
    kept, tied, seen = selector[column + 1], selector[column + 2], selector[column + 3]
    if kept >= tied:
        return
    magnitudes[count : (count + 63) // 64 * 64] = ~limit
    address = magnitudes.ctypes.data
    for start in range(0, count, 64):
        equal = equal_mask(address + 4 * start, limit)
        while equal:
            index = start + np.int64(trailing_zeros(equal))
            equal &= equal - np.uint64(1)
            # Bresenham's form of (j + 1) * kept // tied > j * kept // tied: no division.
            seen += kept
            stays = seen >= tied
            seen -= tied if stays else np.uint64(0)
            delta[index] = delta[index] if stays else np.float32(0.0)
    selector[column + 3] = seen


@part
def keep_largest(delta: Any, count: int, selector: Any, words: Any) -> None:
    """Zero the entries of `delta` below its threshold, and of those tied there as many as go."""
    bits = delta.view(np.uint32)
    lowest = np.uint32(selector[BITS])
    # All tied entries stay in this sweep; those to drop are dropped in the next.
    for k in range(count):
        magnitude = bits[k] & np.uint32(0x7FFFFFFF)
        words[k] = magnitude
        delta[k] = delta[k] if magnitude >= lowest else np.float32(0.0)
    drop_tied(delta, count, selector, BITS, words)


@part
def keep_entries(
    delta: Any, count: int, first: int, selector: Any, words: Any, factors: Any
) -> None:
    """Zero the entries of `delta` that its selector drops; `first` is the flat index of entry 0.

    `factors` are those of entries drawn by rank, worked out before; other selectors have none.
    """
    if selector[MODE] == KEEP_DRAWN:
        if selector[LIMIT] > np.uint64(0xFFFFFFFF):
            return
        philox_words(selector[KEY], first, (count + 3) // 4 * 4, words)
        limit = np.uint32(selector[LIMIT])
        for k in range(count):
            delta[k] = delta[k] if words[k] < limit else np.float32(0.0)
    elif selector[MODE] == KEEP_LARGEST:
        keep_largest(delta, count, selector, words)
    elif selector[MODE] == KEEP_BAND:
        bits = delta.view(np.uint32)
        lowest, highest = np.uint32(selector[BITS]), np.uint32(selector[UPPER])
        for k in range(count):
            magnitude = bits[k] & np.uint32(0x7FFFFFFF)
            words[k] = magnitude
            inside = (magnitude >= lowest) & (magnitude <= highest)
            delta[k] = delta[k] if inside else np.float32(0.0)
        drop_tied(delta, count, selector, BITS, words)
        drop_tied(delta, count, selector, UPPER, words)
    elif selector[MODE] == KEEP_RANKED:
        for k in range(count):
            factor = factors[k]
            delta[k] = delta[k] * factor if factor != 0 else np.float32(0.0)


@kernel(
    "int64(int64[::1], int64[::1], int64, int64, uint64[:, ::1], float32[::1], float32[::1],"
    " boolean, boolean, float32, float32[:, ::1], int64, int64)"
)
def delta_tile(
    addresses: Any,
    codes: Any,
    first: int,
    count: int,
    selectors: Any,
    shares: Any,
    weights: Any,
    elect: bool,
    normalize: bool,
    scale: float,
    factors: Any,
    out_address: int,
    out_code: int,
) -> int:
    """Merge a tile of task vectors and add them to the base.

    Args:
        addresses: Address of each input's tile; input 0 is the base.
        codes: Element type of each input.
        first: Flat index of the tile's first element, a multiple of 4.
        count: Elements of the tile.
        selectors: How each source's entries are kept; `SEEN` is updated.
        shares: float32 `weight * rescaling` per source, what an entry is multiplied by.
        weights: float32 weight per source, what `normalize` divides by.
        elect: Whether entries of the minority sign are left out.
        normalize: Whether the mix is divided by the weights of the sources in it.
        scale: float32 factor of the merged delta.
        factors: Of each source's entries, where they are drawn by rank (`rank.py`).
        out_address: Where the tile of the output goes.
        out_code: Element type of the output.

    Returns:
        -1; or the first input that holds a NaN or an Inf; or the number of inputs, where all are
        finite and an output is not.
    """
    sources = shares.shape[0]
    base = np.empty(BLOCK, np.float32)
    deltas = np.empty((sources, BLOCK), np.float32)
    votes = np.empty(BLOCK, np.float32)
    mix = np.empty(BLOCK, np.float32)
    divisor = np.empty(BLOCK, np.float32)
    words = np.empty(BLOCK, np.uint32)
    total = np.float32(0.0)
    for i in range(sources):
        total += weights[i]
    bad = sources + 2
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        if widen(addresses[0], codes[0], start, width, base):
            bad = 0
        votes[:width] = 0.0
        for i in range(sources):
            delta = deltas[i]
            if widen(addresses[i + 1], codes[i + 1], start, width, delta):
                bad = min(bad, i + 1)
            for k in range(width):
                delta[k] -= base[k]
            chosen = factors[i, start : start + width]
            keep_entries(delta, width, first + start, selectors[i], words, chosen)
            share = shares[i]
            for k in range(width):
                delta[k] *= share
                votes[k] += delta[k]
        if elect:
            for k in range(width):
                votes[k] = np.float32(1.0) if votes[k] >= 0 else np.float32(-1.0)
            mix[:width] = 0.0
            divisor[:width] = 0.0
            for i in range(sources):
                delta = deltas[i]
                weight = weights[i]
                if normalize:
                    for k in range(width):
                        agrees = delta[k] * votes[k] > 0
                        mix[k] += delta[k] if agrees else np.float32(0.0)
                        divisor[k] += weight if agrees else np.float32(0.0)
                else:
                    for k in range(width):
                        mix[k] += delta[k] if delta[k] * votes[k] > 0 else np.float32(0.0)
            if normalize:
                for k in range(width):
                    mix[k] /= divisor[k] if divisor[k] != 0 else np.float32(1.0)
        else:
            for k in range(width):
                mix[k] = votes[k]
            if normalize and total != 0:
                for k in range(width):
                    mix[k] /= total
        for k in range(width):
            mix[k] = base[k] + mix[k] * scale
        if narrow(mix, width, out_address, out_code, start):
            bad = min(bad, sources + 1)
    return bad if bad <= sources + 1 else -1


@kernel(
    "void(int64[::1], int64[::1], int64, int64, uint64[:, ::1], float32[:, ::1], float64[:, ::1])"
)
def norm_tile(
    addresses: Any, codes: Any, first: int, count: int, selectors: Any, factors: Any, sums: Any
) -> None:
    """Add a tile to the L1 norms of each delta: whole in row `2 i`, kept in row `2 i + 1`."""
    base = np.empty(BLOCK, np.float32)
    delta = np.empty(BLOCK, np.float32)
    ones = np.ones(BLOCK, np.float32)
    words = np.empty(BLOCK, np.uint32)
    start = 0
    while start < count:
        # A tile may straddle the edge of a reduction block; a block of scratch never does.
        room = REDUCTION_BLOCK - (first + start) % REDUCTION_BLOCK
        width = min(BLOCK, count - start, room)
        widen(addresses[0], codes[0], start, width, base)
        for i in range(selectors.shape[0]):
            widen(addresses[i + 1], codes[i + 1], start, width, delta)
            for k in range(width):
                delta[k] -= base[k]
            for row in range(2):
                if row == 1:
                    chosen = factors[i, start : start + width]
                    keep_entries(delta, width, first + start, selectors[i], words, chosen)
                for k in range(width):
                    delta[k] = abs(delta[k])
                add_products(sums, 2 * i + row, delta, ones, width)
        if width == room:
            close_block(sums)
        start += width
