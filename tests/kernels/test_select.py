"""Selection by histogram: exactly k entries, exactly the k largest, ties spread evenly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.constants import HIGH_BINS, LOW_BINS, LOW_COLUMNS
from raymerge.kernels.cpu import CpuKernels
from raymerge.kernels.delta import SEEN
from raymerge.kernels.threshold import NOTHING, Threshold, high_bin, kept_count, threshold
from raymerge.kernels.tile import Kernels
from raymerge.kernels.torch_kernels import TorchKernels
from tests.oracles import Floats, kept_largest
from tests.strategies import (
    Stored,
    cut,
    delta_figures,
    densities,
    find_thresholds,
    fine_tunes,
    float_arrays,
    keep_largest,
    quick,
    run_delta,
    stored,
    tensors,
)

KERNELS = pytest.mark.parametrize(
    "kernels", [CpuKernels(), TorchKernels("cpu")], ids=["numba", "torch"]
)
BOTH = (CpuKernels(), TorchKernels("cpu"))


def zero_base(values: npt.ArrayLike) -> list[Stored]:
    """The values as the task vector of a base of zeros."""
    array = np.array(values, np.float32)
    return [stored(np.zeros(array.size)), stored(array)]


def kept_entries(
    kernels: Kernels, inputs: list[Stored], limit: Threshold, *, step: int | None = None
) -> Floats:
    """What a delta pass adds to a base of zeros: the entries that stay, 0 elsewhere."""
    figures = delta_figures(keep_largest([limit]), [1.0])
    raw, _ = run_delta(kernels, inputs, figures, step=step)
    return np.frombuffer(raw, np.float32)


@pytest.mark.parametrize(
    ("density", "size", "count"),
    [
        pytest.param(0.29, 100, 28, id="floor of the float product, as mergekit"),
        pytest.param(0.1, 4096**2, 1677721, id="floor"),
        pytest.param(0.001, 10, 1, id="at least one"),
        pytest.param(1e-300, 1, 1, id="at least one of one"),
        pytest.param(0.0, 10, 0, id="none at density 0"),
        pytest.param(1.0, 7, 7, id="all at density 1"),
        pytest.param(0.5, 0, 0, id="none of nothing"),
    ],
)
def test_the_count_is_mergekit_s(density: float, size: int, count: int) -> None:
    assert kept_count(density, size) == count


@quick
@given(values=float_arrays(), density=densities)
def test_the_threshold_is_the_kth_largest_magnitude(values: Floats, density: float) -> None:
    inputs = zero_base(values)
    magnitudes = np.sort(np.abs(values))[::-1]
    for kernels in BOTH:
        (found,) = find_thresholds(kernels, inputs, [density])
        if density == 0:
            assert found == NOTHING
            continue
        keep = max(1, int(density * values.size))
        lowest = magnitudes[keep - 1]
        assert found.bits == int(lowest.view(np.uint32))
        assert found.tied == int((magnitudes == lowest).sum())
        assert found.kept == keep - int((magnitudes > lowest).sum())


@quick
@given(values=float_arrays(), density=densities)
def test_exactly_the_entries_of_the_full_sort_stay(values: Floats, density: float) -> None:
    inputs = zero_base(values)
    expected = np.where(kept_largest(values, density), values, np.float32(0))
    for kernels in BOTH:
        (found,) = find_thresholds(kernels, inputs, [density])
        assert np.array_equal(kept_entries(kernels, inputs, found), expected)


@quick
@given(inputs=tensors(min_inputs=2), share=densities)
def test_each_source_has_its_own_threshold_whatever_its_type(
    inputs: list[Stored], share: float
) -> None:
    asked = [share, *([0.5] * (len(inputs) - 2))]
    base, *sources = (source.values for source in inputs)
    for kernels in BOTH:
        found = find_thresholds(kernels, inputs, asked)
        for source, density, limit in zip(sources, asked, found, strict=True):
            count = int(kept_largest(source - base, density).sum())
            above = np.abs(source - base).view(np.uint32) > limit.bits
            assert int(above.sum()) + limit.kept == count


@KERNELS
@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 4095, 4096, 4097, 20_001])
@pytest.mark.parametrize("density", [0.0, 0.003, 0.2, 0.5, 1.0])
def test_exactly_k_entries_stay(kernels: Kernels, size: int, density: float) -> None:
    """Of magnitudes none of which is 0, so that what stays can be counted."""
    values = np.random.default_rng(size).choice([0.25, -0.25, 0.5, -1.0, 3.0], size)
    inputs = zero_base(values)
    (found,) = find_thresholds(kernels, inputs, [density])

    assert np.count_nonzero(kept_entries(kernels, inputs, found)) == kept_count(density, size)


@KERNELS
@pytest.mark.parametrize("q", [0, 1, 2, 3, 7, 12, 13])
def test_of_m_tied_entries_those_stay_where_the_spread_steps(kernels: Kernels, q: int) -> None:
    m = 13
    values = np.tile(np.array([0.5, 2.0, -0.5], np.float32), m)[: 3 * m]
    values[2::3] = 0
    tied = np.flatnonzero(np.abs(values) == 0.5)
    limit = Threshold(bits=int(np.float32(0.5).view(np.uint32)), kept=q, tied=m)

    stays = kept_entries(kernels, zero_base(values), limit)[tied] != 0

    assert len(tied) == m
    assert stays.tolist() == [(j + 1) * q // m > j * q // m for j in range(m)]


@KERNELS
def test_tied_entries_are_spread_over_the_whole_tensor(kernels: Kernels) -> None:
    """Every tenth of a constant task vector keeps a fifth of its entries."""
    inputs = zero_base(np.ones(10_000))
    (found,) = find_thresholds(kernels, inputs, [0.2])
    kept = kept_entries(kernels, inputs, found).reshape(10, 1000)

    assert kept.sum(axis=1).tolist() == [200] * 10


@KERNELS
@pytest.mark.parametrize("step", [256, 4096, 4352, 65_536])
@pytest.mark.parametrize("density", [0.01, 0.2, 0.7])
def test_tiles_change_neither_the_threshold_nor_who_stays(
    kernels: Kernels, step: int, density: float
) -> None:
    """On bfloat16 task vectors, of which many are tied at the threshold."""
    inputs = fine_tunes(2, 30_000)
    found = find_thresholds(kernels, inputs, [density, 0.5])
    figures = delta_figures(keep_largest(found), [1.0, 1.0])

    assert found[0].tied > 100
    assert find_thresholds(kernels, inputs, [density, 0.5], step=step) == found
    assert (
        run_delta(kernels, inputs, figures, step=step)[0] == run_delta(kernels, inputs, figures)[0]
    )


@KERNELS
@pytest.mark.parametrize(
    ("values", "density", "expected"),
    [
        pytest.param([0.0] * 6, 0.5, [0.0] * 6, id="all zero"),
        pytest.param([0.0, 0, 5, 0, 0, 0], 0.5, [0.0, 0, 5, 0, 0, 0], id="zeros fill the count"),
        pytest.param([2.0, -2, 2, -2], 0.5, [0.0, -2, 0, -2], id="all equal"),
        pytest.param([3.0], 0.2, [3.0], id="one element"),
        pytest.param([3.0], 0.0, [0.0], id="one element at density 0"),
        pytest.param([1.0, 1, 1, 1, 2, 2], 0.5, [0.0, 0, 0, 1, 2, 2], id="mergekit's example"),
        pytest.param([1e-45, 2e-45, 0.0, -3e-45], 0.25, [0.0, 0, 0, -3e-45], id="subnormals"),
        pytest.param([1.0, np.nextafter(np.float32(1), np.float32(2))], 0.5, None, id="one ulp"),
    ],
)
def test_small_cases(
    kernels: Kernels, values: list[float], density: float, expected: list[float] | None
) -> None:
    inputs = zero_base(values)
    (found,) = find_thresholds(kernels, inputs, [density])
    wanted = [0.0, values[1]] if expected is None else expected

    assert np.array_equal(kept_entries(kernels, inputs, found), np.array(wanted, np.float32))


@KERNELS
def test_a_difference_that_overflows_is_the_largest_of_all(kernels: Kernels) -> None:
    """Two finite values may lie further apart than float32 reaches."""
    inputs = [stored([-3e38, 0, 0, 0]), stored([3e38, 3e38, 1, 2])]
    high = np.zeros((1, HIGH_BINS), np.int64)
    (tile,) = cut(inputs)

    assert kernels.count_high(tile, high) == -1
    assert high_bin(high[0], 1) == 0x7F80
    (found,) = find_thresholds(kernels, inputs, [0.25])
    assert found == Threshold(bits=0x7F800000, kept=1, tied=1)


@KERNELS
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("places", "report"),
    [
        pytest.param({}, -1, id="all finite"),
        pytest.param({0: 0}, 0, id="base"),
        pytest.param({2: 9000}, 2, id="last source, last block"),
        pytest.param({2: 0, 1: 9000}, 1, id="the first input, not the first block"),
        pytest.param({1: 0, 0: 9000}, 0, id="the base, though a source's comes earlier"),
    ],
)
def test_counting_reports_the_first_input_that_is_not_finite(
    kernels: Kernels, bad: float, places: dict[int, int], report: int
) -> None:
    values = np.ones((3, 9001), np.float32)
    for source, index in places.items():
        values[source, index] = bad
    (tile,) = cut([stored(row, DType.BF16) for row in values])

    assert kernels.count_high(tile, np.zeros((2, HIGH_BINS), np.int64)) == report
    assert kernels.count_low(tile, [-1, -1], np.zeros((2, LOW_COLUMNS), np.int64)) == report


def test_counts_of_several_tensors_select_from_all_of_them() -> None:
    """The counts of a whole model are the sums of its tensors' counts."""
    values = np.random.default_rng(5).normal(size=3000).astype(np.float32)
    kernels = CpuKernels()
    (whole,) = find_thresholds(kernels, zero_base(values), [0.3])
    high = np.zeros((1, HIGH_BINS), np.int64)
    low = np.zeros((1, LOW_COLUMNS), np.int64)
    parts = [next(cut(zero_base(part))) for part in np.split(values, [7, 1500])]
    for tile in parts:
        kernels.count_high(tile, high)
    for tile in parts:
        kernels.count_low(tile, [high_bin(high[0], 900)], low)

    assert threshold(low[0], high_bin(high[0], 900), 900) == whole


