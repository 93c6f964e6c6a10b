from __future__ import annotations

from math import fsum
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.methods.task_arithmetic import task_arithmetic
from tests.oracles import oracle_task_arithmetic, to_dtype
from tests.strategies import OUTPUTS, Stored, fine_tunes, merge, quick, stored, tensors

CPU = CpuKernels()
shares = st.floats(-2, 2, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3)


@pytest.mark.parametrize(
    ("weight", "knobs", "coefficients"),
    [
        pytest.param((1, 1), {}, [1, 1], id="addition"),
        pytest.param((-1,), {}, [-1], id="negation"),
        pytest.param((0.5, 2), {"lambda_": 0.5}, [0.25, 1], id="lambda"),
        pytest.param((1, 3), {"normalize": True}, [0.25, 0.75], id="normalised"),
        pytest.param(
            (1, 3), {"normalize": True, "lambda_": 2}, [0.5, 1.5], id="lambda after normalize"
        ),
        pytest.param((0, 0), {"normalize": True}, [0, 0], id="all 0, normalised"),
        pytest.param((1, 1), {"lambda_": 0}, [0, 0], id="lambda 0"),
        pytest.param((1, -1), {}, [1, -1], id="cancelling weights that nothing divides by"),
    ],
)
def test_coefficients(
    weight: tuple[float, ...], knobs: dict[str, Any], coefficients: list[float]
) -> None:
    assert task_arithmetic(weight=weight, **knobs) == coefficients


@pytest.mark.parametrize("weight", [(1, -1), (0.1, 0.2, -0.3), (1, 0, -1)])
def test_weights_that_cancel_are_refused_by_normalize(weight: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=rf"{weight[0]:g} \(source 1\), .* sum to"):
        task_arithmetic(weight=weight, normalize=True)


@quick
@given(
    inputs=tensors(min_inputs=2),
    lambda_=shares,
    normalize=st.booleans(),
    choose=st.data(),
)
@pytest.mark.parametrize("dtype", OUTPUTS)
def test_a_merge_is_the_oracle_s(
    dtype: DType,
    inputs: list[Stored],
    lambda_: float,
    *,
    normalize: bool,
    choose: st.DataObject,
) -> None:
    sources = len(inputs) - 1
    weight = choose.draw(st.lists(shares, min_size=sources, max_size=sources))
    assume(not normalize or abs(fsum(weight)) > 0.1)
    base, *values = (source.values for source in inputs)
    knobs: dict[str, Any] = {"weight": weight, "lambda_": lambda_, "normalize": normalize}
    merged = oracle_task_arithmetic(base, values, **knobs)
    assume(np.abs(merged).max() < 60_000)

    assert merge("task_arithmetic", inputs, kernels=CPU, dtype=dtype, **knobs) == to_dtype(
        merged, dtype
    )


def test_one_source_of_weight_1_is_itself() -> None:
    inputs = fine_tunes(1, 20_000)
    merged = merge("task_arithmetic", inputs, kernels=CPU, dtype=DType.BF16, weight=1)

    assert merged == inputs[1].raw.tobytes()


@pytest.mark.parametrize("normalize", [False, True])
def test_weights_of_0_give_the_base(*, normalize: bool) -> None:
    inputs = fine_tunes(3, 5000)
    merged = merge(
        "task_arithmetic", inputs, kernels=CPU, dtype=DType.BF16, weight=0, normalize=normalize
    )

    assert merged == inputs[0].raw.tobytes()


def test_a_negative_weight_takes_away_what_a_positive_one_adds() -> None:
    base, source = stored([1.0, 2, -3]), stored([1.5, 2, -5])
    merged = merge("task_arithmetic", [base, source], kernels=CPU, weight=-1)

    assert np.frombuffer(merged, np.float32).tolist() == [0.5, 2, -1]


def test_disjoint_task_vectors_are_all_in_the_result() -> None:
    base, first, second = stored([1.0, 1, 1]), stored([3.0, 1, 1]), stored([1.0, 0, 1])
    merged = merge("task_arithmetic", [base, first, second], kernels=CPU, weight=1)

    assert np.frombuffer(merged, np.float32).tolist() == [3, 0, 1]
