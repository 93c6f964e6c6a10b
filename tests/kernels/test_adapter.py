"""The adapter's kernels on any run of elements, in place and beside it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from raymerge.kernels.adapter import (
    BY_COLUMN,
    BY_ROW,
    PLAIN,
    adapt_tile,
    recast_tile,
    square_tile,
)
from raymerge.kernels.floats import BF16, F32

Floats = npt.NDArray[np.float32]
ROWS, COLUMNS = 7, 2100  # a row is longer than the kernel's block
NONE = np.empty(0)


def address(array: npt.NDArray[np.generic]) -> int:
    return array.ctypes.data


def draw(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def product(left: Floats, right: Floats) -> npt.NDArray[np.float64]:
    """In float64, in rising order of the rank."""
    total = np.zeros((left.shape[0], right.shape[1]))
    for k in range(left.shape[1]):
        total = total + left[:, k : k + 1].astype(np.float64) * right[k].astype(np.float64)
    return total


@pytest.mark.parametrize("rank", [1, 3, 4, 9])
@pytest.mark.parametrize(("first", "count"), [(0, ROWS * COLUMNS), (1999, 1), (150, 6001)])
@pytest.mark.parametrize("rescaled", [PLAIN, BY_ROW, BY_COLUMN])
def test_any_run_of_elements(rank: int, first: int, count: int, rescaled: int) -> None:
    base, left, right = draw(ROWS, COLUMNS), draw(ROWS, rank, seed=1), draw(rank, COLUMNS, seed=2)
    total = base + 1.7 * product(left, right)
    factors = NONE
    if rescaled != PLAIN:
        factors = draw({BY_ROW: ROWS, BY_COLUMN: COLUMNS}[rescaled], seed=3).astype(np.float64)
        total = (factors[:, None] if rescaled == BY_ROW else factors) * total
    expected = total.astype(np.float32).reshape(-1)[first : first + count]

    tile = base.reshape(-1)[first : first + count].copy()
    beside = np.empty(count, np.float32)
    given = F32, first, count, left, right, 1.7, rescaled, factors
    adapt_tile(address(tile), *given, address(beside), F32)
    adapt_tile(address(tile), *given, address(tile), F32)
    assert np.array_equal(beside, expected)
    assert np.array_equal(tile, expected)


@pytest.mark.parametrize("rescaled", [BY_ROW, BY_COLUMN])
def test_squares_add_up_over_tiles_in_order(rescaled: int) -> None:
    base, left, right = draw(ROWS, COLUMNS), draw(ROWS, 4, seed=1), draw(4, COLUMNS, seed=2)
    total = base + 0.5 * product(left, right)
    rows = total if rescaled == BY_ROW else total.T
    expected = np.zeros(len(rows))
    for column in rows.T:
        expected = expected + column * column

    for tile in (ROWS * COLUMNS, 256, 2816):
        squares = np.zeros(len(rows))
        flat = base.reshape(-1)
        for first in range(0, flat.size, tile):
            piece = flat[first : first + tile].copy()
            square_tile(address(piece), F32, first, piece.size, left, right, 0.5, rescaled, squares)
        assert np.array_equal(squares, expected)


def test_recasting_rounds_to_nearest_even_and_keeps_zeros_signs() -> None:
    values = np.array([0.0, -0.0, 1.0, 1.00390625, 1.01171875], np.float32)
    words = np.empty(5, np.uint16)
    recast_tile(address(values), F32, 5, address(words), BF16)
    assert words.tolist() == [0, 0x8000, 0x3F80, 0x3F80, 0x3F82]
    back = np.empty(5, np.float32)
    recast_tile(address(words), BF16, 5, address(back), F32)
    assert np.signbit(back[:2]).tolist() == [False, True]
    assert back[2:].tolist() == [1.0, 1.0, 1.015625]
