"""A tensor with a row per token, its rows put where the output's vocabulary has them.

What goes where is kept as runs, stretches of consecutive rows that come from consecutive rows: a
few where a tokenizer was extended, one per row at worst, where two list the same tokens in another
order. A unit carries the runs of its tensors, sixteen bytes each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from raymerge.checkpoint.ties import token_axis
from raymerge.plan.graph import Derived, Input, Read, TensorNode
from raymerge.tokenizer.rows import MEAN, NONE, Table, runs_of

Runs = npt.NDArray[np.int32]
"""Rows of `first row, number of rows, part, first row there`, by first row. Runs with the same
first row are averaged; the part may be `NONE`, which is zeros, or `MEAN`."""

CHUNK_ELEMENTS = 2**16
"""Elements that are averaged at once."""


class Stretches:
    """The runs of a table by the rows that they fill: those of one first row are averaged."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._firsts, self._members = np.unique(runs[:, 0], return_index=True)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: int) -> Runs:
        """The runs of a stretch."""
        after = index + 1
        stop = int(self._members[after]) if after < len(self._members) else len(self._runs)
        return self._runs[int(self._members[index]) : stop]

    def touched(self, first: int, stop: int) -> range:
        """Stretches that the rows `[first, stop)` are in."""
        if first >= stop:
            return range(0)
        begin = int(np.searchsorted(self._firsts, first, side="right")) - 1
        return range(begin, int(np.searchsorted(self._firsts, stop - 1, side="right")))

    def rows(self, index: int) -> tuple[int, int]:
        """Half-open range of the rows of a stretch."""
        first, count = map(int, self._runs[int(self._members[index]), :2])
        return first, first + count


@dataclass(frozen=True, slots=True, kw_only=True)
class Remapped(Derived):
    """Rows of one source's tensor, completed by rows of other sources' tensors of that name."""

    parts: tuple[Input, ...]
    """What rows are taken from, in recipe order."""
    table: bytes
    """`Runs`, int32."""

    @property
    def runs(self) -> Runs:
        """The table as an array of shape (number of runs, 4)."""
        return decode(self.table)

    @property
    def row_elements(self) -> int:
        """Elements of a row."""
        return prod(self.shape[token_axis(self.name, self.shape) + 1 :])

    @property
    def read_bytes(self) -> int:
        """What one sweep over it reads."""
        runs = self.runs
        once = 0
        for position, part in enumerate(self.parts):
            rows = int(runs[runs[:, 2] == position, 1].sum())
            whole = part.shape[token_axis(part.name, part.shape)]
            once += part.read_bytes * rows // max(1, whole)
        return 2 * once if (runs[:, 2] == MEAN).any() else once

    @property
    def how(self) -> str:
        """How it is worked out, in a few words for `plan --graph`."""
        runs = self.runs
        _, first, members = np.unique(runs[:, 0], return_index=True, return_counts=True)
        kinds, counts = runs[first, 2], runs[first, 1]
        own = np.array([part.source == self.source for part in self.parts])[np.maximum(kinds, 0)]
        alone = (members == 1) & (kinds >= 0)
        numbers = {
            "its own": counts[alone & own],
            "of another source": counts[alone & ~own],
            "averaged": counts[members > 1],
            "zero": counts[kinds == NONE],
            "mean of the others": counts[kinds == MEAN],
        }
        rows = {what: int(number.sum()) for what, number in numbers.items()}
        return "rows by token: " + ", ".join(f"{n} {what}" for what, n in rows.items() if n)

    @property
    def identity(self) -> tuple[object, ...]:
        """What names it in the plan's digest."""
        parts = tuple(part.identity for part in self.parts)
        rows = hashlib.sha256(self.table).hexdigest()
        return (
            type(self).__name__,
            self.source,
            self.name,
            self.dtype.value,
            self.shape,
            parts,
            rows,
        )

    @property
    def results(self) -> tuple[TensorNode, ...]:
        """See `Derived.results`."""
        return tuple({id(node): node for part in self.parts for node in part.results}.values())

    def scratch_bytes(self, tile_elements: int) -> int:
        """Upper bound of what a thread needs to fill a tile, besides the tile."""
        chunk = min(tile_elements, CHUNK_ELEMENTS)
        nested = max(part.scratch_bytes(tile_elements) for part in self.parts)
        # A chunk as stored, widened and summed; the mean's sums and its row; the list of runs.
        return chunk * (8 + 4 + 4 + 4) + 2 * 8 * self.row_elements + 2 * len(self.table) + nested


def decode(table: bytes) -> Runs:
    """The runs of an encoded table."""
    return np.frombuffer(table, np.int32).reshape(-1, 4)


def encode(table: Table, parts: Mapping[int, int]) -> bytes:
    """The runs of a table.

    Args:
        table: See `tokenizer.rows`.
        parts: Position of each used column's tensor among `Remapped.parts`.
    """
    runs: list[tuple[int, int, int, int]] = []
    for first, count in runs_of(table):
        columns = np.flatnonzero(table[first] >= 0).tolist()
        runs += [(first, count, parts[c], int(table[first, c])) for c in columns]
        if not columns:
            kind = MEAN if table[first, 0] == MEAN else NONE
            runs.append((first, count, kind, 0))
    return np.array(runs, np.int32).reshape(-1, 4).tobytes()


def used_columns(table: Table) -> list[int]:
    """Sources that supply rows, in recipe order."""
    return [int(column) for column in np.flatnonzero((table >= 0).any(axis=0))]


def stored(parts: tuple[Input, ...]) -> tuple[Read, ...]:
    """The stored tensors behind `parts`, the one with most bytes first."""
    reads = (read for part in parts for read in part.reads)
    return tuple(sorted(reads, key=lambda read: -read.read_bytes))