@quick
@given(values=float_arrays(), bin_=st.integers(0, HIGH_BINS - 1), choose=st.data())
def test_the_counts_of_a_bin_prove_it_right_or_wrong(
    values: Floats, bin_: int, choose: st.DataObject
) -> None:
    """A bin that was guessed gives the exact threshold or none, never another."""
    inputs = zero_base(values)
    bits = np.abs(values).view(np.uint32)
    bin_ = choose.draw(st.sampled_from([bin_, *(bits >> 16).tolist()]))
    keep = choose.draw(st.integers(1, values.size))
    lowest = int(np.sort(bits)[::-1][keep - 1])
    for kernels in BOTH:
        low = np.zeros((1, LOW_COLUMNS), np.int64)
        for tile in cut(inputs, 256):
            assert kernels.count_low(tile, [bin_], low) == -1
        assert int(low[0, LOW_BINS]) == int((bits >> 16 > bin_).sum())
        assert int(low[0, :LOW_BINS].sum()) == int((bits >> 16 == bin_).sum())
        found = threshold(low[0], bin_, keep)
        assert (found is not None) == (lowest >> 16 == bin_)
        assert found is None or found.bits == lowest


@KERNELS
def test_a_source_without_a_bin_is_not_counted(kernels: Kernels) -> None:
    low = np.zeros((2, LOW_COLUMNS), np.int64)
    (tile,) = cut(fine_tunes(2, 5000, dtypes=[DType.F32]))
    kernels.count_low(tile, [-1, 0x3900], low)

    assert low[0].sum() == 0
    assert low[1].sum() > 0


@KERNELS
def test_the_spread_is_carried_from_tile_to_tile(kernels: Kernels) -> None:
    """Of 100 tied entries 30 stay; after 50 of them, 50 * 30 mod 100 is carried."""
    inputs = zero_base(np.ones(50))
    figures = delta_figures(keep_largest([Threshold(bits=0x3F800000, kept=30, tied=100)]), [1.0])
    (tile,) = cut(inputs)
    kernels.delta(tile, figures, out=np.zeros(200, np.uint8), dtype=DType.F32)

    assert int(figures.selectors[0, SEEN]) == 50 * 30 % 100


@quick
@given(m=st.integers(1, 200), q=st.integers(0, 200))
def test_exactly_q_of_m_tied_entries_stay(m: int, q: int) -> None:
    q = min(q, m)
    limit = Threshold(bits=0x3F800000, kept=q, tied=m)
    for kernels in BOTH:
        assert kept_entries(kernels, zero_base(np.ones(m)), limit).sum() == q
