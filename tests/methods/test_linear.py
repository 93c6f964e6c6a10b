from __future__ import annotations

from math import fsum

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.methods.linear import linear
from tests.oracles import oracle_linear, to_dtype
from tests.strategies import OUTPUTS, Stored, fine_tunes, merge, quick, stored, tensors

CPU = CpuKernels()
shares = st.floats(-2, 2, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3)


@pytest.mark.parametrize(
    ("weight", "normalize", "coefficients"),
    [
        pytest.param((1,), True, [1], id="one source"),
        pytest.param((3,), True, [1], id="one source of any weight"),
        pytest.param((-2,), True, [1], id="one source of a weight below 0"),
        pytest.param((1, 1, 1, 1), True, [0.25] * 4, id="uniform soup"),
        pytest.param((1, 3), True, [0.25, 0.75], id="weighted average"),
        pytest.param((2, -1), True, [2, -1], id="extrapolation"),
        pytest.param((0, 2), True, [0, 1], id="a weight of 0"),
        pytest.param((1, 3), False, [1, 3], id="not normalised"),
        pytest.param((1, -1), False, [1, -1], id="weights may cancel where nothing is divided"),
        pytest.param((0, 0), False, [0, 0], id="nothing"),
    ],
)
def test_coefficients(
    weight: tuple[float, ...], *, normalize: bool, coefficients: list[float]
) -> None:
    assert linear(weight=weight, normalize=normalize) == coefficients


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        pytest.param((1, -1), r"1 \(source 1\), -1 \(source 2\) sum to 0", id="cancel"),
        pytest.param((1, 0, -1), r"1 \(source 1\), -1 \(source 3\) sum to 0", id="beside a 0"),
        pytest.param((0.1, 0.2, -0.3), r"-0\.3 \(source 3\)", id="cancel but for rounding"),
        pytest.param((0, 0), "the weights are all 0", id="all 0"),
    ],
)
def test_weights_that_sum_to_nothing_are_refused(weight: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linear(weight=weight)


def test_only_the_sum_of_all_weights_has_to_be_a_divisor() -> None:
    assert linear(weight=(1, -1, 2)) == [0.5, -0.5, 1]


@quick
@given(inputs=tensors(), normalize=st.booleans(), choose=st.data())
@pytest.mark.parametrize("dtype", OUTPUTS)
def test_a_merge_is_the_oracle_s(
    dtype: DType, inputs: list[Stored], *, normalize: bool, choose: st.DataObject
) -> None:
    sources = len(inputs)
    weight = choose.draw(st.lists(shares, min_size=sources, max_size=sources))
    assume(not normalize or abs(fsum(weight)) > 0.1)
    values = [source.values for source in inputs]
    merged = oracle_linear(values, weight=weight, normalize=normalize)
    assume(np.abs(merged).max() < 60_000)

    found = merge("linear", inputs, kernels=CPU, dtype=dtype, weight=weight, normalize=normalize)

    assert found == to_dtype(merged, dtype)


@pytest.mark.parametrize("weight", [1.0, 0.3, -7.0])
def test_one_source_is_itself(weight: float) -> None:
    (source,) = fine_tunes(0, 5000, dtypes=[DType.F32])

    assert merge("linear", [source], kernels=CPU, weight=weight) == source.raw.tobytes()


def test_a_uniform_soup_is_the_mean() -> None:
    inputs = [stored([2.0, -4, 0.5]), stored([4.0, 4, 0.25])]

    assert np.frombuffer(merge("linear", inputs, kernels=CPU, weight=1), np.float32).tolist() == [
        3,
        0,
        0.375,
    ]


def test_two_sources_have_no_order() -> None:
    first, second = fine_tunes(1, 5000)
    one_way = merge("linear", [first, second], kernels=CPU, weight=[0.3, 0.9])

    assert merge("linear", [second, first], kernels=CPU, weight=[0.9, 0.3]) == one_way
