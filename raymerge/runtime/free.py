"""What a free rule looks at a tensor through: whole sweeps, each tile handed to a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from raymerge.kernels.constants import LANES
from raymerge.kernels.feed import Work
from raymerge.kernels.reduce import close_block, new_sums
from raymerge.kernels.threshold import NOTHING
from raymerge.kernels.tile import Counts, Figure, Kernels, Selectors, Tile
from raymerge.plan.graph import TensorNode
from raymerge.runtime.figures import largest
from raymerge.runtime.inputs import Inputs
from raymerge.runtime.selection import select

Reduce = Callable[[Iterable[Tile], Work], None]
"""Hands tiles to a kernel, and raises for a NaN or an Inf that it reports."""


class TensorSweeps:
    """One tensor's inputs, swept for a rule. See `methods.free.Sweeps`."""

    def __init__(self, node: TensorNode, inputs: Inputs, kernels: Kernels, reduce: Reduce) -> None:
        self.shape = node.slot.shape
        self.sources = len(node.inputs) - 1
        self._inputs = inputs
        self._kernels = kernels
        self._reduce = reduce

    def reduce(self, kernel: str, *figures: Figure) -> None:
        """See `Sweeps.reduce`."""
        self.reduce_tiles(kernel, self._inputs.sweep(), figures)

    def reduce_tiles(self, kernel: str, tiles: Iterable[Tile], figures: Sequence[Figure]) -> None:
        """Hand some tiles to a reduction."""
        self._reduce(tiles, lambda tile: self._kernels.reduce(kernel, tile, figures))

    def sums(self, kernel: str, number: int, *figures: Figure) -> npt.NDArray[np.float64]:
        """See `Sweeps.sums`."""
        sums = new_sums(number)
        self.reduce(kernel, *figures, sums)
        close_block(sums)
        return sums[:, LANES]

    def largest(self, values: str, share: float, *figures: Figure) -> Selectors:
        """See `Sweeps.largest`."""
        if share >= 1:
            return largest([None], [0])

        def ranks(entries: int, zeros: int) -> list[int]:
            return [int(share * (entries - zeros))]

        if share <= 0:
            return largest([NOTHING], [0])
        counting = _Counting(self, values, figures)
        (found,) = select(self._inputs, counting, ranks, kinds=1, zeros=True)
        return largest([found or NOTHING], [0])

    def ranked(
        self, values: str, ranks: Callable[[int], Sequence[int]], *figures: Figure
    ) -> list[np.float32]:
        """See `Sweeps.ranked`."""
        if not self._inputs.elements:
            return [np.float32(0)] * len(ranks(1))
        counting = _Counting(self, values, figures)
        found = select(self._inputs, counting, lambda entries, _: ranks(entries), kinds=1)
        bits = np.array([one.bits for one in found if one is not None], np.uint32)
        return list(bits.view(np.float32))


class _Counting:
    """Counts the bits of one kind of values. See `selection.Counting`."""

    def __init__(self, sweeps: TensorSweeps, values: str, figures: Sequence[Figure]) -> None:
        self._sweeps = sweeps
        self._values = values
        self._figures = figures

    def count_high(self, tiles: Iterable[Tile], counts: Counts) -> None:
        """Upper bits."""
        self._sweeps.reduce_tiles(f"{self._values}.high", tiles, (*self._figures, counts))

    def count_low(self, tiles: Iterable[Tile], bins: Sequence[int], counts: Counts) -> None:
        """Lower bits inside each bin, and what lies above it."""
        figures = (*self._figures, np.array(bins, np.int64), counts)
        self._sweeps.reduce_tiles(f"{self._values}.low", tiles, figures)
