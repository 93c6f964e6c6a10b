"""What an inspection counts over task vectors, in one fused loop over a tile.

Inner products are summed as in `reduce`, so no tile size and no thread changes a digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raymerge.kernels.constants import BLOCK, LANES
from raymerge.kernels.floats import CODES, widen
from raymerge.kernels.jit import kernel, part
from raymerge.kernels.reduce import (
    REDUCTION_BLOCK,
    add_products,
    close_block,
    gram_matrix,
    new_sums,
    num_pairs,
)
from raymerge.kernels.tile import Tile

Int64s = npt.NDArray[np.int64]

LARGE_DELTA = 0.03
"""Magnitude above which an entry of a delta counts as large."""
LARGE_BITS = np.float32(LARGE_DELTA).view(np.uint32)
MAGNITUDE = np.uint32(0x7FFFFFFF)
UNCHANGED, LARGE = 0, 1
"""Columns of `Comparison.entries`."""
BOTH, OPPOSITE = 0, 1
"""Columns of `Comparison.pairs`."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Counters of one tensor over its tiles.

    With a base the vectors are the other inputs minus it, else the inputs themselves.
    """

    relative: bool
    sums: npt.NDArray[np.float64]
    """State of the Gram matrix's upper triangle, row by row, and of the base's square behind it."""
    entries: Int64s
    """Per vector: entries that are exactly 0, entries above `LARGE_DELTA` in magnitude."""
    pairs: Int64s
    """Per pair of vectors, row by row above the diagonal: entries where both are other than 0, and
    those of them where the signs differ."""
    lanes: npt.NDArray[np.uint32]
    """Per vector and lane the bits of the largest magnitude."""

    @classmethod
    def new(cls, inputs: int, *, relative: bool) -> Comparison:
        """Counters for a tensor with so many inputs, the base among them."""
        vectors = inputs - relative
        return cls(
            relative,
            new_sums(num_pairs(vectors) + 1),
            np.zeros((vectors, 2), np.int64),
            np.zeros((num_pairs(vectors - 1), 2), np.int64),
            np.zeros((vectors, LANES), np.uint32),
        )

    def add(self, tile: Tile) -> int:
        """Count a tile; returns the first input that holds a NaN or an Inf, or -1."""
        return int(
            compare_tile(
                np.array([_address(buffer) for buffer in tile.buffers], np.int64),
                np.array([CODES[dtype] for dtype in tile.dtypes], np.int64),
                self.relative,
                tile.first,
                tile.count,
                self.sums,
                self.entries,
                self.pairs,
                self.lanes,
            )
        )

    def gram(self) -> tuple[npt.NDArray[np.float64], float]:
        """Inner products of the vectors and the base's square, once every tile is in."""
        matrix = gram_matrix(self.sums[:-1], len(self.entries))
        close_block(self.sums[-1:])
        return matrix, float(self.sums[-1, LANES])

    @property
    def largest(self) -> npt.NDArray[np.float32]:
        """Largest magnitude per vector."""
        bits: npt.NDArray[np.uint32] = self.lanes.max(axis=1)
        return bits.view(np.float32)


def _address(buffer: npt.NDArray[np.uint8]) -> int:
    address: int = buffer.__array_interface__["data"][0]
    return address


def pairs_of(members: Sequence[int]) -> list[tuple[int, int]]:
    """The pairs of vectors in the order of `Comparison.pairs`."""
    return [(i, j) for position, i in enumerate(members) for j in members[position + 1 :]]


@part
def count_entries(bits: Any, width: int, lanes: Any, counts: Any, largest: Any) -> None:
    """Count what is exactly 0 and what is large, and keep the largest magnitude, by its bits.

    Magnitudes order as their bits do, and integers of one width, kept in lanes, fill the registers.
    """
    lanes[:2] = 0
    for start in range(0, width, LANES):
        block = bits[start : start + LANES]
        for lane in range(min(LANES, width - start)):
            size = block[lane] & MAGNITUDE
            lanes[UNCHANGED, lane] += np.uint32(size == 0)
            lanes[LARGE, lane] += np.uint32(size > LARGE_BITS)
            largest[lane] = max(largest[lane], size)
    for lane in range(LANES):
        counts[UNCHANGED] += np.int64(lanes[UNCHANGED, lane])
        counts[LARGE] += np.int64(lanes[LARGE, lane])


@part
def count_signs(one: Any, other: Any, width: int, lanes: Any, counts: Any) -> None:
    """Count where both are other than 0, and where they have opposite signs then, by their bits.

    Signs, not the product: that of two small deltas is 0.
    """
    lanes[:2] = 0
    for start in range(0, width, LANES):
        a, b = one[start : start + LANES], other[start : start + LANES]
        for lane in range(min(LANES, width - start)):
            moved = np.uint32((a[lane] & MAGNITUDE) != 0) & np.uint32((b[lane] & MAGNITUDE) != 0)
            lanes[BOTH, lane] += moved
            lanes[OPPOSITE, lane] += moved & ((a[lane] ^ b[lane]) >> np.uint32(31))
    for lane in range(LANES):
        counts[BOTH] += np.int64(lanes[BOTH, lane])
        counts[OPPOSITE] += np.int64(lanes[OPPOSITE, lane])


@kernel(
    "int64(int64[::1], int64[::1], boolean, int64, int64, float64[:, ::1], int64[:, ::1],"
    " int64[:, ::1], uint32[:, ::1])"
)
def compare_tile(
    addresses: Any,
    codes: Any,
    relative: bool,
    first: int,
    count: int,
    sums: Any,
    entries: Any,
    pairs: Any,
    largest: Any,
) -> int:
    """Add a tile to a tensor's counters, see `Comparison`.

    Args:
        addresses: Address of each input's tile, the base's first if `relative`.
        codes: Element type of each input.
        relative: The first input is the base, and the vectors are the others minus it.
        first: Flat index of the tile's first element, a multiple of `LANES`.
        count: Elements of the tile.
        sums: See `Comparison.sums`.
        entries: See `Comparison.entries`.
        pairs: See `Comparison.pairs`; left alone unless `relative`.
        largest: See `Comparison.lanes`.

    Returns:
        The first input that holds a NaN or an Inf, or -1.
    """
    inputs = addresses.shape[0]
    skip = 1 if relative else 0
    vectors = inputs - skip
    values = np.empty((inputs, BLOCK), np.float32)
    bits = values.view(np.uint32)
    lanes = np.empty((2, LANES), np.uint32)
    bad = inputs
    start = 0
    while start < count:
        # A tile may straddle the edge of a reduction block; a block of scratch never does.
        room = REDUCTION_BLOCK - (first + start) % REDUCTION_BLOCK
        width = min(BLOCK, count - start, room)
        for i in range(inputs):
            if widen(addresses[i], codes[i], start, width, values[i]):
                bad = min(bad, i)
            if relative and i > 0:
                for k in range(width):
                    values[i, k] -= values[0, k]
        row = 0
        for i in range(vectors):
            for j in range(i, vectors):
                add_products(sums, row, values[i + skip], values[j + skip], width)
                row += 1
        if relative:
            add_products(sums, row, values[0], values[0], width)
        row = 0
        for i in range(vectors):
            count_entries(bits[i + skip], width, lanes, entries[i], largest[i])
            for j in range(i + 1, vectors):
                if relative:
                    count_signs(bits[i + skip], bits[j + skip], width, lanes, pairs[row])
                row += 1
        if width == room:
            close_block(sums)
        start += width
    return bad if bad < inputs else -1
