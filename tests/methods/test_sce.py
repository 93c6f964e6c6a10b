from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.kernels.torch_kernels import TorchKernels
from raymerge.methods.sce import weights
from tests.oracles import Floats, from_dtype, to_dtype
from tests.oracles_free import kept_spread, oracle_sce, spread
from tests.strategies import (
    OUTPUTS,
    Stored,
    densities,
    fine_tunes,
    merge,
    quick,
    stored,
    tensors,
)

CPU = CpuKernels()
BOTH = (CPU, TorchKernels("cpu"))


def merged(inputs: list[Stored], **knobs: Any) -> Floats:
    return from_dtype(merge("sce", inputs, kernels=CPU, **knobs), DType.F32)


@quick
@given(inputs=tensors(min_inputs=2), share=densities)
@pytest.mark.parametrize("dtype", OUTPUTS)
def test_a_merge_is_the_oracle_s(dtype: DType, inputs: list[Stored], share: float) -> None:
    base, *sources = (one.values for one in inputs)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = oracle_sce(base, sources, shape=base.shape, select_topk=share)
    assume(np.isfinite(expected).all() and np.abs(expected).max() < 60_000)
    for kernels in BOTH:
        found = merge("sce", inputs, kernels=kernels, dtype=dtype, select_topk=share)
        assert found == to_dtype(expected, dtype)


@pytest.mark.parametrize("share", [0.003, 0.2, 0.7])
def test_tiles_change_neither_the_threshold_nor_who_stays(share: float) -> None:
    """On bfloat16 task vectors, of which many variances are tied."""
    inputs = fine_tunes(2, 30_000)
    base, *sources = (one.values for one in inputs)
    values = spread([source - base for source in sources])
    last = np.sort(values)[-int(share * np.count_nonzero(values))]
    assert (values == last).sum() > 3

    whole = merge("sce", inputs, kernels=CPU, select_topk=share)
    for kernels in BOTH:
        for step in (256, 4352):
            assert merge("sce", inputs, kernels=kernels, step=step, select_topk=share) == whole


def test_the_count_is_of_entries_that_vary() -> None:
    """Of eight entries four vary, of which half are two: those of the largest variance."""
    inputs = [
        stored([0.0] * 8),
        stored([1.0, 2, 3, 4, 5, 5, 0, 0]),
        stored([0.0, 0, 0, 0, 5, 5, 0, 0]),
    ]

    assert merged(inputs, select_topk=0.5).tolist() == [0, 0, 3, 4, 0, 0, 0, 0]


def test_equal_task_vectors_do_not_vary_however_they_round() -> None:
    """The mean of three equal float32 need not be that float32: taken from the first, it is 0."""
    tuned = np.random.default_rng(0).normal(size=1000)
    values = [stored(np.zeros(1000)), *[stored(tuned)] * 3]

    assert not spread([one.values for one in values[1:]]).any()
    assert not merged(values, select_topk=0.99).any()
    np.testing.assert_allclose(merged(values), values[1].values, rtol=3e-7)


def test_one_source_varies_nowhere() -> None:
    inputs = fine_tunes(1, 5000)

    assert np.array_equal(merged(inputs), inputs[1].values)
    assert np.array_equal(merged(inputs, select_topk=0.99), inputs[0].values)


@pytest.mark.parametrize("size", [1e-4, 1e-8, 1.0])
def test_weights_are_shares_of_the_energy_however_small_it_is(size: float) -> None:
    """mergekit falls back to equal weights where the mean squares sum to less than 1e-6."""
    inputs = [stored([0.0, 0.0]), stored([size, size]), stored([3 * size, 3 * size])]

    # 1/10 and 9/10 of the energy; with equal weights 2.
    np.testing.assert_allclose(merged(inputs), np.float32(2.8 * size), rtol=1e-6)


def test_weights_are_equal_only_where_there_is_no_energy() -> None:
    assert weights(np.array([0.0, 0.0])).tolist() == [0.5, 0.5]
    assert weights(np.array([0.0, 5e-324])).tolist() == [0, 1]
    assert weights(np.array([np.nan, 1.0])).tolist() == [0.5, 0.5]
    assert weights(np.array([1.0, np.inf])).tolist() == [0.5, 0.5]


def test_a_source_of_little_energy_keeps_what_it_alone_has() -> None:
    """mergekit divides by 1e-6 at least: of an energy of 1e-8 a hundredth would be left."""
    inputs = [stored([0.0, 0.0]), stored([1.0, 0.0]), stored([0.0, 1e-4])]

    assert merged(inputs).tolist() == [1, np.float32(1e-4)]


def test_the_minority_sign_is_erased_and_zeros_have_none() -> None:
    inputs = [stored([0.0] * 3), stored([2.0, -1, 0]), stored([-1.0, 2, 2])]

    assert merged(inputs).tolist() == [2, 2, 2]


def test_a_tied_vote_elects_plus() -> None:
    inputs = [stored([0.0]), stored([1.0]), stored([-1.0])]

    assert merged(inputs).tolist() == [1]


def test_at_0_nothing_is_selected() -> None:
    inputs = fine_tunes(3, 5000)

    assert np.array_equal(merged(inputs, select_topk=0.0), inputs[0].values)


def test_ties_at_the_threshold_are_kept_evenly_spread() -> None:
    inputs = [stored(np.zeros(10_000)), stored(np.ones(10_000)), stored(np.zeros(10_000))]
    kept = merged(inputs, select_topk=0.2) != 0

    assert kept.reshape(10, 1000).sum(1).tolist() == [200] * 10
    assert np.array_equal(kept, kept_spread(np.ones(10_000, np.float32), 0.2))
