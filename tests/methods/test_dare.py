from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.methods.dare_linear import dare_linear
from raymerge.methods.dare_ties import dare_ties
from raymerge.methods.rules import DeltaRule, KeepDrawn, Rescale
from tests.oracles import Floats, from_dtype, l1_norm, oracle_dare, to_dtype
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
BOTH = pytest.mark.parametrize("name", ["dare_linear", "dare_ties"])
shares = st.floats(0.125, 2, width=32)


def merged(name: str, inputs: list[Stored], **knobs: Any) -> Floats:
    return from_dtype(merge(name, inputs, kernels=CPU, **knobs), DType.F32)


@quick
@given(
    inputs=tensors(min_inputs=2),
    rescale=st.sampled_from([True, False, "l1"]),
    normalize=st.booleans(),
    seed=st.integers(0, 100),
    choose=st.data(),
)
@pytest.mark.parametrize("dtype", OUTPUTS)
@BOTH
def test_a_merge_is_the_oracle_s(
    name: str,
    dtype: DType,
    inputs: list[Stored],
    *,
    rescale: bool | Literal["l1"],
    normalize: bool,
    seed: int,
    choose: st.DataObject,
) -> None:
    sources = len(inputs) - 1
    weight = choose.draw(st.lists(shares, min_size=sources, max_size=sources))
    if not normalize:
        weight[0] = -weight[0]
    density = choose.draw(st.lists(densities, min_size=sources, max_size=sources))
    labels = [f"source-{i}" for i in range(sources)]
    base, *values = (source.values for source in inputs)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = oracle_dare(
            base,
            values,
            weight=weight,
            density=density,
            elect=name == "dare_ties",
            rescale=rescale,
            normalize=normalize,
            lambda_=0.5,
            seed=seed,
            labels=labels,
            tensor="lm_head.weight",
        )
    assume(np.isfinite(expected).all())
    assume(np.abs(expected).max() < 60_000)

    found = merge(
        name,
        inputs,
        kernels=CPU,
        dtype=dtype,
        seed=seed,
        labels=labels,
        tensor="lm_head.weight",
        weight=weight,
        density=density,
        rescale=rescale,
        normalize=normalize,
        lambda_=0.5,
    )

    assert found == to_dtype(expected, dtype)


@BOTH
def test_one_source_at_density_1_and_weight_1_is_itself(name: str) -> None:
    inputs = fine_tunes(1, 20_000)

    assert merge(name, inputs, kernels=CPU, dtype=DType.BF16, weight=1) == inputs[1].raw.tobytes()


@BOTH
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("knobs", [{"weight": 0}, {"weight": 1, "density": 0}], ids=str)
def test_without_weight_or_density_the_result_is_the_base(
    name: str, *, normalize: bool, knobs: dict[str, Any]
) -> None:
    inputs = fine_tunes(3, 5000)
    found = merge(name, inputs, kernels=CPU, dtype=DType.BF16, normalize=normalize, **knobs)

    assert found == inputs[0].raw.tobytes()


@BOTH
@pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 0.9])
def test_the_expectation_of_every_task_vector_is_itself(name: str, density: float) -> None:
    """The mean over 200,000 draws of an entry of 1 lies within five standard deviations of 1."""
    draws = 200_000
    inputs = [stored(np.zeros(draws)), stored(np.ones(draws))]

    found = merged(name, inputs, weight=1, density=density)

    scale = np.float32(1 / density)
    assert set(found.tolist()) == {0.0, float(scale)}
    deviation = math.sqrt((1 - density) / density / draws)
    assert abs(float(found.mean(dtype=np.float64)) - 1) < 5 * deviation


@BOTH
def test_the_expectation_holds_for_every_entry_over_seeds(name: str) -> None:
    """Sums of squared z-scores over 300 entries and 400 seeds stay inside chi-squared's range."""
    values = np.linspace(-3, 3, 300, dtype=np.float32)
    values = values[values != 0]
    inputs = [stored(np.zeros(values.size)), stored(values)]
    seeds = 400
    total = np.zeros(values.size)
    for seed in range(seeds):
        total += merged(name, inputs, weight=1, density=0.25, seed=seed)

    z = (total / seeds - values) / (np.abs(values) * math.sqrt(3 / seeds))

    assert abs(float((z**2).sum()) - z.size) < 5 * math.sqrt(2 * z.size)
    assert float(np.abs(z).max()) < 5


@BOTH
def test_entries_that_stay_are_divided_by_the_density(name: str) -> None:
    inputs = fine_tunes(1, 5000, dtypes=[DType.F32])
    plain = merged(name, inputs, weight=1, density=0.5, rescale=False)
    base, source = (stored.values for stored in inputs)
    kept = plain != base

    assert np.array_equal(plain[kept], (base + (source - base))[kept])
    rescaled = merged(name, inputs, weight=1, density=0.5, rescale=True)
    assert np.array_equal(rescaled[kept], (base + (source - base) * np.float32(2))[kept])


