"""Values of given ranks over one tensor, exactly: a sample names their bins, a sweep proves it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np

from raymerge.kernels.constants import HIGH_BINS, LOW_COLUMNS
from raymerge.kernels.threshold import Threshold, high_bin, threshold
from raymerge.kernels.tile import Counts, Tile

Ranks = Callable[[int, int], Sequence[int]]
"""From a number of entries, and of zeros among them, to the ranks wanted: 1 is the largest value,
0 none at all."""


class Swept(Protocol):
    """One tensor's inputs, as often as they are needed."""

    @property
    def elements(self) -> int:
        """Elements of the tensor."""

    def sweep(self) -> Iterator[Tile]:
        """Every tile in order."""

    def sample(self) -> Iterator[Tile]:
        """Some of the entries, or all."""


class Counting(Protocol):
    """Adds tiles to `counts`, and raises for a NaN or an Inf in them."""

    def count_high(self, tiles: Iterable[Tile], counts: Counts) -> None:
        """Upper bits of each kind of value."""

    def count_low(self, tiles: Iterable[Tile], bins: Sequence[int], counts: Counts) -> None:
        """Lower bits inside each bin, and what lies above it."""


def select(
    inputs: Swept, counting: Counting, ranks: Ranks, *, kinds: int, zeros: bool = False
) -> list[Threshold | None]:
    """The value of each rank, with the number of entries tied there; None for rank 0.

    A sample names the bin that holds each value and one sweep counts inside it. Where the counts
    prove the sample wrong two more sweeps find it: the result is the same.

    Args:
        inputs: The tensor.
        counting: Counts bits of its values.
        ranks: What is sought.
        kinds: Kinds of values, each with the same number of ranks, one after the other.
        zeros: Whether the ranks depend on the number of zeros. It is then counted, in the bin that
            zeros lie in, for one kind of values.
    """
    wanted: Sequence[int] = ()
    found: list[Threshold | None] = []
    for tiles in (inputs.sample, inputs.sweep):
        bins = _bins(tiles(), counting, ranks, wanted, kinds)
        low = np.zeros((len(bins) + zeros, LOW_COLUMNS), np.int64)
        counting.count_low(inputs.sweep(), [*bins, 0] if zeros else bins, low)
        wanted = ranks(inputs.elements, int(low[-1, 0]) if zeros else 0)
        found = [
            threshold(row, bin_, rank) if rank else None
            for row, bin_, rank in zip(low, bins, wanted, strict=False)
        ]
        if all(found[i] is not None for i, rank in enumerate(wanted) if rank):
            break
    return found


def _bins(
    tiles: Iterator[Tile], counting: Counting, ranks: Ranks, wanted: Sequence[int], kinds: int
) -> list[int]:
    """The high bin of each rank over these tiles, -1 where none is sought.

    `wanted` has the ranks once they are certain. Until then they are those of the tiles.
    """
    high = np.zeros((kinds, HIGH_BINS), np.int64)
    counting.count_high(tiles, high)
    counted = int(high[0].sum())
    # The lowest bin has the smallest subnormals too; the count that decides has zeros alone.
    sought = wanted or ranks(counted, int(high[0, 0]))
    return [
        high_bin(high[i * kinds // len(sought)], rank) if rank and counted else -1
        for i, rank in enumerate(sought)
    ]
