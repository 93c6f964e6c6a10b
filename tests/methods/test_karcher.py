"""karcher: the mean on the sphere by algebra on inner products, against the mean of vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.methods.karcher import karcher
from raymerge.methods.nuslerp import nuslerp
from tests.oracles import Doubles, Floats, from_dtype, to_dtype
from tests.span_oracles import karcher_of_vectors, oracle_karcher
from tests.strategies import OUTPUTS, Stored, fine_tunes, merge, stored

CPU = CpuKernels()


def gram(*vectors: list[float]) -> Doubles:
    rows = np.array(vectors, np.float64)
    return np.array([[math.fsum(a * b) for b in rows] for a in rows])


def apart(number: int, size: int = 5000, *, alike: float = 1.0) -> list[Stored]:
    """Vectors of different lengths with a part in common: far from parallel."""
    rng = np.random.default_rng(0)
    common = alike * rng.normal(size=size)
    return [stored((common + rng.normal(size=size)) * (i + 1)) for i in range(number)]


def merged(inputs: list[Stored], **options: Any) -> Floats:
    return from_dtype(merge("karcher", inputs, kernels=CPU, **options), DType.F32)


@pytest.mark.parametrize("dtype", OUTPUTS)
@pytest.mark.parametrize("knobs", [{}, {"max_iter": 1}, {"max_iter": 50, "tol": 1e-9}], ids=str)
@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_merge_is_the_oracle_s(dtype: DType, knobs: dict[str, Any], number: int) -> None:
    inputs = apart(number)
    expected = oracle_karcher([source.values for source in inputs], **knobs)

    assert merge("karcher", inputs, kernels=CPU, dtype=dtype, **knobs) == to_dtype(expected, dtype)


@pytest.mark.parametrize("alike", [0.0, 0.3, 10.0])
@pytest.mark.parametrize("number", [2, 3, 6])
def test_the_algebra_finds_the_mean_of_the_vectors(number: int, alike: float) -> None:
    inputs = apart(number, alike=alike)
    expected = karcher_of_vectors([source.values for source in inputs])

    # The mean moves by less than `tol` in its last step.
    found = merged(inputs)
    assert np.linalg.norm(found - expected) <= 3e-5 * np.linalg.norm(expected)


def test_the_mean_is_where_the_arcs_to_all_sources_cancel() -> None:
    vectors = np.random.default_rng(3).normal(size=(4, 50)) + 0.5
    mean = np.array(karcher(gram(*vectors.tolist()), max_iter=100, tol=1e-12)) @ vectors
    mean /= np.linalg.norm(mean)
    pull = np.zeros(50)
    for vector in vectors:
        unit = vector / np.linalg.norm(vector)
        across = unit - (unit @ mean) * mean
        pull += math.acos(unit @ mean) * across / np.linalg.norm(across)

    assert np.linalg.norm(pull) < 1e-7


def test_of_two_it_is_the_middle_of_the_arc() -> None:
    matrix = gram([1.0, 0, 0], [0.28, 0.96, 0])
    arc = [float(value) for value in nuslerp(matrix, weight=(1, 1))]

    assert karcher(matrix) == pytest.approx(arc, rel=1e-9)


def test_one_source_is_itself() -> None:
    (source,) = apart(1)

    assert np.array_equal(merged([source]), source.values)


def test_equal_sources_are_that_source() -> None:
    (source,) = apart(1)

    assert merged([source] * 3) == pytest.approx(source.values, rel=2e-7)


def test_the_length_is_the_mean_length() -> None:
    found = merged([stored([3.0, 0]), stored([0.0, 5])])

    assert np.linalg.norm(found) == pytest.approx(4, rel=1e-6)


def test_all_zero_is_zero() -> None:
    assert karcher(np.zeros((3, 3))) == [0, 0, 0]


def test_a_source_no_longer_than_tol_counts_in_the_length_only() -> None:
    short = [0.0, 1e-6]

    assert karcher(gram([4.0, 0], short)) == pytest.approx([0.5, 0], rel=1e-6)
    assert float(karcher(gram([4.0, 0], short), tol=1e-7)[1]) > 1


def test_of_two_opposite_the_first_s_direction_is_taken() -> None:
    """Their mean direction is none, and no arc between them has one."""
    assert karcher(gram([1.0, 2], [-3.0, -6])) == pytest.approx([2.0, 0.0])


def test_a_source_opposite_to_the_mean_of_the_others_moves_nothing_wildly() -> None:
    found = np.array(karcher(gram([1.0, 0], [1.0, 0], [-1.0, 0])))

    assert np.abs(found).max() <= 1


def test_a_tolerance_of_0_is_no_division_by_zero() -> None:
    assert karcher(gram([2.0, 0], [2.0, 0]), tol=0.0) == pytest.approx([0.5, 0.5])
    assert karcher(gram([2.0, 0], [-2.0, 0]), tol=0.0)[0] == pytest.approx(1)


def test_without_iterations_it_is_the_mean_direction() -> None:
    found = np.array(karcher(gram([1.0, 0], [0.0, 1], [0.0, 1]), max_iter=0))

    assert found == pytest.approx(np.ones(3) / math.sqrt(5))


def test_a_nan_that_the_recipe_lets_pass_leaves_the_others_averaged() -> None:
    matrix = np.array([[math.nan, math.nan], [math.nan, 1.0]])

    assert karcher(matrix) == [0.5, 0.5]


def test_fine_tunes_are_near_their_average() -> None:
    inputs = fine_tunes(2, 5000)
    average = np.mean([source.values for source in inputs], axis=0)

    assert merged(inputs) == pytest.approx(average, rel=1e-2, abs=1e-2)
