"""nuslerp: the arc by weights, over tensors, rows or columns, of sources or task vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.kernels.torch_kernels import TorchKernels
from raymerge.methods import methods
from raymerge.methods.nuslerp import nuslerp
from tests.oracles import Doubles, Floats, from_dtype, to_dtype
from tests.span_oracles import Grouping, oracle_nuslerp
from tests.strategies import OUTPUTS, Stored, fine_tunes, merge, stored

CPU = CpuKernels()
KNOBS: dict[Grouping, dict[str, Any]] = {
    "tensor": {},
    "row": {"nuslerp_flatten": False},
    "column": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
}
EACH_GROUPING = pytest.mark.parametrize("grouping", KNOBS)
SHAPE = (30, 200)


def gram(cosine: float, *, norms: tuple[float, float] = (1.0, 1.0)) -> Doubles:
    across = cosine * norms[0] * norms[1]
    return np.array([[norms[0] ** 2, across], [across, norms[1] ** 2]])


def merged(inputs: list[Stored], **options: Any) -> Floats:
    return from_dtype(merge("nuslerp", inputs, kernels=CPU, **options), DType.F32)


@pytest.mark.parametrize(
    ("cosine", "weight", "coefficients"),
    [
        pytest.param(0.0, (1, 1), [math.sqrt(0.5)] * 2, id="a right angle, half way"),
        pytest.param(0.0, (2, 1), [math.sqrt(0.75), 0.5], id="a right angle, a third of the way"),
        pytest.param(0.5, (7, 7), [1 / math.sqrt(3)] * 2, id="60 degrees, half way"),
        pytest.param(0.0, (-1, 2), [-1.0, 0.0], id="a right angle, twice the way"),
        pytest.param(0.0, (0.3, -0.3), [math.sqrt(0.5)] * 2, id="weights that cancel: half way"),
        pytest.param(0.3, (1, 0), [1.0, 0.0], id="start"),
        pytest.param(0.3, (0, 1), [0.0, 1.0], id="end"),
        pytest.param(1.0, (3, 1), [0.75, 0.25], id="parallel: a line"),
        pytest.param(-1.0, (3, 1), [0.75, 0.25], id="opposite: a line"),
        pytest.param(-1 + 2.0**-26, (3, 1), [0.75, 0.25], id="opposite in float32: a line"),
        pytest.param(1 + 1e-15, (3, 1), [0.75, 0.25], id="a cosine rounded past 1"),
    ],
)
@pytest.mark.parametrize("norms", [(1.0, 1.0), (1e-12, 300.0)])
def test_coefficients(
    cosine: float,
    weight: tuple[float, float],
    coefficients: list[float],
    norms: tuple[float, float],
) -> None:
    found = nuslerp(gram(cosine, norms=norms), weight=weight)

    assert [float(value) for value in found] == pytest.approx(coefficients, abs=1e-9)


def test_there_is_no_other_limit_to_the_arc() -> None:
    """slerp walks a line past a cosine of 0.9995, mergekit's nuslerp does not."""
    arc = nuslerp(gram(0.9999), weight=(1, 1))

    assert float(arc[0]) == pytest.approx(0.5 / math.cos(math.acos(0.9999) / 2), rel=1e-12)


@pytest.mark.parametrize("broken", [0.0, math.nan, math.inf])
def test_where_one_has_no_direction_it_is_a_line(broken: float) -> None:
    matrix = np.array([[broken, broken], [broken, 4.0]])

    assert [float(value) for value in nuslerp(matrix, weight=(3, 1))] == [0.75, 0.25]


def test_a_stack_of_matrices_is_each_of_them() -> None:
    stack = np.array([gram(0.3), gram(-1.0), gram(0.999, norms=(3, 5)), np.zeros((2, 2))])
    found = np.array(nuslerp(stack, weight=(1, 2)))

    each = [nuslerp(matrix, weight=(1, 2)) for matrix in stack]
    assert found.shape == (2, 4)
    assert np.array_equal(found.T, np.array(each))


@EACH_GROUPING
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("dtype", OUTPUTS)
def test_a_merge_is_the_oracle_s(grouping: Grouping, dtype: DType, *, relative: bool) -> None:
    inputs = fine_tunes(1 + relative, 6000, dtypes=(DType.BF16, DType.F32))
    values = [source.values for source in inputs]
    base = values[0] if relative else None
    weight = (0.7, -0.2)
    sources = values[relative:]
    expected = oracle_nuslerp(sources, base, weight=weight, shape=SHAPE, grouping=grouping)

    for kernels in (CPU, TorchKernels("cpu")):
        for step in (None, 512):
            options: dict[str, Any] = {"shape": SHAPE, "base": relative, "step": step}
            found = merge(
                "nuslerp",
                inputs,
                kernels=kernels,
                dtype=dtype,
                weight=weight,
                **options,
                **KNOBS[grouping],
            )
            assert found == to_dtype(expected, dtype)


def test_tensors_rows_and_columns_have_different_arcs() -> None:
    inputs = fine_tunes(1, 6000)
    found = [merged(inputs, weight=1.0, shape=SHAPE, **knobs).tobytes() for knobs in KNOBS.values()]

    assert len(set(found)) == 3


@pytest.mark.parametrize("grouping", ["row", "column"])
def test_a_1d_tensor_is_one_row_and_one_column(grouping: Grouping) -> None:
    inputs = fine_tunes(1, 500)

    found = merged(inputs, weight=(0.2, 0.5), shape=(500,), **KNOBS[grouping])
    assert np.array_equal(found, merged(inputs, weight=(0.2, 0.5)))


def test_a_column_of_a_tensor_of_three_dims_runs_along_the_first() -> None:
    inputs = fine_tunes(1, 4 * 3 * 5)
    found = merged(inputs, weight=1.0, shape=(4, 3, 5), **KNOBS["column"])

    flat = merged(inputs, weight=1.0, shape=(4, 15), **KNOBS["column"])
    assert np.array_equal(found, flat)


def test_flattened_it_does_not_matter_what_row_wise_says() -> None:
    inputs = fine_tunes(1, 6000)
    plain = merged(inputs, weight=1.0, shape=SHAPE)

    assert np.array_equal(merged(inputs, weight=1.0, shape=SHAPE, nuslerp_row_wise=True), plain)


def test_a_frozen_row_of_one_task_vector_is_blended_in_a_straight_line() -> None:
    base = stored([[1.0, 2], [3, 4]])
    first = stored([[1.0, 2], [3, 8]])
    second = stored([[2.0, 2], [3, 4]])
    options: dict[str, Any] = {"weight": (1, 3), "base": True, "shape": (2, 2)}

    found = merged([base, first, second], nuslerp_flatten=False, **options)
    assert found.tolist() == [1.75, 2, 3, 5]


@given(t=st.floats(0, 1), angle=st.floats(0.01, 3.1))
def test_unit_vectors_stay_on_the_unit_circle(t: float, angle: float) -> None:
    matrix = gram(math.cos(angle))
    c = np.array([float(value) for value in nuslerp(matrix, weight=(1 - t, t))])

    assert float(c @ matrix @ c) == pytest.approx(1, abs=1e-9)


def test_it_takes_a_base_or_none() -> None:
    method = methods()["nuslerp"]

    assert not method.needs_base
    assert (method.min_sources, method.max_sources) == (2, 2)
