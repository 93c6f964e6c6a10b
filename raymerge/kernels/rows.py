"""The rows in which entries are ranked, and what a rank decides. No compiled code.

The probability to stay rises with the rank of an entry's magnitude in its row, from
`density - epsilon` for the smallest to `density + epsilon` for the largest. A row of one entry has
no ranks: it stays with probability `density`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm, prod

import numpy as np
import numpy.typing as npt

from raymerge.kernels.constants import LANES

MAX_COLUMNS = 32
"""Rows that are not contiguous are gathered this many at a time."""
MAX_BUCKETS = 2**16
"""Buckets that a row's magnitudes are spread over."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of a tensor lie: along dimension 1, as in mergekit.

    A vector is one row. In a matrix a row is contiguous; behind a third dimension neighbours in a
    row are `stride` elements apart.
    """

    length: int
    """Entries of a row."""
    stride: int
    """Elements from one entry of a row to the next."""

    @property
    def elements(self) -> int:
        """Entries that have to be seen together: all rows that one index of dimension 0 holds."""
        return self.length * self.stride


def rows_of(shape: Sequence[int]) -> Rows:
    """The rows of a tensor; a scalar is a row of one."""
    _, *behind = shape if len(shape) > 1 else (1, *shape)
    return Rows(length=prod(behind[:1]), stride=prod(behind[1:]))


def whole_rows(rows: Rows, tile_elements: int) -> int:
    """A tile of about `tile_elements` that holds whole rows and ends at a multiple of `LANES`."""
    step = lcm(max(1, rows.elements), LANES)
    return max(step, tile_elements // step * step)


def keep_probabilities(density: float, epsilon: float, length: int) -> npt.NDArray[np.float64]:
    """With what probability an entry of each rank stays, the smallest magnitude first."""
    if length == 1:
        return np.array([density])
    rising = density - epsilon + 2 * epsilon * (np.arange(length) / (length - 1))
    # The ends may miss 0 or 1 by a rounding.
    return np.clip(rising, 0.0, 1.0)


def rank_bytes(rows: Rows, sources: int, tile_elements: int) -> int:
    """Upper bound of what ranking a tile on the CPU takes, the figures by rank included."""
    columns = min(rows.stride, MAX_COLUMNS)
    figures = sources * rows.length * (8 + 4)
    # Keys of several rows; base, source, and the pairs that are sorted, twice.
    scratch = rows.length * (4 * columns + 4 + 4 + 8 + 8) + 2 * 4 * columns
    return figures + scratch + 8 * (MAX_BUCKETS + 1) + sources * 4 * (tile_elements + 3)
