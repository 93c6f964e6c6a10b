from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.kernels.tile import Kernels
from raymerge.kernels.torch_kernels import TorchKernels
from raymerge.methods.arcee_fusion import KEPT_ENTRIES, ArceeFusion, divergences, quartile_ranks
from tests.oracles import Floats, from_dtype, to_dtype
from tests.oracles_free import divergences as oracle_divergences
from tests.oracles_free import oracle_arcee_fusion
from tests.strategies import OUTPUTS, Stored, fine_tunes, merge, quick, stored, tensors
from tests.sweeps import StoredSweeps, run_free

CPU = CpuKernels()
BOTH = (CPU, TorchKernels("cpu"))
KERNELS = pytest.mark.parametrize("kernels", BOTH, ids=["numba", "torch"])


def merged(inputs: list[Stored], **options: Any) -> Floats:
    return from_dtype(merge("arcee_fusion", inputs, kernels=CPU, **options), DType.F32)


def found_divergences(
    kernels: Kernels,
    inputs: list[Stored],
    length: int,
    *,
    step: int | None = None,
    long_rows: bool = False,
) -> Floats:
    sweeps = StoredSweeps(kernels, inputs, (inputs[0].size // length, length), step)
    return divergences(sweeps, length, long_rows=long_rows)


def rows_of(inputs: list[Stored], length: int) -> list[Floats]:
    return [one.values.reshape(-1, length) for one in inputs]


@quick
@given(inputs=tensors(min_inputs=2, max_inputs=2), length=st.integers(1, 40))
@pytest.mark.parametrize("dtype", OUTPUTS)
def test_a_merge_is_the_oracle_s(dtype: DType, inputs: list[Stored], length: int) -> None:
    size = inputs[0].size // length * length
    assume(size)
    inputs = [stored(one.values[:size]) for one in inputs]
    base, source = (np.clip(one.values, -600, 600) for one in inputs)
    inputs = [stored(base), stored(source)]
    shape = size // length, length
    expected = oracle_arcee_fusion(base, [source], shape=shape)
    for kernels in BOTH:
        found = merge("arcee_fusion", inputs, kernels=kernels, dtype=dtype, shape=shape)
        assert found == to_dtype(expected, dtype)


@KERNELS
@pytest.mark.parametrize(
    ("length", "long_rows"),
    [*product([1, 4, 33, 6667, 20_001], [False]), *product([500, 6667, 20_001], [True])],
)
@pytest.mark.parametrize("step", [None, 256, 4352])
def test_neither_tiles_nor_the_length_of_rows_change_a_divergence(
    kernels: Kernels, length: int, step: int | None, *, long_rows: bool
) -> None:
    """Rows begin and end anywhere in a tile, and may be longer than one."""
    size = 20_001 // length * length
    inputs = [stored(one.values[:size]) for one in fine_tunes(1, 20_001)]
    found = found_divergences(kernels, inputs, length, step=step, long_rows=long_rows)

    assert np.array_equal(found, oracle_divergences(*rows_of(inputs, length)))


@KERNELS
@pytest.mark.parametrize("long_rows", [False, True])
@pytest.mark.parametrize("scale", [1e3, 1e30])
def test_what_exp_cannot_reach_is_taken_relative_to_the_row_s_peak(
    kernels: Kernels, scale: float, *, long_rows: bool
) -> None:
    """The divergence is the library's for rows whose entries are beyond 600."""
    rng = np.random.default_rng(0)
    inputs = [stored(rng.normal(size=600) * scale) for _ in range(2)]
    found = found_divergences(kernels, inputs, 50, step=256, long_rows=long_rows)
    shares = []
    for rows in rows_of(inputs, 50):
        powers = np.exp(rows.astype(np.float64) - rows.max(1, keepdims=True))
        shares.append(powers / powers.sum(1, keepdims=True) + 1e-8)
    q, p = shares

    np.testing.assert_allclose(found, (p * np.log(p / q)).sum(1), rtol=1e-6)


def test_a_divergence_of_small_deltas_is_no_noise() -> None:
    """Float32, mergekit's precision, has no digit of it: 2e-8 of a sum of 1."""
    base, source = fine_tunes(1, 40_960, dtypes=[DType.F32])
    found = found_divergences(CPU, [base, source], 4096)
    # To second order it is half the variance of the row's deltas.
    variance = (source.values - base.values).reshape(-1, 4096).astype(np.float64).var(1)

    np.testing.assert_allclose(found, variance / 2, rtol=0.02)


def test_rows_of_one_entry_are_taken_whole() -> None:
    inputs = fine_tunes(1, 3000, dtypes=[DType.F32])
    base, source = (one.values for one in inputs)

    assert np.array_equal(merged(inputs, shape=(3000, 1)), base + (source - base))


def test_a_scalar_is_taken_and_a_vector_is_one_row() -> None:
    inputs = fine_tunes(1, 5000)

    assert merged([stored([1.0]), stored([3.0])], shape=()).tolist() == [3]
    assert np.array_equal(merged(inputs), merged(inputs, shape=(1, 5000)))


def test_an_equal_source_changes_nothing() -> None:
    base = fine_tunes(1, 5000)[0]
    found = merge("arcee_fusion", [base, base], kernels=CPU, dtype=DType.BF16, shape=(50, 100))

    assert found == base.raw.tobytes()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 9, 100, 101])
def test_quartiles_are_entries_without_interpolation(size: int) -> None:
    ranked = np.arange(size)

    assert [int(ranked[size - rank]) for rank in quartile_ranks(size)] == [
        math.floor(q * (size - 1)) for q in (0.75, 0.5, 0.25)
    ]


def test_quartiles_are_exact_above_a_million_entries_too() -> None:
    """mergekit takes them from a random sample there."""
    inputs = fine_tunes(1, 1_200_000)
    base, source = (one.values for one in inputs)
    expected = oracle_arcee_fusion(base, [source], shape=(1200, 1000))

    found = merged(inputs, shape=(1200, 1000), step=2**18)

    assert np.array_equal(found, expected)


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16])
def test_the_output_has_the_dtype_of_the_slot(dtype: DType) -> None:
    """mergekit writes float32 into a checkpoint of bfloat16: its mask promotes."""
    found = merge("arcee_fusion", fine_tunes(1, 1000), kernels=CPU, dtype=dtype, shape=(10, 100))

    assert len(found) == 2000


@KERNELS
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_with_a_nan_or_an_inf_diverges_by_nothing(kernels: Kernels, value: float) -> None:
    """Where the recipe lets one pass, its row has nothing to measure by; other rows have."""
    values = np.random.default_rng(0).normal(size=(2, 400))
    values[1, 150] = value
    inputs = [stored(row) for row in values]
    found = found_divergences(kernels, inputs, 100)
    result, reports = run_free(kernels, inputs, ArceeFusion(), shape=(4, 100))

    assert found[1] == 0
    assert (found[[0, 2, 3]] > 0).all()
    assert set(reports) == {1}
    assert np.isfinite(from_dtype(result, DType.F32)).all()


def test_rows_whose_exp_is_not_kept_are_a_rule_of_their_own() -> None:
    rule = ArceeFusion()

    assert rule.for_shape((3, KEPT_ENTRIES)) is rule
    assert rule.for_shape((KEPT_ENTRIES + 1,)) == replace(rule, long_rows=True)
    assert [*rule.passes, "softmax"] == [*rule.for_shape((2**30,)).passes, "softmax"][1:]
    assert rule.figure_bytes((3, 2**18), 1) < 5 * 2**20
    assert rule.for_shape((2**30,)).figure_bytes((2**30,), 1) < 2**10
