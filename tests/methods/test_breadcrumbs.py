"""Breadcrumbs, with and without an election: the band of each task vector that stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.kernels.threshold import band_ranks
from raymerge.kernels.torch_kernels import TorchKernels
from raymerge.methods.breadcrumbs import breadcrumbs
from raymerge.methods.breadcrumbs_ties import breadcrumbs_ties
from raymerge.methods.rules import DeltaRule, KeepBand, Rescale
from tests.band_oracles import kept_band, oracle_breadcrumbs
from tests.oracles import Floats, from_dtype, l1_norm, to_dtype
from tests.strategies import (
    OUTPUTS,
    Stored,
    densities,
    find_band,
    fine_tunes,
    float_arrays,
    merge,
    quick,
    run_delta,
    stored,
    tensors,
)
from tests.strategies import delta_figures as figures_of

CPU = CpuKernels()
KERNELS = (CPU, TorchKernels("cpu"))
BOTH = pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
shares = st.floats(0.125, 2, width=32)
gammas = densities | st.floats(0, 0.2)


def merged(name: str, inputs: list[Stored], **knobs: Any) -> Floats:
    return from_dtype(merge(name, inputs, kernels=CPU, **knobs), DType.F32)


@pytest.mark.parametrize(
    ("density", "gamma", "size", "ranks"),
    [
        pytest.param(0.9, 0.01, 1024, (10, 931), id="both ends"),
        pytest.param(0.9, 0.01, 32, (0, 28), id="gamma * n below 1 drops no outlier"),
        pytest.param(0.9, 0.2, 1024, (103, 1024), id="fewer outliers where density leaves less"),
        pytest.param(0.5, 0.0, 1024, (0, 512), id="without outliers"),
        pytest.param(0.01, 0.01, 32, (0, 0), id="density * n below 1 keeps nothing"),
        pytest.param(0.0, 0.5, 100, (50, 50), id="density 0 keeps nothing"),
        pytest.param(0.5, 1.0, 100, (50, 100), id="all but the kept are outliers"),
        pytest.param(0.5, 0.1, 0, (0, 0), id="nothing"),
    ],
)
def test_the_band_is_mergekit_s(
    density: float, gamma: float, size: int, ranks: tuple[int, int]
) -> None:
    assert band_ranks(density, gamma, size) == ranks


@quick
@given(values=float_arrays(), density=densities, gamma=gammas, step=st.sampled_from([None, 256]))
def test_the_band_is_the_oracle_s_tied_entries_included(
    values: Floats, density: float, gamma: float, step: int | None
) -> None:
    """A first tile that is not like the rest names a wrong bin: the result is the same."""
    inputs = [stored(np.zeros(values.size)), stored(values)]
    expected = np.where(kept_band(values, density, gamma), values, np.float32(0))
    keep = KeepBand(density=(density,), gamma=(gamma,))
    for kernels in KERNELS:
        selectors = find_band(kernels, inputs, keep, step=step)
        raw, _ = run_delta(kernels, inputs, figures_of(selectors, [1.0]), step=step)
        assert np.array_equal(np.frombuffer(raw, np.float32), expected)


@quick
@given(
    inputs=tensors(min_inputs=2),
    rescale=st.booleans(),
    normalize=st.booleans(),
    choose=st.data(),
)
@pytest.mark.parametrize("dtype", OUTPUTS)
@BOTH
def test_a_merge_is_the_oracle_s(
    name: str,
    dtype: DType,
    inputs: list[Stored],
    *,
    rescale: bool,
    normalize: bool,
    choose: st.DataObject,
) -> None:
    sources = len(inputs) - 1
    knobs: dict[str, Any] = {
        knob: choose.draw(st.lists(values, min_size=sources, max_size=sources))
        for knob, values in {"weight": shares, "density": densities, "gamma": gammas}.items()
    }
    knobs |= {"rescale": rescale, "normalize": normalize, "lambda_": 0.5}
    if not normalize:
        knobs["weight"][0] *= -1
    base, *values = (source.values for source in inputs)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = oracle_breadcrumbs(base, values, elect=name == "breadcrumbs_ties", **knobs)
    assume(np.isfinite(expected).all())
    assume(np.abs(expected).max() < 60_000)

    assert merge(name, inputs, kernels=CPU, dtype=dtype, **knobs) == to_dtype(expected, dtype)


@BOTH
@pytest.mark.parametrize("gamma", [0.01, 0.5])
def test_one_source_at_density_1_and_weight_1_is_itself(name: str, gamma: float) -> None:
    """Outliers included, as in mergekit."""
    inputs = fine_tunes(1, 20_000)
    found = merge(name, inputs, kernels=CPU, dtype=DType.BF16, weight=1, gamma=gamma)

    assert found == inputs[1].raw.tobytes()


@BOTH
@pytest.mark.parametrize("knobs", [{"weight": 0}, {"weight": 1, "density": 0}], ids=str)
def test_without_weight_or_density_the_result_is_the_base(name: str, knobs: dict[str, Any]) -> None:
    inputs = fine_tunes(3, 5000)

    assert merge(name, inputs, kernels=CPU, dtype=DType.BF16, **knobs) == inputs[0].raw.tobytes()


@pytest.mark.parametrize(
    ("density", "gamma", "kept"),
    [
        pytest.param(0.5, 0.1, [4, 5, 6, 7, 8], id="both ends are dropped"),
        pytest.param(0.5, 0.0, [5, 6, 7, 8, 9], id="no outliers"),
        pytest.param(0.5, 0.09, [5, 6, 7, 8, 9], id="less than one outlier"),
        pytest.param(0.9, 0.9, [0, 1, 2, 3, 4, 5, 6, 7, 8], id="no noise is left to drop"),
        pytest.param(0.3, 0.9, [0, 1, 2], id="only the smallest stay"),
    ],
)
def test_what_stays_lies_between_the_outliers_and_the_noise(
    density: float, gamma: float, kept: list[int]
) -> None:
    values = [1.0, -2, 3, -4, 5, -6, 7, -8, 9, -10]
    inputs = [stored(np.zeros(10)), stored(values)]

    found = merged("breadcrumbs", inputs, weight=1, density=density, gamma=gamma)

    assert np.flatnonzero(found).tolist() == kept


@pytest.mark.parametrize(
    ("values", "density", "gamma", "expected"),
    [
        pytest.param([1.0] * 10, 0.4, 0.2, [0, 0, 1, 0, 1, 0, 0, 1, 0, 1], id="both ends at one"),
        pytest.param([2.0] * 4 + [1.0] * 4, 0.5, 0.25, [0, 2, 0, 2, 0, 1, 0, 1], id="at both"),
        pytest.param([0.0] * 6 + [3, 5.0], 0.5, 0.125, [0, 0, 0, 0, 0, 0, 3, 0], id="zeros tied"),
    ],
)
def test_tied_entries_are_kept_evenly_spread(
    values: list[float], density: float, gamma: float, expected: list[float]
) -> None:
    inputs = [stored(np.zeros(len(values))), stored(values)]

    found = merged("breadcrumbs", inputs, weight=1, density=density, gamma=gamma)

    assert found.tolist() == expected


@pytest.mark.parametrize("size", [1, 10, 99])
def test_a_small_tensor_whose_share_of_outliers_is_below_1_keeps_its_largest(size: int) -> None:
    values = np.arange(1.0, size + 1)
    inputs = [stored(np.zeros(size)), stored(values)]
    found = merged("breadcrumbs", inputs, weight=1, density=0.9, gamma=0.01)

    kept = int(0.9 * size)
    assert np.flatnonzero(found).tolist() == list(range(size - kept, size))


def test_the_election_leaves_out_the_minority() -> None:
    inputs = [stored([0.0]), stored([3.0]), stored([-1.0])]

    assert merged("breadcrumbs", inputs, weight=1).tolist() == [2]
    assert merged("breadcrumbs_ties", inputs, weight=1).tolist() == [3]


@BOTH
def test_l1_gives_what_is_kept_the_norm_of_the_whole(name: str) -> None:
    inputs = fine_tunes(1, 20_000, dtypes=[DType.F32])
    base, source = (stored.values for stored in inputs)
    knobs: dict[str, Any] = {"weight": 1, "density": 0.3, "gamma": 0.05}
    found = merged(name, inputs, rescale="l1", **knobs)

    assert l1_norm(found - base) == pytest.approx(l1_norm(source - base), rel=1e-4)
    assert np.array_equal(found, merged(name, inputs, rescale=True, **knobs))


@pytest.mark.parametrize("method", [breadcrumbs, breadcrumbs_ties])
def test_the_rule_is_what_the_knobs_say(method: Callable[..., DeltaRule]) -> None:
    rule = method(weight=(1, 2), density=(0.5, 0.2), gamma=(0.1, 0.2), rescale="l1", lambda_=0.3)

    assert rule.keep == KeepBand(density=(0.5, 0.2), gamma=(0.1, 0.2))
    assert rule.weight == (1, 2)
    assert rule.rescale is Rescale.L1
    assert rule.elect == (method is breadcrumbs_ties)
    assert not rule.normalize
    assert rule.scale == 0.3
