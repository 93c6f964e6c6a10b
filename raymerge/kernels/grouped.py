"""The span passes where every row or every column has a Gram matrix and coefficients of its own.

See `groups.py` for the order in which rows and columns are summed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raymerge.kernels.constants import BLOCK, LANES
from raymerge.kernels.floats import narrow, widen
from raymerge.kernels.jit import kernel, part
from raymerge.kernels.reduce import REDUCTION_BLOCK, subtract


@part
def add_run(sums: Any, left: Any, right: Any, start: int, count: int) -> None:
    """Add `left * right` from `start` on, `count` products, to as many sums."""
    a, b = left[start : start + count], right[start : start + count]
    for k in range(count):
        sums[k] += np.float64(a[k]) * np.float64(b[k])


@part
def fold(lanes: Any, width: int) -> None:
    """Fold the first `width` lanes in halves, add them to the total in the last place, clear them.

    Lanes that no element has gone to are 0, and adding those changes nothing.
    """
    used = width
    while width > 1:
        width //= 2
        for lane in range(width):
            lanes[lane] += lanes[lane + width]
    lanes[LANES] += lanes[0]
    lanes[:used] = 0.0


@part
def add_to_rows(
    totals: Any, lanes: Any, left: Any, right: Any, position: int, count: int, length: int
) -> None:
    """Add `left * right` to the sums of rows of `length`; the first is at flat `position`."""
    used = 1
    while used < min(length, LANES):
        used *= 2
    done = 0
    while done < count:
        row, at = divmod(position + done, length)
        lane = at % LANES
        width = min(LANES - lane, length - at, count - done)
        add_run(lanes[lane:], left, right, done, width)
        done += width
        at += width
        if at == length or at % REDUCTION_BLOCK == 0:
            fold(lanes, used)
        if at == length:
            totals[row] = lanes[LANES]
            lanes[LANES] = 0.0


@part
def add_to_columns(
    totals: Any, left: Any, right: Any, position: int, count: int, columns: int
) -> None:
    """Add `left * right` to the sums of columns; the first is at flat `position`."""
    done = 0
    while done < count:
        column = (position + done) % columns
        width = min(columns - column, count - done)
        add_run(totals[column:], left, right, done, width)
        done += width


@kernel(
    "int64(int64[::1], int64[::1], boolean, boolean, int64, int64, int64, float64[:, ::1], "
    "float64[:, ::1])"
)
def group_gram_tile(
    addresses: Any,
    codes: Any,
    relative: bool,
    by_row: bool,
    stride: int,
    first: int,
    count: int,
    totals: Any,
    lanes: Any,
) -> int:
    """Add a tile of `count` elements, the first at flat index `first`, to the groups' sums.

    Args:
        addresses: Address of each input's tile.
        codes: Element type of each input.
        relative: The first input is the base, and the vectors are the others minus it.
        by_row: Groups are rows, else columns.
        stride: Elements of a row, or the number of columns.
        first: Any flat index that follows on the tile before.
        count: Elements of the tile.
        totals: See `GroupSums`.
        lanes: See `GroupSums`.

    Returns:
        The first input that holds a NaN or an Inf, or -1.
    """
    inputs = addresses.shape[0]
    skip = 1 if relative else 0
    values = np.empty((inputs, BLOCK), np.float32)
    bad = inputs
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        for i in range(inputs):
            if widen(addresses[i], codes[i], start, width, values[i]):
                bad = min(bad, i)
            if relative and i > 0:
                subtract(values[i], values[0], width)
        pair = 0
        for i in range(skip, inputs):
            for j in range(i, inputs):
                left, right, at = values[i], values[j], first + start
                if by_row:
                    add_to_rows(totals[pair], lanes[pair], left, right, at, width, stride)
                else:
                    add_to_columns(totals[pair], left, right, at, width, stride)
                pair += 1
    return bad if bad < inputs else -1


@part
def spread(
    coefficients: Any, by_row: bool, stride: int, position: int, count: int, factors: Any
) -> None:
    """Write the coefficient of each of `count` elements, the first at flat `position`."""
    done = 0
    while done < count:
        row, at = divmod(position + done, stride)
        width = min(stride - at, count - done)
        if by_row:
            factors[done : done + width] = coefficients[row]
        else:
            own, out = coefficients[at : at + width], factors[done : done + width]
            for k in range(width):
                out[k] = own[k]
        done += width


@kernel(
    "int64(int64[::1], int64[::1], int64, int64, boolean, int64, float32[:, ::1], boolean, int64, "
    "int64)"
)
def group_span_tile(
    addresses: Any,
    codes: Any,
    first: int,
    count: int,
    by_row: bool,
    stride: int,
    coefficients: Any,
    relative: bool,
    out_address: int,
    out_code: int,
) -> int:
    """Write `sum c_i x_i` over a tile or, relative, `x_0 + sum c_i (x_i - x_0)`, c_i by group.

    Args:
        addresses: Address of each input's tile.
        codes: Element type of each input.
        first: Flat index of the tile's first element.
        count: Elements of the tile.
        by_row: Groups are rows, else columns.
        stride: Elements of a row, or the number of columns.
        coefficients: float32, one per vector and group: `(vectors, groups)`.
        relative: The first input is the base, and the vectors are the others minus it.
        out_address: Where the tile of the output goes.
        out_code: Element type of the output.

    Returns:
        As `span_tile` does.
    """
    inputs = addresses.shape[0]
    skip = 1 if relative else 0
    base = np.zeros(BLOCK, np.float32)
    values = np.empty(BLOCK, np.float32)
    factors = np.empty(BLOCK, np.float32)
    mix = np.empty(BLOCK, np.float32)
    bad = inputs + 1
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        if relative and widen(addresses[0], codes[0], start, width, base):
            bad = 0
        mix[:width] = 0.0
        for i in range(skip, inputs):
            if widen(addresses[i], codes[i], start, width, values):
                bad = min(bad, i)
            spread(coefficients[i - skip], by_row, stride, first + start, width, factors)
            if relative:
                for k in range(width):
                    mix[k] += (values[k] - base[k]) * factors[k]
            else:
                for k in range(width):
                    mix[k] += values[k] * factors[k]
        if relative:
            for k in range(width):
                mix[k] += base[k]
        if narrow(mix, width, out_address, out_code, start):
            bad = min(bad, inputs)
    return bad if bad <= inputs else -1
