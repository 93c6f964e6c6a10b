"""The numba kernels behind the interface of `tile.Kernels`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels import delta, reduce, select, span
from raymerge.kernels.floats import CODES
from raymerge.kernels.free import FREE_KERNELS
from raymerge.kernels.tile import Bytes, Counts, DeltaPass, Figure, Selectors, Sums, Tile

Int64s = npt.NDArray[np.int64]


class CpuKernels:
    """One fused loop per pass, on the calling thread, with the GIL released."""

    def gram(self, tile: Tile, *, relative: bool, sums: Sums) -> int:
        """See `Kernels.gram`."""
        return int(reduce.gram_tile(*_inputs(tile), relative, tile.first, tile.count, sums))

    def count_high(self, tile: Tile, counts: Counts) -> int:
        """See `Kernels.count_high`."""
        return int(select.count_high(*_inputs(tile), tile.count, counts))

    def count_low(self, tile: Tile, bins: Sequence[int], counts: Counts) -> int:
        """See `Kernels.count_low`."""
        wanted = np.array(bins, np.int64)
        return int(select.count_low(*_inputs(tile), tile.count, wanted, counts))

    def norms(self, tile: Tile, selectors: Selectors, sums: Sums) -> None:
        """See `Kernels.norms`."""
        delta.norm_tile(*_inputs(tile), tile.first, tile.count, selectors, sums)

    def span(
        self,
        tile: Tile,
        coefficients: npt.NDArray[np.float32],
        *,
        relative: bool,
        out: Bytes,
        dtype: DType,
    ) -> int:
        """See `Kernels.span`."""
        target = _address(out), CODES[dtype]
        return int(span.span_tile(*_inputs(tile), tile.count, coefficients, relative, *target))

    def delta(self, tile: Tile, figures: DeltaPass, *, out: Bytes, dtype: DType) -> int:
        """See `Kernels.delta`."""
        return int(
            delta.delta_tile(
                *_inputs(tile),
                tile.first,
                tile.count,
                figures.selectors,
                figures.shares,
                figures.weights,
                figures.elect,
                figures.normalize,
                figures.scale,
                _address(out),
                CODES[dtype],
            )
        )

    def reduce(self, name: str, tile: Tile, figures: Sequence[Figure]) -> int:
        """See `Kernels.reduce`."""
        return int(FREE_KERNELS[name](*_inputs(tile), tile.first, tile.count, *figures))

    def apply(
        self, name: str, tile: Tile, figures: Sequence[Figure], *, out: Bytes, dtype: DType
    ) -> int:
        """See `Kernels.apply`."""
        target = _address(out), CODES[dtype]
        return int(FREE_KERNELS[name](*_inputs(tile), tile.first, tile.count, *figures, *target))


def _inputs(tile: Tile) -> tuple[Int64s, Int64s]:
    addresses = np.array([_address(buffer) for buffer in tile.buffers], np.int64)
    return addresses, np.array([CODES[dtype] for dtype in tile.dtypes], np.int64)


def _address(buffer: Bytes) -> int:
    # `buffer.ctypes.data` builds a ctypes object first, ten times slower.
    address: int = buffer.__array_interface__["data"][0]
    return address