@BOTH
def test_l1_keeps_the_norm_of_the_task_vector(name: str) -> None:
    inputs = fine_tunes(1, 20_000, dtypes=[DType.F32])
    base, source = (stored.values for stored in inputs)
    found = merged(name, inputs, weight=1, density=0.1, rescale="l1")

    assert l1_norm(found - base) == pytest.approx(l1_norm(source - base), rel=1e-4)


@BOTH
def test_what_is_drawn_for_a_source_does_not_depend_on_the_others(name: str) -> None:
    base, first, second = fine_tunes(2, 5000)
    alone = merged(name, [base, first], labels=["math"], weight=1, density=0.3)
    beside = merged(
        name, [base, second, first], labels=["code", "math"], weight=[0, 1], density=0.3
    )

    assert np.array_equal(alone, beside)


@BOTH
def test_two_sources_have_no_order_but_labels(name: str) -> None:
    base, first, second = fine_tunes(2, 5000)
    knobs: dict[str, Any] = {"density": 0.3, "seed": 4}
    one_way = merged(name, [base, first, second], labels=["a", "b"], weight=[1, 0.5], **knobs)
    other_way = merged(name, [base, second, first], labels=["b", "a"], weight=[0.5, 1], **knobs)

    assert np.array_equal(one_way, other_way)


@BOTH
@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"labels": ["other"]}, {"tensor": "other"}],
    ids=["seed", "label", "tensor"],
)
def test_another_seed_label_or_tensor_drops_other_entries(name: str, other: dict[str, Any]) -> None:
    inputs = [stored(np.zeros(4096)), stored(np.ones(4096))]
    kept = merged(name, inputs, labels=["a"], weight=1, density=0.5) != 0
    others = merged(name, inputs, **{"labels": ["a"], "weight": 1, "density": 0.5, **other}) != 0

    assert abs(float((kept & others).mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4096)


@BOTH
def test_what_stays_at_one_density_stays_at_every_greater_one(name: str) -> None:
    inputs = [stored(np.zeros(4096)), stored(np.ones(4096))]
    kept = [
        merged(name, inputs, weight=1, density=density) != 0
        for density in (0.05, 0.1, 0.5, 0.9, 1.0)
    ]

    for sparser, denser in pairwise(kept):
        assert not (sparser & ~denser).any()


@BOTH
def test_disjoint_task_vectors_are_all_in_the_result(name: str) -> None:
    inputs = [stored([1.0] * 3), stored([3.0, 1, 1]), stored([1.0, 0, 1])]

    assert merged(name, inputs, weight=1).tolist() == [3, 0, 1]


def test_dare_linear_adds_what_dare_ties_leaves_out() -> None:
    inputs = [stored([0.0]), stored([3.0]), stored([-1.0])]

    assert merged("dare_linear", inputs, weight=1).tolist() == [2]
    assert merged("dare_ties", inputs, weight=1).tolist() == [3]
    assert merged("dare_linear", inputs, weight=1, normalize=True).tolist() == [1]
    assert merged("dare_ties", inputs, weight=1, normalize=True).tolist() == [3]


def test_without_an_election_only_the_whole_of_the_weights_must_not_cancel() -> None:
    weight = (1, 0.5, -0.5)
    assert dare_linear(weight=weight, normalize=True).weight == weight
    with pytest.raises(ValueError, match=r"0.5 \(source 2\), -0.5 \(source 3\) sum to 0"):
        dare_ties(weight=weight, normalize=True)
    with pytest.raises(ValueError, match=r"1 \(source 1\), -1 \(source 2\) sum to 0"):
        dare_linear(weight=(1, -1), normalize=True)


@pytest.mark.parametrize(
    ("knob", "meaning"), [(True, Rescale.DENSITY), (False, Rescale.NONE), ("l1", Rescale.L1)]
)
@pytest.mark.parametrize("method", [dare_linear, dare_ties])
def test_the_rule_is_what_the_knobs_say(
    method: Callable[..., DeltaRule], *, knob: bool | Literal["l1"], meaning: Rescale
) -> None:
    rule = method(weight=(1, 2), density=(0.5, 0.2), rescale=knob, lambda_=0.3)

    assert rule.keep == KeepDrawn(density=(0.5, 0.2))
    assert rule.weight == (1, 2)
    assert rule.rescale is meaning
    assert rule.elect == (method is dare_ties)
    assert not rule.normalize
    assert rule.scale == 0.3


@BOTH
def test_a_density_too_small_to_draw_an_entry_gives_the_base(name: str) -> None:
    """Below 2**-32 no word is low enough, and 1 / density need not be a float32."""
    inputs = fine_tunes(1, 5000)
    found = merge(name, inputs, kernels=CPU, dtype=DType.BF16, weight=1, density=1e-300)

    assert found == inputs[0].raw.tobytes()
