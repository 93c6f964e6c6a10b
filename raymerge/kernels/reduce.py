"""Sums whose bytes do not depend on tiles, workers or devices.

A reduction runs over blocks of 2**20 elements anchored at the tensor's start. Inside a block,
element i goes to lane i mod 256, in rising order; the lanes are folded in halves; blocks are added
in order. Products of two float32 are exact in the float64 they are summed in. The state is carried
from tile to tile, so a tile may end anywhere on a multiple of 256.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from raymerge.kernels.constants import BLOCK, LANES
from raymerge.kernels.floats import widen
from raymerge.kernels.jit import kernel, part

REDUCTION_BLOCK = 2**20


def num_pairs(vectors: int) -> int:
    """Entries of the upper triangle of a Gram matrix."""
    return vectors * (vectors + 1) // 2


def new_sums(count: int) -> npt.NDArray[np.float64]:
    """State of `count` sums: `LANES` lanes of the open block, then the total of the closed ones."""
    return np.zeros((count, LANES + 1))


@part
def close_block(sums: Any) -> None:
    """Fold the lanes of the open block in halves and add them to the totals."""
    for row in range(sums.shape[0]):
        width = LANES
        while width > 1:
            width //= 2
            for lane in range(width):
                sums[row, lane] += sums[row, lane + width]
        sums[row, LANES] += sums[row, 0]
        sums[row, :LANES] = 0.0


@part
def add_products(sums: Any, row: int, left: Any, right: Any, count: int) -> None:
    """Add `left * right` over `count` elements, the first of which belongs to lane 0."""
    lanes = sums[row]
    whole = count // (4 * LANES) * 4 * LANES
    for start in range(0, whole, 4 * LANES):
        a, b = left[start : start + 4 * LANES], right[start : start + 4 * LANES]
        for lane in range(LANES):
            # Four at a time: each lane is loaded and stored once, and added to in the same order.
            total = lanes[lane]
            total += np.float64(a[lane]) * np.float64(b[lane])
            total += np.float64(a[lane + LANES]) * np.float64(b[lane + LANES])
            total += np.float64(a[lane + 2 * LANES]) * np.float64(b[lane + 2 * LANES])
            total += np.float64(a[lane + 3 * LANES]) * np.float64(b[lane + 3 * LANES])
            lanes[lane] = total
    for start in range(whole, count, LANES):
        a, b = left[start : start + LANES], right[start : start + LANES]
        for lane in range(min(LANES, count - start)):
            lanes[lane] += np.float64(a[lane]) * np.float64(b[lane])


@part
def subtract(values: Any, base: Any, count: int) -> None:
    """Take `base` off the first `count` values. Written in place, it runs at a third the speed."""
    for k in range(count):
        values[k] -= base[k]


@part
def add_two(lanes: Any, x: Any, y: Any, count: int) -> None:
    """What `add_products` does for the 3 pairs of two vectors, each value widened once."""
    xx, xy, yy = lanes[0], lanes[1], lanes[2]
    whole = count // (4 * LANES) * 4 * LANES
    for start in range(0, whole, 4 * LANES):
        a, b = x[start : start + 4 * LANES], y[start : start + 4 * LANES]
        for lane in range(LANES):
            p, q = np.float64(a[lane]), np.float64(b[lane])
            r, s = np.float64(a[lane + LANES]), np.float64(b[lane + LANES])
            t, u = np.float64(a[lane + 2 * LANES]), np.float64(b[lane + 2 * LANES])
            v, w = np.float64(a[lane + 3 * LANES]), np.float64(b[lane + 3 * LANES])
            xx[lane] = xx[lane] + p * p + r * r + t * t + v * v
            xy[lane] = xy[lane] + p * q + r * s + t * u + v * w
            yy[lane] = yy[lane] + q * q + s * s + u * u + w * w
    for start in range(whole, count, LANES):
        a, b = x[start : start + LANES], y[start : start + LANES]
        for lane in range(min(LANES, count - start)):
            p, q = np.float64(a[lane]), np.float64(b[lane])
            xx[lane] += p * p
            xy[lane] += p * q
            yy[lane] += q * q


@part
def add_pairs(lanes: Any, values: Any, count: int) -> None:
    """Add the products of all pairs of vectors, row by row of the upper triangle."""
    vectors = values.shape[0]
    if vectors == 2:  # noqa: PLR2004 - as the name says
        add_two(lanes, values[0], values[1], count)
    else:
        row = 0
        for i in range(vectors):
            for j in range(i, vectors):
                add_products(lanes, row, values[i], values[j], count)
                row += 1


@part
def new_lanes(rows: int) -> Any:
    """Room for the open block of so many sums, each row at the start of a cache line.

    Rows of `LANES + 1` cross lines; `add_two` took up to twice as long over such.
    """
    memory = np.zeros(rows * LANES + 8, np.float64)
    first = -memory.ctypes.data // 8 % 8
    return memory[first : first + rows * LANES].reshape(rows, LANES)


@kernel("int64(int64[::1], int64[::1], boolean, int64, int64, float64[:, ::1])")
def gram_tile(addresses: Any, codes: Any, relative: bool, first: int, count: int, sums: Any) -> int:
    """Add a tile of `count` elements, the first at flat index `first`, to a Gram matrix.

    Args:
        addresses: Address of each input's tile.
        codes: Element type of each input.
        relative: The first input is the base, and the vectors are the others minus it.
        first: A multiple of `LANES`.
        count: Elements of the tile.
        sums: State of `num_pairs(vectors)` sums, row by row of the upper triangle.

    Returns:
        The first input that holds a NaN or an Inf, or -1.
    """
    inputs = addresses.shape[0]
    skip = 1 if relative else 0
    values = np.empty((inputs, BLOCK), np.float32)
    lanes = new_lanes(sums.shape[0])
    lanes[:] = sums[:, :LANES]
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
                subtract(values[i], values[0], width)
        add_pairs(lanes, values[skip:], width)
        if width == room:
            sums[:, :LANES] = lanes
            close_block(sums)
            lanes[:] = 0.0
        start += width
    sums[:, :LANES] = lanes
    return bad if bad < inputs else -1


def gram_matrix(sums: npt.NDArray[np.float64], vectors: int) -> npt.NDArray[np.float64]:
    """The symmetric float64 matrix of inner products once every tile is in; closes `sums`.

    Squared lengths are clamped at 0.
    """
    close_block(sums)
    matrix = np.zeros((vectors, vectors))
    matrix[np.triu_indices(vectors)] = sums[:, LANES]
    matrix = matrix + np.triu(matrix, 1).T
    np.fill_diagonal(matrix, np.maximum(np.diagonal(matrix), 0.0))
    return matrix
