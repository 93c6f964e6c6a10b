"""Arcee fusion's reductions over rows: the divergence of the source's softmax from the base's.

A row is the last dimension; a tile may begin and end inside one, so that what is known of a row
that has not ended is carried from tile to tile: exp of its entries, or, of long rows, which take a
sweep for the sums and one for the divergence, the lanes of a sum. A row is summed as entry j into
lane j mod 32, in rising order, the lanes folded in halves. Tiles change nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from raymerge.kernels.constants import BLOCK, ROW_LANES
from raymerge.kernels.exponential import divergence_terms, exponentials
from raymerge.kernels.floats import BF16, float_of, halves_at, larger, widen
from raymerge.kernels.jit import kernel, part

INPUTS = 2
"""Base and source."""
SMOOTHING = 1e-8
"""mergekit's: what is added to every probability."""


@part
def read_pair(addresses: Any, codes: Any, start: int, width: int, values: Any) -> int:
    """Widen a block of both inputs; the first with a NaN or an Inf, or 2."""
    bad = INPUTS
    for i in range(INPUTS):
        if widen(addresses[i], codes[i], start, width, values[i]):
            bad = min(bad, i)
    return bad


@part
def largest_magnitude(values: Any, width: int) -> Any:
    """The bits of the largest magnitude in a block of both inputs."""
    worst = np.uint32(0)
    for i in range(INPUTS):
        bits = values[i].view(np.uint32)
        for k in range(width):
            worst = larger(worst, bits[k] & np.uint32(0x7FFFFFFF))
    return worst


@part
def add_to_lanes(lanes: Any, terms: Any, position: int) -> None:
    """Add terms of a row, the first of which stands at `position` of it."""
    head = min(len(terms), -position % ROW_LANES)
    for k in range(head):
        lanes[position % ROW_LANES + k] += terms[k]
    whole = head + (len(terms) - head) // ROW_LANES * ROW_LANES
    for start in range(head, whole, ROW_LANES):
        strip = terms[start : start + ROW_LANES]
        for lane in range(ROW_LANES):
            lanes[lane] += strip[lane]
    for k in range(whole, len(terms)):
        lanes[k - whole] += terms[k]


@part
def fold_lanes(lanes: Any) -> Any:
    """The sum of all lanes; they are 0 again."""
    width = ROW_LANES
    while width > 1:
        width //= 2
        for lane in range(width):
            lanes[lane] += lanes[lane + width]
    total = lanes[0]
    lanes[:] = 0.0
    return total


@part
def find_divergence(powers: Any, lanes: Any, terms: Any) -> Any:
    """Sum `p log(p / q)` over a row, from exp of the base in row 0 of `powers`, of the source in 1.

    `lanes` are 0 before and after; `terms` is scratch of a block.
    """
    add_to_lanes(lanes, powers[0], 0)
    base_share = 1.0 / fold_lanes(lanes)
    add_to_lanes(lanes, powers[1], 0)
    share = 1.0 / fold_lanes(lanes)
    length = powers.shape[1]
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        found = terms[: stop - start]
        right, left = powers[0, start:stop], powers[1, start:stop]
        divergence_terms(left, share, right, base_share, SMOOTHING, found)
        add_to_lanes(lanes, found, start)
    return fold_lanes(lanes)


@kernel("int64(int64[::1], int64[::1], int64, int64, int64, float64[:, ::1])")
def fusion_peaks(
    addresses: Any, codes: Any, first: int, count: int, length: int, peaks: Any
) -> int:
    """Raise `peaks`, `(rows, 2)`, to the largest entry of each row of a tile, base and source.

    Returns the first input that holds a NaN or an Inf, or -1.
    """
    values = np.empty((INPUTS, BLOCK), np.float32)
    bad = INPUTS
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        bad = min(bad, read_pair(addresses, codes, start, width, values))
        for k in range(width):
            row = (first + start + k) // length
            for i in range(INPUTS):
                peaks[row, i] = max(peaks[row, i], np.float64(values[i, k]))
    return bad if bad < INPUTS else -1


@kernel("void(float64[::1])")
def _fill_powers(powers: Any) -> None:
    values = np.empty(1, np.float32)
    for half in range(powers.size):
        values[0] = float_of(np.uint32(half) << np.uint32(16))
        exponentials(values, 0.0, powers[half : half + 1])


@cache
def _powers_of_halves() -> Any:
    """exp of every bfloat16, by its bits: looked up, a merge took five sixths of its core-seconds."""
    powers = np.empty(2**16, np.float64)
    _fill_powers(powers)
    return powers


def fusion_rows(*args: Any) -> int:
    """`_fusion_rows` with its table."""
    return int(_fusion_rows(*args, _powers_of_halves()))


