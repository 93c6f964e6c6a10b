"""DELLA, with and without an election: what each entry's rank decides."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.kernels.torch_kernels import TorchKernels
from raymerge.methods.della import della
from raymerge.methods.della_linear import della_linear
from raymerge.methods.rules import DeltaRule, KeepRanked, Rescale
from tests.band_oracles import oracle_della, probabilities
from tests.oracles import Floats, from_dtype, l1_norm, to_dtype
from tests.strategies import OUTPUTS, Stored, fine_tunes, merge, quick, stored, tensors

CPU = CpuKernels()
KERNELS = (CPU, TorchKernels("cpu"))
BOTH = pytest.mark.parametrize("name", ["della", "della_linear"])
shares = st.floats(0.125, 2, width=32)


def merged(name: str, inputs: list[Stored], **knobs: Any) -> Floats:
    return from_dtype(merge(name, inputs, kernels=CPU, **knobs), DType.F32)


@st.composite
def densities_and_epsilons(draw: st.DrawFn, sources: int) -> dict[str, list[float]]:
    density = draw(
        st.lists(
            st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0]), min_size=sources, max_size=sources
        )
    )
    return {
        "density": density,
        "epsilon": [draw(st.floats(0, min(value, 1 - value))) for value in density],
    }


def shape_of(size: int, choose: st.DataObject) -> tuple[int, ...]:
    """Some shape of so many entries, with up to four dimensions."""
    shape = []
    for _ in range(choose.draw(st.integers(0, 3))):
        factors = [factor for factor in range(1, size + 1) if size % factor == 0]
        shape.append(choose.draw(st.sampled_from(factors)))
        size //= shape[-1]
    return (*shape, size)


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
    knobs: dict[str, Any] = choose.draw(densities_and_epsilons(sources))
    knobs["weight"] = choose.draw(st.lists(shares, min_size=sources, max_size=sources))
    if not normalize:
        knobs["weight"][0] *= -1
    knobs |= {"rescale": rescale, "normalize": normalize, "lambda_": 0.5, "seed": seed}
    knobs |= {"labels": [f"source-{i}" for i in range(sources)], "tensor": "lm_head.weight"}
    knobs["shape"] = shape_of(inputs[0].size, choose)
    base, *values = (source.values for source in inputs)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = oracle_della(base, values, elect=name == "della", **knobs)
    assume(np.isfinite(expected).all())
    assume(np.abs(expected).max() < 60_000)

    for kernels in KERNELS:
        assert merge(name, inputs, kernels=kernels, dtype=dtype, **knobs) == to_dtype(
            expected, dtype
        )


@pytest.mark.parametrize("kernels", KERNELS, ids=["numba", "torch"])
@pytest.mark.parametrize("shape", [(40, 512), (80, 256), (5, 64, 64), (160, 2, 64), (20_480, 1)])
@pytest.mark.parametrize("step", [256, 4096, 4352])
def test_tiles_of_whole_rows_change_nothing(
    kernels: Any, shape: tuple[int, ...], step: int
) -> None:
    inputs = fine_tunes(2, 20_480)
    knobs: dict[str, Any] = {"weight": 0.7, "density": 0.4, "rescale": "l1", "shape": shape}
    whole = merge("della", inputs, kernels=CPU, dtype=DType.BF16, **knobs)

    assert merge("della", inputs, kernels=kernels, dtype=DType.BF16, step=step, **knobs) == whole


@BOTH
def test_one_source_at_density_1_and_weight_1_is_itself(name: str) -> None:
    inputs = fine_tunes(1, 20_000)

    assert merge(name, inputs, kernels=CPU, dtype=DType.BF16, weight=1) == inputs[1].raw.tobytes()


@BOTH
@pytest.mark.parametrize("knobs", [{"weight": 0}, {"weight": 1, "density": 0}], ids=str)
def test_without_weight_or_density_the_result_is_the_base(name: str, knobs: dict[str, Any]) -> None:
    inputs = fine_tunes(3, 5000)
    knobs = {"density": 0.5, **knobs}

    assert merge(name, inputs, kernels=CPU, dtype=DType.BF16, **knobs) == inputs[0].raw.tobytes()


@BOTH
def test_an_entry_stays_with_the_probability_of_its_rank_and_is_divided_by_it(name: str) -> None:
    """One row of 9 over 8,000 columns behind it; means within five standard deviations."""
    length, columns = 9, 8000
    values = np.repeat(np.array([3, -9, 1, 5, -2, 8, 4, -7, 6], np.float32), columns)
    inputs = [stored(np.zeros(values.size)), stored(values)]
    knobs: dict[str, Any] = {"weight": 1, "density": 0.5, "epsilon": 0.3}
    found = merged(name, inputs, shape=(1, length, columns), **knobs).reshape(length, columns)

    ranks = np.abs(values).reshape(length, columns)[:, 0].argsort().argsort()
    for row, rank, value in zip(found, ranks, values[::columns], strict=True):
        chance = 0.2 + 0.6 * rank / 8
        kept = row != 0
        assert abs(kept.mean() - chance) < 5 * math.sqrt(chance * (1 - chance) / columns)
        assert np.allclose(row[kept], value / chance, rtol=1e-6)
        error = abs(value) * math.sqrt((1 - chance) / chance / columns)
        assert abs(row.mean(dtype=np.float64) - value) < 5 * error


@pytest.mark.parametrize("shape", [(8192, 1), (2048, 1, 4), (8192, 1, 1)])
def test_a_row_of_one_entry_stays_with_the_density(shape: tuple[int, ...]) -> None:
    """Convolutions of Mamba and the like; mergekit divides 0 by 0 there and stops."""
    inputs = [stored(np.zeros(8192)), stored(np.ones(8192))]
    found = merged("della_linear", inputs, weight=1, density=0.3, shape=shape)

    assert abs((found != 0).mean() - 0.3) < 5 * math.sqrt(0.21 / 8192)
    assert set(found.tolist()) == {0.0, float(np.float32(1 / 0.3))}


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_tensor_of_one_element_merges(shape: tuple[int, ...]) -> None:
    inputs = [stored([1.0]), stored([3.0])]
    kept = merged("della", inputs, weight=1, density=0.5, rescale=False, shape=shape, seed=1)

    assert kept.tolist() in ([1], [3])


@pytest.mark.parametrize("kernels", KERNELS, ids=["numba", "torch"])
def test_ranks_are_exact_in_rows_beyond_65504(kernels: Any) -> None:
    """Neighbours that float16 and bfloat16 ranks cannot tell apart have factors of their own."""
    length = 70_001
    values = np.arange(1, length + 1, dtype=np.float32)
    rng = np.random.default_rng(0)
    rng.shuffle(values)
    inputs = [stored(np.zeros(length)), stored(values)]
    raw = merge("della_linear", inputs, kernels=kernels, weight=1, density=0.5)
    found = from_dtype(raw, DType.F32)

    kept = found != 0
    chance = 0.5 - 0.15 + 0.3 * ((values - 1) / (length - 1)).astype(np.float64)
    assert np.allclose(found[kept], (values / chance)[kept], rtol=3e-7)


def test_equal_magnitudes_rank_in_index_order() -> None:
    delta = np.array([1, -1, 1, -1, 0, -0.0], np.float32)

    assert probabilities(delta, (6,), 0.5, 0.5).tolist() == pytest.approx(
        [0.4, 0.6, 0.8, 1.0, 0.0, 0.2]
    )
    inputs = [stored(np.zeros(6)), stored(delta)]
    kept = [
        merged("della_linear", inputs, weight=1, density=0.5, epsilon=0.5, seed=seed) != 0
        for seed in range(40)
    ]
    assert np.mean(kept, axis=0)[3] == 1


@BOTH
def test_l1_keeps_the_norm_of_the_task_vector(name: str) -> None:
    inputs = fine_tunes(1, 20_000, dtypes=[DType.F32])
    base, source = (stored.values for stored in inputs)
    found = merged(name, inputs, weight=1, density=0.3, rescale="l1", shape=(100, 200))

    assert l1_norm(found - base) == pytest.approx(l1_norm(source - base), rel=1e-4)


@BOTH
def test_what_is_drawn_for_a_source_does_not_depend_on_the_others(name: str) -> None:
    base, first, second = fine_tunes(2, 5000)
    alone = merged(name, [base, first], labels=["math"], weight=1, density=0.3)
    beside = merged(
        name, [base, second, first], labels=["code", "math"], weight=[0, 1], density=0.3
    )

    assert np.array_equal(alone, beside)


def test_without_epsilon_what_stays_is_what_dare_keeps() -> None:
    inputs = fine_tunes(1, 5000, dtypes=[DType.F32])
    knobs: dict[str, Any] = {"weight": 1, "density": 0.3, "rescale": False}

    assert np.array_equal(
        merged("della_linear", inputs, epsilon=0, **knobs), merged("dare_linear", inputs, **knobs)
    )


@pytest.mark.parametrize(
    ("density", "epsilon", "advice"),
    [
        pytest.param(0.9, 0.15, "0.1 or less, or a `density` from 0.15 to 0.85", id="above"),
        pytest.param(0.1, 0.15, "0.1 or less, or a `density` from 0.15 to 0.85", id="below"),
        pytest.param(0.4, 0.7, "0.4 or less, or a `density` of 1, which keeps all", id="none"),
    ],
)
def test_probabilities_beyond_0_and_1_are_refused_with_both_knobs(
    density: float, epsilon: float, advice: str
) -> None:
    named = rf"density {density} and epsilon {epsilon} of source 2 .* an `epsilon` of "
    with pytest.raises(ValueError, match=named + advice):
        della(weight=(1, 1), density=(0.5, density), epsilon=(0.15, epsilon))


@pytest.mark.parametrize(
    ("density", "epsilon"), [(0.7, 0.3), (0.3, 0.3), (0.94, 0.06), (1.0, 0.5), (0.0, 0.5)]
)
def test_probabilities_up_to_0_and_1_and_densities_that_draw_nothing_are_accepted(
    density: float, epsilon: float
) -> None:
    assert della_linear(weight=(1,), density=(density,), epsilon=(epsilon,)).weight == (1,)


@pytest.mark.parametrize(
    ("knob", "meaning"), [(True, Rescale.DENSITY), (False, Rescale.NONE), ("l1", Rescale.L1)]
)
@pytest.mark.parametrize("method", [della, della_linear])
def test_the_rule_is_what_the_knobs_say(
    method: Callable[..., DeltaRule], *, knob: bool | Literal["l1"], meaning: Rescale
) -> None:
    rule = method(weight=(1, 2), density=(0.5, 0.2), epsilon=(0.1, 0.2), rescale=knob, lambda_=0.3)

    assert rule.keep == KeepRanked(density=(0.5, 0.2), epsilon=(0.1, 0.2))
    assert rule.weight == (1, 2)
    assert rule.rescale is meaning
    assert rule.elect == rule.normalize == (method is della)
    assert rule.scale == 0.3
