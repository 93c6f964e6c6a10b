from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.kernels.torch_kernels import TorchKernels
from tests.oracles import Floats, from_dtype, to_dtype
from tests.oracles_free import oracle_nearswap
from tests.strategies import OUTPUTS, Stored, fine_tunes, merge, quick, stored, tensors

CPU = CpuKernels()
BOTH = (CPU, TorchKernels("cpu"))


def merged(inputs: list[Stored], t: float, **options: Any) -> Floats:
    return from_dtype(merge("nearswap", inputs, kernels=CPU, t=t, **options), DType.F32)


@quick
@given(inputs=tensors(min_inputs=2, max_inputs=2), t=st.floats(0, 10, width=32))
@pytest.mark.parametrize("dtype", OUTPUTS)
def test_a_merge_is_the_oracle_s(dtype: DType, inputs: list[Stored], t: float) -> None:
    base, source = (one.values for one in inputs)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = oracle_nearswap(base, [source], t=t, shape=base.shape)
    assume(np.isfinite(expected).all() and np.abs(expected).max() < 60_000)
    for kernels in BOTH:
        found = merge("nearswap", inputs, kernels=kernels, dtype=dtype, t=t)
        assert found == to_dtype(expected, dtype)


def test_at_t_0_the_base_comes_out() -> None:
    inputs = fine_tunes(1, 5000)
    found = merge("nearswap", inputs, kernels=CPU, dtype=DType.BF16, t=0)

    assert found == inputs[0].raw.tobytes()


def test_what_is_nearer_than_t_is_the_source_s_exactly() -> None:
    base, source = fine_tunes(1, 5000)

    assert np.array_equal(merged([base, source], 1.0), source.values)


def test_what_is_further_moves_by_t() -> None:
    inputs = [stored([0.0, 0.0, 1.0]), stored([0.5, -2.0, 1.125])]

    assert merged(inputs, 0.25).tolist() == [0.25, -0.25, 1.125]


def test_the_smallest_distance_is_a_millionth() -> None:
    """mergekit's rule: at a t below it, entries that are nearer still do not swap whole."""
    inputs = [stored([0.0]), stored([1e-7])]

    assert merged(inputs, 5e-7)[0] == pytest.approx(0.5e-7)


def test_entries_further_apart_than_float32_reaches_stay() -> None:
    assert merged([stored([-3e38]), stored([3e38])], 1.0).tolist() == [np.float32(-3e38)]
