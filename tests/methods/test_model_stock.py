"""model_stock: how far from the base, by the cosines between task vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.kernels.torch_kernels import TorchKernels
from raymerge.methods.model_stock import model_stock
from tests.oracles import Doubles, Floats, from_dtype, to_dtype
from tests.span_oracles import Grouping, oracle_model_stock
from tests.strategies import OUTPUTS, Stored, fine_tunes, merge, stored

CPU = CpuKernels()
SHAPE = (30, 200)


def gram(*vectors: list[float]) -> Doubles:
    rows = np.array(vectors, np.float64)
    return np.array([[math.fsum(a * b) for b in rows] for a in rows])


def ratio(matrix: Doubles) -> float:
    """t: as many times the coefficient as there are sources."""
    found = [float(value) for value in model_stock(matrix)]
    assert len(set(found)) == 1
    return len(found) * found[0]


def merged(inputs: list[Stored], **options: Any) -> Floats:
    return from_dtype(merge("model_stock", inputs, kernels=CPU, **options), DType.F32)


@pytest.mark.parametrize("grouping", ["tensor", "row"])
@pytest.mark.parametrize("dtype", OUTPUTS)
@pytest.mark.parametrize("sources", [2, 4])
def test_a_merge_is_the_oracle_s(grouping: Grouping, dtype: DType, sources: int) -> None:
    inputs = fine_tunes(sources, 6000, dtypes=(DType.BF16, DType.F32))
    base, *others = (source.values for source in inputs)
    expected = oracle_model_stock(base, others, shape=SHAPE, grouping=grouping)

    for kernels in (CPU, TorchKernels("cpu")):
        for step in (None, 512):
            options: dict[str, Any] = {"kernels": kernels, "dtype": dtype, "step": step}
            found = merge(
                "model_stock", inputs, shape=SHAPE, filter_wise=grouping == "row", **options
            )
            assert found == to_dtype(expected, dtype)


@pytest.mark.parametrize(
    ("vectors", "t"),
    [
        pytest.param([[1.0, 2], [1.0, 2]], 1.0, id="alike: all the way"),
        pytest.param([[1.0, 2]] * 4, 1.0, id="four alike: all the way"),
        pytest.param([[1.0, 0], [0.0, 5]], 0.0, id="at right angles: the base"),
        pytest.param([[1.0, 0], [0.5, math.sqrt(0.75)]], 2 / 3, id="60 degrees"),
        pytest.param([[1.0, 0, 0], [0.0, 1, 0], [1.0, 0, 0]], 0.6, id="the mean of three cosines"),
        pytest.param([[1.0, 0], [-0.5, math.sqrt(0.75)]], -2.0, id="opposed: away from the mean"),
        pytest.param([[1.0, 2], [-1.0, -2]], 0.0, id="opposite: the base"),
        pytest.param([[1.0, 2], [-3.0, -6]], 0.0, id="opposite of another length: the base"),
        pytest.param([[0.0, 0], [3.0, 1]], 0.0, id="one has not moved: the base"),
        pytest.param([[0.0, 0], [0.0, 0]], 0.0, id="none has moved"),
        pytest.param([[1e-9, 0], [2e-9, 0]], 1.0, id="a short way: all of it"),
        pytest.param([[1e-20, 0], [2e-20, 0]], 1.0, id="an all but unseen way"),
    ],
)
def test_the_ratio(vectors: list[list[float]], t: float) -> None:
    assert ratio(gram(*vectors)) == pytest.approx(t, abs=1e-9)


def test_a_star_of_three_sums_to_zero_and_leaves_the_base() -> None:
    third = [math.cos(2 * math.pi / 3), math.sin(2 * math.pi / 3)]

    assert ratio(gram([1.0, 0], third, [third[0], -third[1]])) == 0


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_counts_as_a_right_angle(broken: float) -> None:
    assert ratio(np.array([[broken, broken], [broken, 1.0]])) == 0


def test_a_stack_of_matrices_is_each_of_them() -> None:
    stack = np.array([gram([1.0, 0], [x, 1.0]) for x in (-1.0, 0.0, 0.3, 5.0)])
    found = np.array(model_stock(stack))

    assert found.shape == (2, 4)
    assert np.array_equal(found.T, np.array([model_stock(matrix) for matrix in stack]))


def test_fine_tunes_alike_come_out_themselves_and_at_right_angles_the_base() -> None:
    base, tuned = stored([1.0, 2, 3]), stored([2.0, 2, 3])
    across = stored([1.0, 4, 3])

    assert merged([base, tuned, tuned]).tolist() == [2, 2, 3]
    assert merged([base, tuned, across]).tolist() == [1, 2, 3]


def test_filters_each_have_a_ratio() -> None:
    base = stored(np.zeros((2, 2)))
    first, second = stored([[1.0, 1], [1, 0]]), stored([[1.0, 1], [0, 1]])

    rows = merged([base, first, second], shape=(2, 2), filter_wise=True)
    assert rows.tolist() == [1, 1, 0, 0]
    whole = merged([base, first, second], shape=(2, 2))
    assert whole.tolist() == pytest.approx([0.8, 0.8, 0.4, 0.4])


def test_a_1d_tensor_is_one_row() -> None:
    inputs = fine_tunes(3, 500)

    assert np.array_equal(merged(inputs, filter_wise=True), merged(inputs))


def test_short_task_vectors_are_not_taken_back_to_the_base() -> None:
    """mergekit's floor under the product of two lengths makes such a cosine 0."""
    base = stored(np.zeros(100))
    tuned = [stored(np.full(100, 1e-5)), stored(np.full(100, 2e-5))]

    assert merged([base, *tuned]) == pytest.approx(np.full(100, 1.5e-5))
