"""Sums in one order, whatever the tiles: bit by bit what the contract's order gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.kernels.reduce import REDUCTION_BLOCK, gram_matrix, new_sums, num_pairs
from raymerge.kernels.threshold import Threshold
from raymerge.kernels.tile import Kernels
from raymerge.kernels.torch_kernels import TorchKernels
from tests.oracles import Doubles, Floats, inner, kept_largest, l1_norm, ordered_sum
from tests.strategies import (
    MERGEABLE,
    Stored,
    cut,
    find_gram,
    find_norms,
    find_thresholds,
    fine_tunes,
    keep_all,
    keep_drawn,
    keep_largest,
    quick,
    stored,
    tensors,
)

KERNELS = pytest.mark.parametrize(
    "kernels", [CpuKernels(), TorchKernels("cpu")], ids=["numba", "torch"]
)
BOTH = (CpuKernels(), TorchKernels("cpu"))


def gram_by_oracle(vectors: list[Floats]) -> Doubles:
    return np.array([[inner(left, right) for right in vectors] for left in vectors])


def relative_to_first(inputs: list[Stored]) -> list[Floats]:
    base, *sources = (source.values for source in inputs)
    return [source - base for source in sources]


def across_a_block_edge() -> list[Stored]:
    """Two vectors slightly longer than a reduction block, of very different magnitudes."""
    rng = np.random.default_rng(0)
    size = REDUCTION_BLOCK + 4096 + 300
    scale = 10.0 ** rng.integers(-6, 6, size)
    return [
        stored(rng.normal(size=size) * scale, DType.F32),
        stored(rng.normal(size=size), DType.BF16),
    ]


def test_the_order_of_addition_shows() -> None:
    """Were every order to give the same bits, the tests below would test nothing."""
    left, right = (source.values.astype(np.float64) for source in across_a_block_edge())

    assert ordered_sum(left * right) != float((left * right).sum())
    assert ordered_sum(left * right) != ordered_sum((left * right)[::-1])


@pytest.mark.parametrize(
    ("ones", "total"),
    [
        pytest.param([256, 512], 2.0**53, id="a lane rises one by one"),
        pytest.param([128, 64], 2.0**53, id="halves fold one by one"),
        pytest.param([1, 129], 2.0**53 + 2, id="a lane meets its other half first"),
        pytest.param([2**20, 2**20 + 256], 2.0**53 + 2, id="a block is summed before it is added"),
        pytest.param([2**20, 2**21], 2.0**53, id="blocks are added one by one"),
        pytest.param([1, 257], 2.0**53 + 2, id="a lane runs through the block"),
    ],
)
def test_the_oracle_adds_in_the_contract_s_order(ones: list[int], total: float) -> None:
    """Beside 2**53 at index 0 a single 1 is lost in rounding, and two that met before are not."""
    terms = np.zeros(2**21 + 1)
    terms[0] = 2.0**53
    terms[ones] = 1

    assert ordered_sum(terms) == total


@quick
@given(inputs=tensors(), relative=st.booleans())
def test_a_gram_matrix_is_summed_in_the_contract_s_order(
    inputs: list[Stored], *, relative: bool
) -> None:
    relative = relative and len(inputs) > 1
    vectors = relative_to_first(inputs) if relative else [source.values for source in inputs]
    for kernels in BOTH:
        found = find_gram(kernels, inputs, relative=relative)
        assert found.tobytes() == gram_by_oracle(vectors).tobytes()


@KERNELS
@pytest.mark.parametrize("size", [1, 255, 256, 257, 4096, 4097, 12_345])
def test_any_size_and_any_mixture_of_types_is_summed_alike(kernels: Kernels, size: int) -> None:
    inputs = fine_tunes(3, size, dtypes=MERGEABLE)

    assert np.array_equal(
        find_gram(kernels, inputs), gram_by_oracle([source.values for source in inputs])
    )
    assert np.array_equal(
        find_gram(kernels, inputs, relative=True), gram_by_oracle(relative_to_first(inputs))
    )


@KERNELS
@pytest.mark.parametrize("step", [None, 256 * 1000, 4096 * 7, REDUCTION_BLOCK, 2**20 + 256])
def test_tiles_change_nothing_within_or_across_a_block_edge(
    kernels: Kernels, step: int | None
) -> None:
    inputs = across_a_block_edge()
    expected = gram_by_oracle([source.values for source in inputs])

    assert find_gram(kernels, inputs, step=step).tobytes() == expected.tobytes()


@KERNELS
@pytest.mark.parametrize("step", [256, 512, 4096, 4352, 9984])
def test_a_tile_may_end_at_any_multiple_of_256(kernels: Kernels, step: int) -> None:
    inputs = fine_tunes(2, 10_000, dtypes=[DType.F32])

    assert np.array_equal(find_gram(kernels, inputs, step=step), find_gram(kernels, inputs))


@KERNELS
@pytest.mark.parametrize("step", [None, 256 * 1000, REDUCTION_BLOCK])
def test_norms_are_summed_in_the_contract_s_order_across_a_block_edge(
    kernels: Kernels, step: int | None
) -> None:
    inputs = across_a_block_edge()
    (delta,) = relative_to_first(inputs)
    limits = find_thresholds(kernels, inputs, [0.3])
    kept = np.where(kept_largest(delta, 0.3), delta, np.float32(0))

    norms = find_norms(kernels, inputs, keep_largest(limits), step=step)

    assert norms.tolist() == [[l1_norm(delta), l1_norm(kept)]]


@KERNELS
@pytest.mark.parametrize("step", [None, 256, 4096, 8448])
def test_norms_follow_each_source_s_selector(kernels: Kernels, step: int | None) -> None:
    inputs = fine_tunes(3, 20_000, dtypes=MERGEABLE)
    deltas = relative_to_first(inputs)
    selectors = keep_all(3)
    selectors[1:2] = keep_largest([Threshold(bits=0xFFFFFFFF, kept=0, tied=0)])
    selectors[2:3] = keep_drawn([0.0], [17])

    norms = find_norms(kernels, inputs, selectors, step=step)

    whole = [l1_norm(delta) for delta in deltas]
    assert norms.tolist() == [[whole[0], whole[0]], [whole[1], 0.0], [whole[2], 0.0]]


@KERNELS
def test_drawn_norms_agree_bit_by_bit_in_any_tiles(kernels: Kernels) -> None:
    inputs = fine_tunes(2, 20_000, dtypes=MERGEABLE)
    selectors = keep_drawn([0.1, 0.7], [3, 2**63 + 5])
    whole = find_norms(CpuKernels(), inputs, selectors)

    assert np.array_equal(find_norms(kernels, inputs, selectors, step=768), whole)


@KERNELS
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(
    ("places", "report"),
    [
        pytest.param({}, -1, id="all finite"),
        pytest.param({2: 9000}, 2, id="last input, last block"),
        pytest.param({2: 0, 1: 9000}, 1, id="the first input, not the first block"),
    ],
)
def test_the_first_input_that_is_not_finite_is_reported(
    kernels: Kernels, *, relative: bool, places: dict[int, int], report: int
) -> None:
    values = np.ones((3, 9001), np.float32)
    for source, index in places.items():
        values[source, index] = np.nan
    (tile,) = cut([stored(row, DType.F16) for row in values])
    sums = new_sums(num_pairs(2 if relative else 3))

    assert kernels.gram(tile, relative=relative, sums=sums) == report


def test_a_gram_matrix_is_symmetric_with_squared_lengths_of_at_least_0() -> None:
    sums = new_sums(3)
    sums[:, -1] = [-1e-30, 2.0, 3.0]

    assert gram_matrix(sums, 2).tolist() == [[0.0, 2.0], [2.0, 3.0]]


@KERNELS
def test_products_are_exact_in_the_float64_they_are_summed_in(kernels: Kernels) -> None:
    """The square of 1 + 2**-23 has 47 bits; in float32 the last would be lost."""
    inputs = [stored([1 + 2.0**-23])]

    assert find_gram(kernels, inputs)[0, 0] == 1 + 2.0**-22 + 2.0**-46
