"""A free rule run without the engine: sweeps over stored tensors, selection in two exact passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.constants import HIGH_BINS, LANES, LOW_COLUMNS
from raymerge.kernels.reduce import close_block, new_sums
from raymerge.kernels.threshold import NOTHING, Threshold, high_bin, threshold
from raymerge.kernels.tile import Figure, Kernels, Selectors
from raymerge.methods.free import FreeRule
from tests.oracles import Doubles
from tests.strategies import Stored, cut, keep_all, keep_largest


class StoredSweeps:
    """What `methods.free.Sweeps` says, over tensors in memory; `reports` has what kernels said."""

    def __init__(
        self,
        kernels: Kernels,
        inputs: Sequence[Stored],
        shape: tuple[int, ...],
        step: int | None = None,
    ) -> None:
        self.shape = shape
        self.sources = len(inputs) - 1
        self.reports: list[int] = []
        self._kernels = kernels
        self._inputs = inputs
        self._step = step

    def reduce(self, kernel: str, *figures: Figure) -> None:
        """One sweep."""
        for tile in cut(self._inputs, self._step):
            self.reports.append(self._kernels.reduce(kernel, tile, figures))

    def sums(self, kernel: str, number: int, *figures: Figure) -> Doubles:
        """One sweep of sums."""
        sums = new_sums(number)
        self.reduce(kernel, *figures, sums)
        close_block(sums)
        return sums[:, LANES]

    def largest(self, values: str, share: float, *figures: Figure) -> Selectors:
        """Selectors of the largest values that are not 0."""
        if share >= 1:
            return keep_all(1)
        zeros = np.zeros((1, LOW_COLUMNS), np.int64)
        self.reduce(f"{values}.low", *figures, np.zeros(1, np.int64), zeros)
        rank = int(share * (self._inputs[0].size - int(zeros[0, 0])))
        found = self._values(values, [rank], figures)[0] if rank else NOTHING
        return keep_largest([found])

    def ranked(
        self, values: str, ranks: Callable[[int], Sequence[int]], *figures: Figure
    ) -> list[np.float32]:
        """Values of given ranks."""
        found = self._values(values, ranks(self._inputs[0].size), figures)
        return list(np.array([one.bits for one in found], np.uint32).view(np.float32))

    def _values(
        self, values: str, ranks: Sequence[int], figures: Sequence[Figure]
    ) -> list[Threshold]:
        high = np.zeros((1, HIGH_BINS), np.int64)
        self.reduce(f"{values}.high", *figures, high)
        bins = [high_bin(high[0], rank) for rank in ranks]
        low = np.zeros((len(bins), LOW_COLUMNS), np.int64)
        self.reduce(f"{values}.low", *figures, np.array(bins, np.int64), low)
        found = [threshold(*row) for row in zip(low, bins, ranks, strict=True)]
        exact = [one for one in found if one is not None]
        assert len(exact) == len(found), "a bin that was counted exactly holds no such value"
        return exact


def run_free(
    kernels: Kernels,
    inputs: Sequence[Stored],
    rule: FreeRule,
    *,
    shape: tuple[int, ...] | None = None,
    dtype: DType = DType.F32,
    step: int | None = None,
) -> tuple[bytes, list[int]]:
    """The bytes a rule makes of one tensor, a vector unless `shape` says otherwise; and reports."""
    rule = rule.for_shape(shape or (inputs[0].size,))
    sweeps = StoredSweeps(kernels, inputs, shape or (inputs[0].size,), step)
    figures = rule.figures(sweeps)
    parts = []
    for tile in cut(inputs, step):
        out = np.zeros(dtype.num_bytes([tile.count]), np.uint8)
        sweeps.reports.append(kernels.apply(rule.kernel, tile, figures, out=out, dtype=dtype))
        parts.append(out.tobytes())
    return b"".join(parts), sweeps.reports
