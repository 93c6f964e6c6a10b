"""The numba kernels behind the interface of `tile.Kernels`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels import delta, grouped, rank, reduce, select, span
from raymerge.kernels.delta_shared import DeltaTrials
from raymerge.kernels.floats import CODES
from raymerge.kernels.free import FREE_KERNELS
from raymerge.kernels.groups import Groups, GroupSums
from raymerge.kernels.tile import (
    Bytes,
    Counts,
    DeltaPass,
    Figure,
    Ranked,
    Selectors,
    Sums,
    Tile,
)

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class CpuKernels:
    """One fused loop per pass, on the calling thread, with the GIL released."""

    def gram(self, tile: Tile, *, relative: bool, sums: Sums) -> int:
        """See `Kernels.gram`."""
        return int(reduce.gram_tile(*_inputs(tile), relative, tile.first, tile.count, sums))

    def group_gram(self, tile: Tile, groups: Groups, *, relative: bool, sums: GroupSums) -> int:
        """See `Kernels.group_gram`."""
        within = groups.by_row, groups.stride, tile.first, tile.count
        return int(
            grouped.group_gram_tile(*_inputs(tile), relative, *within, sums.totals, sums.lanes)
        )

    def count_high(self, tile: Tile, counts: Counts) -> int:
        """See `Kernels.count_high`."""
        return int(select.count_high(*_inputs(tile), tile.count, counts))

    def count_low(self, tile: Tile, bins: Sequence[int], counts: Counts) -> int:
        """See `Kernels.count_low`."""
        wanted = np.array(bins, np.int64)
        return int(select.count_low(*_inputs(tile), tile.count, wanted, counts))

    def norms(
        self, tile: Tile, selectors: Selectors, sums: Sums, ranked: Ranked | None = None
    ) -> None:
        """See `Kernels.norms`."""
        inputs = _inputs(tile)
        factors = _factors(*inputs, tile, selectors, ranked)
        delta.norm_tile(*inputs, tile.first, tile.count, selectors, factors, sums)

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

    def group_span(
        self,
        tile: Tile,
        groups: Groups,
        coefficients: npt.NDArray[np.float32],
        *,
        relative: bool,
        out: Bytes,
        dtype: DType,
    ) -> int:
        """See `Kernels.group_span`."""
        within = tile.first, tile.count, groups.by_row, groups.stride
        target = _address(out), CODES[dtype]
        return int(
            grouped.group_span_tile(*_inputs(tile), *within, coefficients, relative, *target)
        )

    def delta(self, tile: Tile, figures: DeltaPass, *, out: Bytes, dtype: DType) -> int:
        """See `Kernels.delta`."""
        inputs = _inputs(tile)
        return int(
            delta.delta_tile(
                *inputs,
                tile.first,
                tile.count,
                figures.selectors,
                figures.shares,
                figures.weights,
                figures.elect,
                figures.normalize,
                figures.scale,
                _factors(*inputs, tile, figures.selectors, figures.ranked),
                _address(out),
                CODES[dtype],
            )
        )

    def span_trials(
        self,
        tile: Tile,
        coefficients: npt.NDArray[np.float32],
        *,
        relative: bool,
        outs: Sequence[Bytes],
        dtype: DType,
    ) -> list[int]:
        """See `Kernels.span_trials`."""
        from raymerge.kernels.span_trials import span_trials_tile

        targets = np.array([_address(out) for out in outs], np.int64)
        reports = np.empty(len(outs), np.int64)
        given = *_inputs(tile), tile.count, coefficients, relative
        span_trials_tile(*given, targets, CODES[dtype], reports)
        found: list[int] = reports.tolist()
        return found

    def delta_trials(
        self, tile: Tile, trials: DeltaTrials, *, outs: Sequence[Bytes], dtype: DType
    ) -> list[int]:
        """See `Kernels.delta_trials`."""
        from raymerge.kernels.delta_trials import delta_trials_tile

        addresses, codes = _inputs(tile)
        # As if each row of kept entries had an input of its own.
        of_rows = np.concatenate(([0], trials.sources))
        factors = _factors(
            addresses[of_rows], codes[of_rows], tile, trials.selectors, trials.ranked
        )
        targets = np.array([(_address(outs[i]), CODES[dtype]) for i in trials.order], np.int64)
        reports = np.empty(len(outs), np.int64)
        delta_trials_tile(
            addresses,
            codes,
            tile.first,
            tile.count,
            trials.sources,
            trials.selectors,
            factors,
            trials.rows,
            trials.shares,
            trials.weights,
            trials.ways,
            trials.mixes,
            trials.scales,
            targets,
            reports,
        )
        found = dict(zip(trials.order, reports.tolist(), strict=True))
        return [found[position] for position in range(len(outs))]

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


def _factors(
    addresses: Int64s, codes: Int64s, tile: Tile, selectors: Selectors, ranked: Ranked | None
) -> Floats:
    """What the entries of each source are multiplied by, where they are drawn by rank."""
    if ranked is None:
        return np.empty((len(selectors), 0), np.float32)
    factors = np.empty((len(selectors), (tile.count + 3) // 4 * 4), np.float32)
    place = tile.first, tile.count, ranked.rows.length, ranked.rows.stride
    rank.rank_tile(addresses, codes, *place, selectors, ranked.limits, ranked.factors, factors)
    return factors


def _address(buffer: Bytes) -> int:
    # `buffer.ctypes.data` builds a ctypes object first, ten times slower.
    address: int = buffer.__array_interface__["data"][0]
    return address
