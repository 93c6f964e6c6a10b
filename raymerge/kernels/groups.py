"""Which elements of a tensor share coefficients, and the sums that give each group its own.

A span method may take its angles over the whole tensor, over every last-dim row or over every
dim-0 column. Of rows and columns there are many, so what is kept of each is its sums: the inner
products of the pairs of vectors.

The order of a row's sum is that of `reduce.py`, anchored at the row's start: element i of the row
goes to lane i mod 256, lanes are folded in halves, and rows longer than 2**20 have several blocks.
A column's elements lie far apart, and lanes for each of thousands of columns would fill the cache:
they are added one after another, in rising order. Neither depends on where a tile begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod

import numpy as np
import numpy.typing as npt

from raymerge.kernels.constants import LANES

Doubles = npt.NDArray[np.float64]


class Group(StrEnum):
    """What one Gram matrix is taken over."""

    TENSOR = "tensor"
    ROW = "row"
    COLUMN = "column"


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of one tensor.

    Flat index i is in row `i // size`, or in column `i % count`.
    """

    kind: Group
    count: int
    size: int
    """Elements of each."""

    @classmethod
    def of(cls, kind: Group, shape: Sequence[int]) -> Groups:
        """The groups of a tensor of this shape.

        A tensor that is one row, as every 1-D tensor is, or one column counts as a whole.
        """
        rows = (prod(shape[:-1]), shape[-1]) if shape else (1, 1)
        columns = (prod(shape[1:]), shape[0]) if shape else (1, 1)
        count, size = {Group.ROW: rows, Group.COLUMN: columns}.get(kind, (1, prod(shape)))
        return cls(kind if count != 1 else Group.TENSOR, count, size)

    @property
    def by_row(self) -> bool:
        """Whether groups are rows."""
        return self.kind is Group.ROW

    @property
    def stride(self) -> int:
        """Elements of a row, or the number of columns: after so many, the pattern repeats."""
        return self.size if self.by_row else self.count

    def nbytes(self, vectors: int) -> int:
        """Bytes of the sums and the float32 coefficients of `vectors` vectors."""
        pairs = vectors * (vectors + 1) // 2
        return self.count * (8 * pairs + 4 * vectors) + 8 * pairs * (LANES + 1)


@dataclass(frozen=True, slots=True)
class GroupSums:
    """Inner products of every pair of vectors, `pairs` in all, within every group."""

    totals: Doubles
    """`(pairs, groups)`, row by row of the upper triangle."""
    lanes: Doubles
    """State of the row that the last tile ended in, `(pairs, LANES + 1)`; all 0 between rows."""

    @classmethod
    def new(cls, groups: Groups, vectors: int) -> GroupSums:
        """Sums of nothing."""
        pairs = vectors * (vectors + 1) // 2
        return cls(np.zeros((pairs, groups.count)), np.zeros((pairs, LANES + 1)))

    def grams(self, vectors: int, start: int, stop: int) -> Doubles:
        """The Gram matrices of groups `[start, stop)`, `(stop - start, vectors, vectors)`.

        The entries of one place in the matrices are contiguous. Squared lengths are clamped at 0.
        """
        matrices = np.empty((vectors, vectors, stop - start))
        rows, columns = np.triu_indices(vectors)
        matrices[rows, columns] = matrices[columns, rows] = self.totals[:, start:stop]
        for i in range(vectors):
            np.maximum(matrices[i, i], 0.0, out=matrices[i, i])
        return np.moveaxis(matrices, -1, 0)