@kernel(
    "int64(int64[::1], int64[::1], int64, int64, int64, float64[:, ::1], float64[:, ::1],"
    " float64[::1], uint32[::1], float64[::1])"
)
def _fusion_rows(
    addresses: Any,
    codes: Any,
    first: int,
    count: int,
    length: int,
    anchors: Any,
    powers: Any,
    divergences: Any,
    largest: Any,
    powers_of_halves: Any,
) -> int:
    """Write the divergence of each row that ends in a tile, of the source from the base.

    Args:
        addresses: Address of each input's tile: the base, the source.
        codes: Element type of each input.
        first: Flat index of the tile's first element.
        count: Elements of the tile.
        length: Entries of a row.
        anchors: What is taken off each row before exp, `(rows, 2)`.
        powers: exp of the row so far, `(2, length)`, carried from tile to tile.
        divergences: `(rows,)`.
        largest: One word, raised to the bits of the largest magnitude.
        powers_of_halves: exp of every bfloat16, by its bits.

    Returns:
        The first input that holds a NaN or an Inf, or -1.
    """
    values = np.empty((INPUTS, BLOCK), np.float32)
    terms = np.empty(BLOCK, np.float64)
    lanes = np.zeros(ROW_LANES, np.float64)
    bad = INPUTS
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        bad = min(bad, read_pair(addresses, codes, start, width, values))
        largest[0] = max(largest[0], largest_magnitude(values, width))
        begin = 0
        while begin < width:
            row, position = divmod(first + start + begin, length)
            end = min(width, begin + length - position)
            stop = position + end - begin
            for i in range(INPUTS):
                found = powers[i, position:stop]
                if codes[i] == BF16 and anchors[row, i] == 0:
                    halves = halves_at(addresses[i], start + begin, end - begin)
                    for k in range(end - begin):
                        found[k] = powers_of_halves[halves[k]]
                else:
                    exponentials(values[i, begin:end], anchors[row, i], found)
            if stop == length:
                divergences[row] = find_divergence(powers, lanes, terms)
            begin = end
    return bad if bad < INPUTS else -1


@kernel(
    "int64(int64[::1], int64[::1], int64, int64, int64, float64[:, ::1], float64[:, ::1],"
    " float64[:, ::1], uint32[::1])"
)
def fusion_sums(
    addresses: Any,
    codes: Any,
    first: int,
    count: int,
    length: int,
    anchors: Any,
    lanes: Any,
    sums: Any,
    largest: Any,
) -> int:
    """Write the sums of exp over each long row that ends in a tile.

    Args:
        addresses: Address of each input's tile: the base, the source.
        codes: Element type of each input.
        first: Flat index of the tile's first element.
        count: Elements of the tile.
        length: Entries of a row.
        anchors: What is taken off each row before exp, `(rows, 2)`.
        lanes: Those of the row so far, `(2, ROW_LANES)`, carried from tile to tile.
        sums: `(rows, 2)`.
        largest: One word, raised to the bits of the largest magnitude.

    Returns:
        The first input that holds a NaN or an Inf, or -1.
    """
    values = np.empty((INPUTS, BLOCK), np.float32)
    powers = np.empty(BLOCK, np.float64)
    bad = INPUTS
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        bad = min(bad, read_pair(addresses, codes, start, width, values))
        largest[0] = max(largest[0], largest_magnitude(values, width))
        begin = 0
        while begin < width:
            row, position = divmod(first + start + begin, length)
            end = min(width, begin + length - position)
            found = powers[: end - begin]
            for i in range(INPUTS):
                exponentials(values[i, begin:end], anchors[row, i], found)
                add_to_lanes(lanes[i], found, position)
                if position + end - begin == length:
                    sums[row, i] = fold_lanes(lanes[i])
            begin = end
    return bad if bad < INPUTS else -1


@kernel(
    "int64(int64[::1], int64[::1], int64, int64, int64, float64[:, ::1], float64[:, ::1],"
    " float64[::1], float64[::1])"
)
def fusion_divergence(
    addresses: Any,
    codes: Any,
    first: int,
    count: int,
    length: int,
    anchors: Any,
    sums: Any,
    lanes: Any,
    divergences: Any,
) -> int:
    """Write the divergence of each long row that ends in a tile, of the source from the base.

    Args:
        addresses: Address of each input's tile: the base, the source.
        codes: Element type of each input.
        first: Flat index of the tile's first element.
        count: Elements of the tile.
        length: Entries of a row.
        anchors: What is taken off each row before exp, `(rows, 2)`.
        sums: Sums of exp, `(rows, 2)`.
        lanes: Those of the row so far, `(ROW_LANES,)`, carried from tile to tile.
        divergences: `(rows,)`.

    Returns:
        The first input that holds a NaN or an Inf, or -1.
    """
    values = np.empty((INPUTS, BLOCK), np.float32)
    powers = np.empty((INPUTS, BLOCK), np.float64)
    terms = np.empty(BLOCK, np.float64)
    bad = INPUTS
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        bad = min(bad, read_pair(addresses, codes, start, width, values))
        begin = 0
        while begin < width:
            row, position = divmod(first + start + begin, length)
            end = min(width, begin + length - position)
            size = end - begin
            for i in range(INPUTS):
                exponentials(values[i, begin:end], anchors[row, i], powers[i, :size])
            share, base_share = 1.0 / sums[row, 1], 1.0 / sums[row, 0]
            right, left, found = powers[0, :size], powers[1, :size], terms[:size]
            divergence_terms(left, share, right, base_share, SMOOTHING, found)
            add_to_lanes(lanes, found, position)
            if position + size == length:
                divergences[row] = fold_lanes(lanes)
            begin = end
    return bad if bad < INPUTS else -1
