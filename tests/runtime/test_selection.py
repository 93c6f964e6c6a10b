"""Values of given ranks, exactly, however wrong the sample is that names their bins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.constants import HIGH_BINS, LOW_BINS
from raymerge.kernels.tile import Counts, Tile
from raymerge.runtime.selection import select
from tests.oracles import Floats
from tests.strategies import cut, float_arrays, quick, stored


@dataclass
class Values:
    """One kind of values in memory, and counters of their bits that know nothing of kernels."""

    values: Floats
    sampled: slice
    sweeps: int = 0

    @property
    def elements(self) -> int:
        """Entries."""
        return self.values.size

    @elements.setter
    def elements(self, value: int) -> None:
        raise NotImplementedError

    def sweep(self) -> Iterator[Tile]:
        """Everything, as one tile."""
        self.sweeps += 1
        yield from cut([stored(self.values)])

    def sample(self) -> Iterator[Tile]:
        """Whatever part the test says."""
        yield from cut([stored(self.values[self.sampled])])

    def count_high(self, tiles: Iterable[Tile], counts: Counts) -> None:
        """Upper bits."""
        for tile in tiles:
            counts[0] += np.bincount(self._bits(tile) >> 16, minlength=HIGH_BINS)

    def count_low(self, tiles: Iterable[Tile], bins: Sequence[int], counts: Counts) -> None:
        """Lower bits inside each bin, and what lies above it."""
        for bits in map(self._bits, tiles):
            for row, wanted in zip(counts, bins, strict=True):
                if wanted >= 0:
                    inside = bits[bits >> 16 == wanted] % LOW_BINS
                    row[:LOW_BINS] += np.bincount(inside, minlength=LOW_BINS)
                    row[LOW_BINS] += (bits >> 16 > wanted).sum()

    def _bits(self, tile: Tile) -> Counts:
        assert tile.dtypes == [DType.F32]
        return tile.buffers[0].view(np.uint32).astype(np.int64) & 0x7FFFFFFF


@quick
@given(
    values=float_arrays(),
    share=st.floats(0, 1),
    begin=st.integers(0, 700),
    size=st.integers(0, 700),
)
def test_a_share_of_what_is_not_0_is_found_whatever_the_sample(
    values: Floats, share: float, begin: int, size: int
) -> None:
    one = Values(np.abs(values), slice(begin, begin + size))
    rank = int(share * np.count_nonzero(values))

    (found,) = select(
        one, one, lambda entries, zeros: [int(share * (entries - zeros))], kinds=1, zeros=True
    )

    if not rank:
        assert found is None
        return
    ranked = np.sort(one.values)[::-1]
    assert found is not None
    assert np.uint32(found.bits).view(np.float32) == ranked[rank - 1]
    assert found.tied == (ranked == ranked[rank - 1]).sum()
    assert found.kept == rank - (ranked > ranked[rank - 1]).sum()


@pytest.mark.parametrize(
    ("sampled", "sweeps"), [(slice(0, 1000), 1), (slice(0, 10), 3), (slice(0, 0), 3)]
)
def test_a_sample_that_is_like_the_rest_saves_two_sweeps(sampled: slice, sweeps: int) -> None:
    values = np.geomspace(1e-6, 1, 1000).astype(np.float32)
    one = Values(values, sampled)
    found = select(one, one, lambda entries, _: [entries // 4, entries // 2], kinds=1)

    assert one.sweeps == sweeps
    assert [limit and limit.bits for limit in found] == values.view(np.uint32)[[750, 500]].tolist()
