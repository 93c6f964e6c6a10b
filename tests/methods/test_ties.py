from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.methods.rules import KeepLargest, Rescale, Scope
from raymerge.methods.ties import ties
from tests.oracles import Floats, from_dtype, l1_norm, oracle_ties, to_dtype
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
shares = st.floats(0.125, 2, width=32)


def merged(inputs: list[Stored], **knobs: Any) -> Floats:
    return from_dtype(merge("ties", inputs, kernels=CPU, **knobs), DType.F32)


@quick
@given(
    inputs=tensors(min_inputs=2),
    normalize=st.booleans(),
    rescale=st.sampled_from(["l1", None]),
    lambda_=shares,
    choose=st.data(),
)
@pytest.mark.parametrize("dtype", OUTPUTS)
def test_a_merge_is_the_oracle_s(
    dtype: DType,
    inputs: list[Stored],
    rescale: Literal["l1"] | None,
    lambda_: float,
    *,
    normalize: bool,
    choose: st.DataObject,
) -> None:
    sources = len(inputs) - 1
    weight = choose.draw(st.lists(shares, min_size=sources, max_size=sources))
    if not normalize:
        weight[0] = -weight[0]
    density = choose.draw(st.lists(densities, min_size=sources, max_size=sources))
    base, *values = (source.values for source in inputs)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = oracle_ties(
            base,
            values,
            weight=weight,
            density=density,
            normalize=normalize,
            lambda_=lambda_,
            rescale=rescale,
        )
    assume(np.isfinite(expected).all())
    assume(np.abs(expected).max() < 60_000)

    found = merge(
        "ties",
        inputs,
        kernels=CPU,
        dtype=dtype,
        weight=weight,
        density=density,
        normalize=normalize,
        lambda_=lambda_,
        rescale=rescale or False,
    )

    assert found == to_dtype(expected, dtype)


@pytest.mark.parametrize("normalize", [False, True])
def test_one_source_at_density_1_and_weight_1_is_itself(*, normalize: bool) -> None:
    inputs = fine_tunes(1, 20_000)
    found = merge("ties", inputs, kernels=CPU, dtype=DType.BF16, weight=1, normalize=normalize)

    assert found == inputs[1].raw.tobytes()


@pytest.mark.parametrize("weight", [0.25, 4.0])
def test_the_weight_of_a_single_source_is_divided_out(weight: float) -> None:
    inputs = fine_tunes(1, 5000)

    assert np.array_equal(
        merged(inputs, weight=weight, density=0.2), merged(inputs, weight=1, density=0.2)
    )


@quick
@given(
    inputs=tensors(min_inputs=3, max_inputs=3),
    weight=st.tuples(shares, shares),
    density=st.tuples(densities, densities),
)
def test_two_sources_have_no_order(
    inputs: list[Stored], weight: tuple[float, float], density: tuple[float, float]
) -> None:
    base, first, second = inputs
    one_way = merged([base, first, second], weight=weight, density=density)
    other_way = merged([base, second, first], weight=weight[::-1], density=density[::-1])

    assert one_way.tobytes() == other_way.tobytes()


def test_disjoint_task_vectors_are_all_in_the_result_whole() -> None:
    """Where one source alone has an entry, the mean is that entry, whatever its weight."""
    inputs = [stored([1.0] * 4), stored([3.0, 1, 1, 1]), stored([1.0, 1, 0, 1])]

    assert merged(inputs, weight=[0.5, 2]).tolist() == [3, 1, 0, 1]


def test_where_all_agree_the_result_is_the_weighted_mean() -> None:
    rng = np.random.default_rng(0)
    sign = rng.choice([-1, 1], 1000)
    deltas = [rng.integers(1, 100, 1000) * sign for _ in range(3)]
    inputs = [stored(np.zeros(1000)), *(stored(delta) for delta in deltas)]

    found = merged(inputs, weight=[1, 2, 5])

    assert np.array_equal(found, np.float32((deltas[0] + 2 * deltas[1] + 5 * deltas[2]) / 8))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("knobs", [{"weight": 0}, {"weight": 1, "density": 0}], ids=str)
def test_without_weight_or_density_the_result_is_the_base(
    *, normalize: bool, knobs: dict[str, Any]
) -> None:
    inputs = fine_tunes(3, 5000)
    found = merge("ties", inputs, kernels=CPU, dtype=DType.BF16, normalize=normalize, **knobs)

    assert found == inputs[0].raw.tobytes()


def test_a_negative_weight_negates() -> None:
    inputs = [stored([1.0, 1]), stored([3.0, 0])]

    assert merged(inputs, weight=-1, normalize=False).tolist() == [-1, 2]


@pytest.mark.parametrize(
    ("weight", "subset"),
    [
        pytest.param((1, -1), r"1 \(source 1\), -1 \(source 2\) sum to 0", id="two"),
        pytest.param((1, 0.5, -0.5), r"0.5 \(source 2\), -0.5 \(source 3\) sum", id="two of three"),
        pytest.param((1, 0.5, -1.5), r"1 .*, 0.5 .*, -1.5 \(source 3\) sum to 0", id="all three"),
    ],
)
def test_a_subset_of_weights_that_cancels_is_refused_by_name(
    weight: tuple[float, ...], subset: str
) -> None:
    with pytest.raises(ValueError, match=subset):
        ties(weight=weight)


def test_weights_that_cancel_are_allowed_where_nothing_is_divided() -> None:
    assert ties(weight=(1, -1), normalize=False).weight == (1, -1)


def test_only_the_largest_entries_of_each_task_vector_are_kept() -> None:
    inputs = [stored(np.zeros(10)), stored(np.arange(10.0)), stored(-np.arange(10.0)[::-1])]
    found = merged(inputs, weight=1, density=[0.3, 0.2])

    assert found.tolist() == [-9, -8, 0, 0, 0, 0, 0, 7, 8, 9]


@pytest.mark.parametrize("density", [1e-6, 0.5, 1.0])
def test_a_tensor_of_one_element_keeps_it(density: float) -> None:
    assert merged([stored([1.0]), stored([3.0])], weight=1, density=density).tolist() == [3]


def test_l1_gives_the_trimmed_task_vector_the_norm_of_the_whole() -> None:
    inputs = fine_tunes(1, 20_000, dtypes=[DType.F32])
    base, source = (stored.values for stored in inputs)
    found = merged(inputs, weight=1, density=0.1, rescale="l1")

    assert l1_norm(found - base) == pytest.approx(l1_norm(source - base), rel=1e-4)
    assert np.array_equal(found, merged(inputs, weight=1, density=0.1, rescale=True))


def test_the_rule_is_what_the_knobs_say() -> None:
    rule = ties(weight=(1, 2), density=(0.5, 0.2), rescale="l1", lambda_=0.3, trim="model")

    assert rule.keep == KeepLargest(density=(0.5, 0.2), scope=Scope.MODEL)
    assert rule.weight == (1, 2)
    assert rule.rescale is Rescale.L1
    assert rule.elect
    assert rule.normalize
    assert rule.scale == 0.3
