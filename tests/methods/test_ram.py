"""ram and ramplus_tl: what is shared is averaged, what is not is kept whole or scaled up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.kernels.torch_kernels import TorchKernels
from raymerge.methods.ramplus_tl import RamPlus
from tests.oracles import Floats, from_dtype, to_dtype
from tests.oracles_free import oracle_ram
from tests.strategies import OUTPUTS, Stored, fine_tunes, merge, quick, stored, tensors

CPU = CpuKernels()
BOTH = (CPU, TorchKernels("cpu"))
EACH_METHOD = pytest.mark.parametrize("name", ["ram", "ramplus_tl"])


def merged(name: str, inputs: list[Stored], **knobs: Any) -> Floats:
    return from_dtype(merge(name, inputs, kernels=CPU, **knobs), DType.F32)


@quick
@given(inputs=tensors(min_inputs=2), epsilon=st.floats(0, 2, width=32), scaled=st.booleans())
@pytest.mark.parametrize("dtype", OUTPUTS)
def test_a_merge_is_the_oracle_s(
    dtype: DType, inputs: list[Stored], epsilon: float, *, scaled: bool
) -> None:
    base, *sources = (one.values for one in inputs)
    boost: dict[str, Any] = {"r": 0.5, "alpha": 3.0} if scaled else {}
    with np.errstate(over="ignore", invalid="ignore"):
        expected = oracle_ram(base, sources, shape=base.shape, epsilon=epsilon, **boost)
    assume(np.isfinite(expected).all() and np.abs(expected).max() < 60_000)
    for kernels in BOTH:
        found = merge(
            "ramplus_tl" if scaled else "ram",
            inputs,
            kernels=kernels,
            dtype=dtype,
            epsilon=epsilon,
            **boost,
        )
        assert found == to_dtype(expected, dtype)


@EACH_METHOD
def test_one_source_is_itself(name: str) -> None:
    inputs = fine_tunes(1, 5000)
    found = merge(name, inputs, kernels=CPU, dtype=DType.BF16, epsilon=0)

    assert found == inputs[1].raw.tobytes()


@EACH_METHOD
def test_no_change_above_epsilon_gives_the_base(name: str) -> None:
    inputs = fine_tunes(3, 5000)
    found = merge(name, inputs, kernels=CPU, dtype=DType.BF16, epsilon=1.0)

    assert found == inputs[0].raw.tobytes()


def test_a_lone_change_is_whole_and_a_shared_one_the_mean() -> None:
    inputs = [
        stored([0.0] * 4),
        stored([1.0, 1, 1, 0]),
        stored([0.0, 3, 1, 0]),
        stored([0, 0, 4, 0]),
    ]

    assert merged("ram", inputs).tolist() == [1, 2, 2, 0]


def test_a_change_of_exactly_epsilon_does_not_count() -> None:
    inputs = [stored([0.0, 0.0]), stored([0.5, 0.75]), stored([2.0, 2.0])]

    assert merged("ram", inputs, epsilon=0.5).tolist() == [2, 1.375]


def test_lone_changes_are_scaled_by_the_shared_to_lone_ratio_of_their_source() -> None:
    """Source 1 shares one entry and has two alone; source 2 shares one and has one alone."""
    inputs = [stored([0.0] * 4), stored([4.0, 4, 4, 0]), stored([4.0, 0, 0, 4])]
    found = merged("ramplus_tl", inputs, r=0.5, alpha=10.0)

    assert found.tolist() == [4, 4 * 1.25, 4 * 1.25, 4 * 1.5]


def test_the_ratio_is_limited_by_alpha() -> None:
    inputs = [stored([0.0] * 4), stored([4.0, 4, 4, 0]), stored([4.0, 4, 4, 4])]

    assert merged("ramplus_tl", inputs, r=0.5, alpha=0.5).tolist() == [4, 4, 4, 4 * 1.25]


def test_at_r_0_ramplus_is_ram() -> None:
    inputs = fine_tunes(3, 5000)

    assert np.array_equal(
        merged("ramplus_tl", inputs, r=0.0, epsilon=2e-4), merged("ram", inputs, epsilon=2e-4)
    )


@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
def test_a_source_without_lone_entries_divides_nothing_by_0(epsilon: float) -> None:
    rule = RamPlus(r=0.5, alpha=0.2, epsilon=epsilon)

    assert rule.factor(shared=7, alone=0) in (1.0, 1.1)
    assert rule.factor(shared=0, alone=0) == 1


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16])
def test_the_output_has_the_dtype_of_the_slot(dtype: DType) -> None:
    """mergekit writes float32 into a checkpoint of bfloat16: its factors promote."""
    inputs = fine_tunes(2, 1000)

    assert len(merge("ramplus_tl", inputs, kernels=CPU, dtype=dtype)) == 2000
