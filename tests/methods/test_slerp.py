from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.methods.slerp import slerp
from tests.oracles import Doubles, Floats, from_dtype, oracle_slerp, to_dtype
from tests.strategies import OUTPUTS, Stored, fine_tunes, merge, quick, stored, tensors

CPU = CpuKernels()
positions = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0])


def gram(cosine: float, *, norms: tuple[float, float] = (1.0, 1.0)) -> Doubles:
    across = cosine * norms[0] * norms[1]
    return np.array([[norms[0] ** 2, across], [across, norms[1] ** 2]])


def two_directions(size: int = 5000) -> list[Stored]:
    rng = np.random.default_rng(0)
    return [stored(rng.normal(size=size), DType.BF16) for _ in range(2)]


def merged(inputs: list[Stored], t: float) -> Floats:
    return from_dtype(merge("slerp", inputs, kernels=CPU, t=t), DType.F32)


@pytest.mark.parametrize(
    ("cosine", "t", "coefficients"),
    [
        pytest.param(0.0, 0.5, [math.sqrt(0.5)] * 2, id="a right angle, half way"),
        pytest.param(0.5, 0.5, [1 / math.sqrt(3)] * 2, id="60 degrees, half way"),
        pytest.param(0.0, 1 / 3, [math.sqrt(0.75), 0.5], id="a right angle, a third of the way"),
        pytest.param(
            -0.5, 0.25, [2 / math.sqrt(3), 1 / math.sqrt(3)], id="120 degrees, 30 of them"
        ),
        pytest.param(0.0, 2.0, [-1.0, 0.0], id="a right angle, twice the way"),
        pytest.param(0.3, 0.0, [1.0, 0.0], id="start"),
        pytest.param(0.3, 1.0, [0.0, 1.0], id="end"),
        pytest.param(1.0, 0.3, [0.7, 0.3], id="parallel: a line"),
        pytest.param(-1.0, 0.3, [0.7, 0.3], id="opposite: a line"),
        pytest.param(0.9996, 0.3, [0.7, 0.3], id="almost parallel: a line"),
        pytest.param(1 + 1e-15, 0.3, [0.7, 0.3], id="a cosine rounded past 1"),
    ],
)
@pytest.mark.parametrize("norms", [(1.0, 1.0), (0.01, 300.0)])
def test_coefficients(
    cosine: float, t: float, coefficients: list[float], norms: tuple[float, float]
) -> None:
    assert slerp(gram(cosine, norms=norms), t=t) == pytest.approx(coefficients, abs=1e-9)


def test_just_below_the_limit_it_is_an_arc() -> None:
    arc = slerp(gram(0.9994), t=0.3)

    assert arc != pytest.approx([0.7, 0.3], rel=1e-6)
    assert arc == pytest.approx([0.7, 0.3], rel=1e-3)


@pytest.mark.parametrize("norms", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1e-9, 1.0)])
def test_a_vector_without_a_direction_is_blended_in_a_line(norms: tuple[float, float]) -> None:
    assert slerp(gram(0.0, norms=norms), t=0.25) == [0.75, 0.25]


@quick
@given(cosine=st.floats(-0.999, 0.999), t=positions)
def test_the_way_back_is_the_way_there(cosine: float, t: float) -> None:
    assert slerp(gram(cosine), t=t)[::-1] == pytest.approx(slerp(gram(cosine), t=1 - t), abs=1e-9)


@quick
@given(cosine=st.floats(-0.999, 0.999), t=positions)
def test_unit_vectors_stay_on_the_unit_sphere(cosine: float, t: float) -> None:
    a, b = slerp(gram(cosine), t=t)

    assert a * a + b * b + 2 * a * b * cosine == pytest.approx(1, rel=1e-6)


@quick
@given(inputs=tensors(min_inputs=2, max_inputs=2), t=positions)
@pytest.mark.parametrize("dtype", OUTPUTS)
def test_a_merge_is_the_oracle_s(dtype: DType, inputs: list[Stored], t: float) -> None:
    # Between vectors that are almost opposite the coefficients reach 31.6 each.
    values = [source.values / np.float32(128) for source in inputs]
    inputs = [stored(array, source.dtype) for array, source in zip(values, inputs, strict=True)]
    expected = oracle_slerp(inputs[0].values, inputs[1].values, t=t)

    assert merge("slerp", inputs, kernels=CPU, dtype=dtype, t=t) == to_dtype(expected, dtype)


@pytest.mark.parametrize("inputs", [two_directions(), fine_tunes(1, 5000)], ids=["arc", "line"])
def test_the_ends_are_the_base_and_the_source(inputs: list[Stored]) -> None:
    assert np.array_equal(merged(inputs, 0), inputs[0].values)
    assert np.array_equal(merged(inputs, 1), inputs[1].values)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param([2.0, 4, -8], [1.25, 2.5, -5], id="collinear: magnitudes are blended"),
        pytest.param([-1.0, -2, 4], [0.5, 1, -2], id="opposite: through zero"),
        pytest.param([0.0, 0, 0], [0.75, 1.5, -3], id="zero: not 0.707 of the other"),
        pytest.param([1.0, 2, -4], [1, 2, -4], id="the same"),
    ],
)
def test_where_there_is_no_arc_it_is_a_line(source: list[float], expected: list[float]) -> None:
    inputs = [stored([1.0, 2, -4]), stored(source)]

    assert merged(inputs, 0.25).tolist() == expected


def test_two_zero_tensors_give_zero() -> None:
    assert merged([stored([0.0, 0]), stored([0.0, 0])], 0.5).tolist() == [0, 0]


def test_the_length_of_vectors_of_one_length_is_kept() -> None:
    inputs = [stored([3.0, 0, 4]), stored([0.0, 5, 0])]

    for t in (0.1, 0.5, 0.8):
        assert np.linalg.norm(merged(inputs, t)) == pytest.approx(5, rel=1e-6)


def test_lengths_between_two_lengths_are_passed_in_order() -> None:
    inputs = [stored([1.0, 0]), stored([1.0, 9])]
    lengths = [float(np.linalg.norm(merged(inputs, t))) for t in np.linspace(0, 1, 11).tolist()]

    assert lengths == sorted(lengths)
