"""The sum of a matrix and the product of two thin ones, over any run of its elements.

Element (i, j) is `base + scaling * (l_i0 r_0j + l_i1 r_1j + ...)`: products of two float32 are
exact in float64, and are added there in rising order of the rank, so that no tile changes a sum.
Scaled and added to the base in float64, the value becomes float32 once and then the output's type.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raymerge.kernels.constants import BLOCK
from raymerge.kernels.floats import narrow, widen
from raymerge.kernels.jit import kernel, part

PLAIN, BY_ROW, BY_COLUMN = 0, 1, 2
"""Whether rows or columns of the sum are rescaled."""


@part
def _add_product(left: Any, right: Any, column: int, width: int, sums: Any) -> None:
    """Write `sum_k left[k] right[k, column:column + width]`, in rising k."""
    sums[:width] = 0.0
    rank = left.shape[0]
    k = 0
    # Four at a time, each added in its turn: the sum is read and written a quarter as often.
    while k + 4 <= rank:
        l0, l1 = np.float64(left[k]), np.float64(left[k + 1])
        l2, l3 = np.float64(left[k + 2]), np.float64(left[k + 3])
        r0 = right[k, column : column + width]
        r1 = right[k + 1, column : column + width]
        r2 = right[k + 2, column : column + width]
        r3 = right[k + 3, column : column + width]
        for j in range(width):
            total = sums[j] + l0 * np.float64(r0[j])
            total = total + l1 * np.float64(r1[j])
            total = total + l2 * np.float64(r2[j])
            sums[j] = total + l3 * np.float64(r3[j])
        k += 4
    while k < rank:
        l0 = np.float64(left[k])
        r0 = right[k, column : column + width]
        for j in range(width):
            sums[j] = sums[j] + l0 * np.float64(r0[j])
        k += 1


@kernel(
    "void(int64, int64, int64, int64, float32[:, ::1], float32[:, ::1], float64, int64, "
    "float64[::1], int64, int64)"
)
def adapt_tile(
    address: int,
    code: int,
    first: int,
    count: int,
    left: Any,
    right: Any,
    scaling: float,
    rescaled: int,
    factors: Any,
    out_address: int,
    out_code: int,
) -> None:
    """Write a tile of `base + scaling * left @ right`.

    Args:
        address: The base's tile; it may be where the output goes, if both are of one type.
        code: Element type of the base.
        first: Flat index of the tile's first element, anywhere in a row.
        count: Elements of the tile.
        left: `(rows, rank)`, float32.
        right: `(rank, columns)`, float32.
        scaling: What the product is multiplied by.
        rescaled: Whether rows or columns are multiplied by `factors` after that.
        factors: float64, one per row or column.
        out_address: Where the tile goes.
        out_code: Its element type.
    """
    columns = right.shape[1]
    values = np.empty(BLOCK, np.float32)
    sums = np.empty(BLOCK, np.float64)
    start = 0
    while start < count:
        row, column = (first + start) // columns, (first + start) % columns
        width = min(BLOCK, count - start, columns - column)
        widen(address, code, start, width, values)
        _add_product(left[row], right, column, width, sums)
        if rescaled == BY_COLUMN:
            for j in range(width):
                value = np.float64(values[j]) + scaling * sums[j]
                values[j] = np.float32(factors[column + j] * value)
        elif rescaled == BY_ROW:
            factor = factors[row]
            for j in range(width):
                values[j] = np.float32(factor * (np.float64(values[j]) + scaling * sums[j]))
        else:
            for j in range(width):
                values[j] = np.float32(np.float64(values[j]) + scaling * sums[j])
        narrow(values, width, out_address, out_code, start)
        start += width


@kernel(
    "void(int64, int64, int64, int64, float32[:, ::1], float32[:, ::1], float64, int64, "
    "float64[::1])"
)
def square_tile(
    address: int,
    code: int,
    first: int,
    count: int,
    left: Any,
    right: Any,
    scaling: float,
    rescaled: int,
    squares: Any,
) -> None:
    """Add the squares of a tile of `base + scaling * left @ right` to its rows' or columns' sums.

    In rising order of elements, so that tiles change nothing. Arguments are those of `adapt_tile`.
    """
    columns = right.shape[1]
    values = np.empty(BLOCK, np.float32)
    sums = np.empty(BLOCK, np.float64)
    start = 0
    while start < count:
        row, column = (first + start) // columns, (first + start) % columns
        width = min(BLOCK, count - start, columns - column)
        widen(address, code, start, width, values)
        _add_product(left[row], right, column, width, sums)
        for j in range(width):
            value = np.float64(values[j]) + scaling * sums[j]
            squares[row if rescaled == BY_ROW else column + j] += value * value
        start += width


@kernel("void(int64, int64, int64, int64, int64)")
def recast_tile(address: int, code: int, count: int, out_address: int, out_code: int) -> None:
    """Write a tile in another element type, to nearest even."""
    values = np.empty(BLOCK, np.float32)
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        widen(address, code, start, width, values)
        narrow(values, width, out_address, out_code, start)
