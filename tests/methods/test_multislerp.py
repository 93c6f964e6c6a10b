"""multislerp: the mean direction at the mean length, from inner products alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.methods.multislerp import multislerp
from raymerge.methods.nuslerp import nuslerp
from tests.oracles import Doubles, Floats, from_dtype, to_dtype
from tests.span_oracles import oracle_multislerp
from tests.strategies import OUTPUTS, Stored, fine_tunes, merge, stored

CPU = CpuKernels()


def gram(*vectors: list[float]) -> Doubles:
    rows = np.array(vectors, np.float64)
    return np.array([[math.fsum(a * b) for b in rows] for a in rows])


def merged(inputs: list[Stored], **options: Any) -> Floats:
    return from_dtype(merge("multislerp", inputs, kernels=CPU, **options), DType.F32)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("dtype", OUTPUTS)
@pytest.mark.parametrize(
    ("weight", "knobs"),
    [
        ((0.2, 0.5, 0.3), {}),
        ((2.0, -0.5, 1.0), {}),
        ((0.2, 0.5, 0.7), {"normalize_weights": False}),
        ((0.2, 0.5, 0.3), {"eps": 0.001}),
    ],
)
def test_a_merge_is_the_oracle_s(
    weight: tuple[float, ...], knobs: dict[str, Any], dtype: DType, *, relative: bool
) -> None:
    inputs = fine_tunes(2 + relative, 5000, dtypes=(DType.BF16, DType.F32))
    values = [source.values for source in inputs]
    base = values[0] if relative else None
    expected = oracle_multislerp(values[relative:], base, weight=weight, **knobs)

    found = merge(
        "multislerp", inputs, kernels=CPU, dtype=dtype, base=relative, weight=weight, **knobs
    )
    assert found == to_dtype(expected, dtype)


def test_the_tangent_step_that_is_left_out_adds_nothing() -> None:
    """The definition in full, on float64 vectors: mean, tangents, exponential map, length."""
    vectors = np.random.default_rng(0).normal(size=(3, 100))
    weight = np.array([0.2, 0.5, 0.3])
    lengths = np.linalg.norm(vectors, axis=1)
    units = vectors / (lengths + 1e-8)[:, None]
    mean = weight @ units / np.linalg.norm(weight @ units)
    tangent = weight @ (units - np.outer(units @ mean, mean))
    size = np.linalg.norm(tangent) + 1e-8
    result = (mean * math.cos(size) + tangent * math.sin(size) / size) * (weight @ lengths)

    found = multislerp(gram(*vectors.tolist()), weight=weight.tolist())
    assert np.array(found) @ vectors == pytest.approx(result, rel=1e-9)


def test_two_of_equal_weight_meet_half_way_along_the_arc() -> None:
    matrix = gram([1.0, 0, 0], [0.6, 0.8, 0])
    arc = [float(value) for value in nuslerp(matrix, weight=(1, 1))]

    assert multislerp(matrix, weight=(1, 1)) == pytest.approx(arc, rel=1e-7)


def test_the_length_is_the_mean_length() -> None:
    found = merged([stored([3.0, 0]), stored([0.0, 5])], weight=(0.5, 0.5))

    assert np.linalg.norm(found) == pytest.approx(4, rel=1e-6)


@pytest.mark.parametrize("weight", [(1.0,), (0.3,), (0.0,), (-2.0,)])
def test_one_source_is_itself_whatever_its_weight(weight: tuple[float]) -> None:
    assert multislerp(gram([3.0, 4]), weight=weight) == [1.0]
    assert multislerp(gram([3.0, 4]), weight=weight, normalize_weights=False) == [1.0]


@pytest.mark.parametrize(
    ("second", "weight", "expected"),
    [
        pytest.param([-1.0, -2], (1, 1), [0.5, 0.5], id="opposite"),
        pytest.param([-2.0, -4], (1, 3), None, id="opposite of another weight: no cancelling"),
        pytest.param([-0.1, -0.2], (1, 1), [0.5, 0.5], id="opposite of another length"),
    ],
)
def test_two_that_cancel_are_blended_in_a_straight_line(
    second: list[float], weight: tuple[float, float], expected: list[float] | None
) -> None:
    found = multislerp(gram([1.0, 2], second), weight=weight)

    assert (found == expected) == (expected is not None)


def test_more_that_cancel_are_refused() -> None:
    third = [math.cos(2 * math.pi / 3), math.sin(2 * math.pi / 3)]
    star = gram([1.0, 0], third, [third[0], -third[1]])

    with pytest.raises(ValueError, match="the weighted directions of 3 sources cancel"):
        multislerp(star, weight=(1, 1, 1))


def test_three_task_vectors_of_a_frozen_tensor_leave_the_base() -> None:
    same = stored([1.0, -2, 3])

    found = merged([same] * 4, base=True, weight=(0.2, 0.3, 0.5))
    assert found.tolist() == [1, -2, 3]


def test_a_source_of_zero_has_no_direction_and_counts_in_the_length() -> None:
    found = multislerp(gram([4.0, 0], [0.0, 0], [0.0, 4]), weight=(1, 2, 1))

    assert found == pytest.approx([math.sqrt(0.5) / 2, 0, math.sqrt(0.5) / 2])


@pytest.mark.parametrize("weight", [(1.0, -1.0), (0.0, 0.0), (1.0, 1.0, -2.0)])
def test_weights_that_cancel_are_refused_where_they_are_divided_by(
    weight: tuple[float, ...],
) -> None:
    matrix = np.eye(len(weight))

    with pytest.raises(ValueError, match="weights"):
        multislerp(matrix, weight=weight)
    if any(weight):
        multislerp(matrix, weight=weight, normalize_weights=False)


def test_no_eps_is_no_division_by_zero() -> None:
    assert multislerp(gram([0.0], [2.0]), weight=(1, 1), eps=0.0) == [0.0, 0.5]
    shares = multislerp(gram([1.0], [2.0]), weight=(0, 0), eps=0.0, normalize_weights=False)
    assert shares == [0, 0]


def test_a_nan_that_the_recipe_lets_pass_leaves_the_others_averaged() -> None:
    matrix = np.array([[math.nan, math.nan], [math.nan, 1.0]])

    assert multislerp(matrix, weight=(1, 3)) == [0.25, 0.75]
