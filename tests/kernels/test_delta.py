"""The fused delta pass: numba, torch and the oracle give the same bytes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.kernels.philox import draw_key
from raymerge.kernels.threshold import NOTHING, Threshold
from raymerge.kernels.tile import ALL_FINITE, DeltaPass, Kernels, Selectors
from raymerge.kernels.torch_kernels import TorchKernels
from tests.oracles import Floats, Mask, delta_pass, drawn_words, kept_largest, to_dtype
from tests.strategies import (
    MERGEABLE,
    OUTPUTS,
    Stored,
    delta_figures,
    densities,
    find_thresholds,
    fine_tunes,
    keep_all,
    keep_drawn,
    keep_largest,
    knob_values,
    quick,
    run_delta,
    stored,
    tensors,
)

KERNELS = pytest.mark.parametrize(
    "kernels", [CpuKernels(), TorchKernels("cpu")], ids=["numba", "torch"]
)
BOTH = (CpuKernels(), TorchKernels("cpu"))
EACH_DTYPE = pytest.mark.parametrize("dtype", OUTPUTS)


class Fuse(NamedTuple):
    """What is done with the entries that stay."""

    elect: bool
    normalize: bool
    scale: float = 1.0


FUSES = [Fuse(elect, normalize) for elect in (False, True) for normalize in (False, True)]
EACH_FUSE = pytest.mark.parametrize("fuse", FUSES)
fuses = st.builds(Fuse, st.booleans(), st.booleans(), knob_values)


def deltas_of(inputs: list[Stored]) -> list[Floats]:
    base, *sources = (source.values for source in inputs)
    return [source - base for source in sources]


def by_oracle(
    inputs: list[Stored], masks: list[Mask], weights: list[float], fuse: Fuse, dtype: DType
) -> bytes:
    kept = [
        np.where(mask, delta, np.float32(0))
        for delta, mask in zip(deltas_of(inputs), masks, strict=True)
    ]
    merged = delta_pass(
        inputs[0].values,
        kept,
        shares=weights,
        weight=weights,
        elect=fuse.elect,
        normalize=fuse.normalize,
        lambda_=fuse.scale,
    )
    return to_dtype(merged, dtype)


def figures_of(selectors: Selectors, weights: list[float], fuse: Fuse) -> DeltaPass:
    return delta_figures(
        selectors, weights, elect=fuse.elect, normalize=fuse.normalize, scale=fuse.scale
    )


@quick
@given(inputs=tensors(min_inputs=2), fuse=fuses, choose=st.data())
@EACH_DTYPE
def test_the_largest_entries_fuse_as_in_the_oracle(
    dtype: DType, inputs: list[Stored], fuse: Fuse, choose: st.DataObject
) -> None:
    """Weights may cancel here: the pass divides by 1 where their float32 sum is 0."""
    sources = len(inputs) - 1
    weights = choose.draw(st.lists(knob_values, min_size=sources, max_size=sources))
    asked = choose.draw(st.lists(densities, min_size=sources, max_size=sources))
    masks = [kept_largest(d, share) for d, share in zip(deltas_of(inputs), asked, strict=True)]
    with np.errstate(over="ignore", invalid="ignore"):
        expected = by_oracle(inputs, masks, weights, fuse, dtype)
    for kernels in BOTH:
        selectors = keep_largest(find_thresholds(kernels, inputs, asked))
        raw, _ = run_delta(kernels, inputs, figures_of(selectors, weights, fuse), dtype=dtype)
        assert raw == expected


@quick
@given(inputs=tensors(min_inputs=2), fuse=fuses, seed=st.integers(0, 2**32), choose=st.data())
@EACH_DTYPE
def test_drawn_entries_fuse_as_in_the_oracle(
    dtype: DType, inputs: list[Stored], fuse: Fuse, seed: int, choose: st.DataObject
) -> None:
    sources = len(inputs) - 1
    weights = choose.draw(st.lists(knob_values, min_size=sources, max_size=sources))
    asked = choose.draw(st.lists(densities, min_size=sources, max_size=sources))
    keys = [draw_key(seed, label=str(i), tensor="t") for i in range(sources)]
    masks = [
        drawn_words(key, 0, inputs[0].size) < int(share * 2**32)
        for key, share in zip(keys, asked, strict=True)
    ]
    with np.errstate(over="ignore", invalid="ignore"):
        expected = by_oracle(inputs, masks, weights, fuse, dtype)
    for kernels in BOTH:
        figures = figures_of(keep_drawn(asked, keys), weights, fuse)
        assert run_delta(kernels, inputs, figures, dtype=dtype)[0] == expected


@KERNELS
@EACH_FUSE
@pytest.mark.parametrize("size", [1, 255, 257, 4095, 4096, 4097, 20_001])
def test_any_size_any_mixture_of_types_and_of_selectors_gives_the_oracle_s_bytes(
    kernels: Kernels, fuse: Fuse, size: int
) -> None:
    inputs = fine_tunes(3, size, dtypes=MERGEABLE)
    selectors = keep_all(3)
    selectors[1:2] = keep_largest(find_thresholds(kernels, inputs, [1, 0.2, 1])[1:2])
    selectors[2:3] = keep_drawn([0.4], [99])
    masks = [
        np.ones(size, np.bool_),
        kept_largest(deltas_of(inputs)[1], 0.2),
        drawn_words(99, 0, size) < int(0.4 * 2**32),
    ]
    weights = [0.5, -0.3, 1.7]

    raw, reports = run_delta(
        kernels, inputs, figures_of(selectors, weights, fuse), dtype=DType.BF16
    )

    assert raw == by_oracle(inputs, masks, weights, fuse, DType.BF16)
    assert reports == [ALL_FINITE]


@KERNELS
@EACH_FUSE
@pytest.mark.parametrize("step", [256, 4096, 4352, 16_384])
def test_tiles_change_nothing(kernels: Kernels, fuse: Fuse, step: int) -> None:
    """On bfloat16 task vectors: ties are spread over tiles, and draws are counted through them."""
    inputs = fine_tunes(2, 30_000)
    selectors = keep_largest(find_thresholds(kernels, inputs, [0.2, 0.2]))
    selectors[1:] = keep_drawn([0.3], [2**63 + 1])
    figures = figures_of(selectors, [1.0, 0.5], fuse)

    assert (
        run_delta(kernels, inputs, figures, step=step)[0] == run_delta(kernels, inputs, figures)[0]
    )


@KERNELS
def test_no_input_is_written(kernels: Kernels) -> None:
    inputs = fine_tunes(3, 5000, dtypes=MERGEABLE)
    before = [source.raw.tobytes() for source in inputs]
    selectors = keep_largest(find_thresholds(kernels, inputs, [0.1] * 3))
    run_delta(kernels, inputs, delta_figures(selectors, [2, 3, 4], elect=True, normalize=True))

    assert [source.raw.tobytes() for source in inputs] == before


@KERNELS
@pytest.mark.parametrize(
    ("entries", "weights", "fuse", "expected"),
    [
        pytest.param([1, 3], [1, 1], Fuse(elect=True, normalize=True), 2, id="mean"),
        pytest.param([1, 3], [1, 1], Fuse(elect=True, normalize=False), 4, id="sum"),
        pytest.param([1, 3], [1, 3], Fuse(elect=True, normalize=True), 2.5, id="weighted mean"),
        pytest.param([-1, 3], [1, 1], Fuse(elect=True, normalize=True), 3, id="minority left out"),
        pytest.param([-3, 1], [1, 1], Fuse(elect=True, normalize=True), -3, id="majority is -"),
        pytest.param([-2, 2], [1, 1], Fuse(elect=True, normalize=True), 2, id="zero counts as +"),
        pytest.param([2, -2], [1, 1], Fuse(elect=True, normalize=True), 2, id="whoever is first"),
        pytest.param([0, 3], [1, 1], Fuse(elect=True, normalize=True), 3, id="0 has no share"),
        pytest.param([0, 0], [1, 1], Fuse(elect=True, normalize=True), 0, id="nobody has an entry"),
        pytest.param([-2, 3], [2, 1], Fuse(elect=True, normalize=True), -2, id="weights vote"),
        pytest.param([2, 3], [-1, 1], Fuse(elect=True, normalize=False), 3, id="a weight below 0"),
        pytest.param([2, 3], [-1, -1], Fuse(elect=True, normalize=True), 2.5, id="all below 0"),
        pytest.param([0, 3], [1, 1], Fuse(elect=False, normalize=True), 1.5, id="0 has a share"),
        pytest.param([-1, 3], [1, 1], Fuse(elect=False, normalize=False), 2, id="plain sum"),
        pytest.param([1, 3], [1, -1], Fuse(elect=False, normalize=True), -2, id="divisor 0 is 1"),
        pytest.param([1, 3], [1, 1], Fuse(elect=True, normalize=True, scale=0.5), 1, id="lambda"),
        pytest.param([1, 3], [0, 0], Fuse(elect=True, normalize=True), 0, id="all weights 0"),
    ],
)
def test_entries_elect_and_fuse(
    kernels: Kernels, entries: list[float], weights: list[float], fuse: Fuse, expected: float
) -> None:
    """Over a base of 10, to which what is fused is added."""
    inputs = [stored([10.0]), *(stored([10.0 + entry]) for entry in entries)]

    raw, _ = run_delta(kernels, inputs, figures_of(keep_all(len(entries)), weights, fuse))

    assert np.frombuffer(raw, np.float32).tolist() == [10 + expected]


@KERNELS
def test_a_rescaled_entry_has_its_weight_in_the_divisor(kernels: Kernels) -> None:
    """Shares are what entries are multiplied by, weights what the mean divides by."""
    inputs = [stored([0.0]), stored([2.0]), stored([4.0])]
    figures = delta_figures(keep_all(2), [2.0, 2.0], weights=[1.0, 1.0], elect=True, normalize=True)

    raw, _ = run_delta(kernels, inputs, figures)

    assert np.frombuffer(raw, np.float32).tolist() == [(2 * 2 + 2 * 4) / 2]


@KERNELS
@EACH_FUSE
def test_an_entry_that_is_dropped_has_no_vote(kernels: Kernels, fuse: Fuse) -> None:
    """Where everything is dropped, the base is left as it was."""
    inputs = fine_tunes(2, 5000, dtypes=[DType.F32])
    nobody = run_delta(kernels, inputs, figures_of(keep_largest([NOTHING] * 2), [1.0, 2.0], fuse))
    undrawn = run_delta(kernels, inputs, figures_of(keep_drawn([0, 0], [1, 2]), [1.0, 2.0], fuse))

    assert nobody[0] == undrawn[0] == inputs[0].raw.tobytes()


@KERNELS
def test_multiply_and_add_are_rounded_one_by_one_in_the_vote(kernels: Kernels) -> None:
    """The square of b = 1 + 2**-12 rounds to 1 + 2**-11; fused, 2**-24 of it would be left."""
    b = 1 + 2.0**-12
    inputs = [stored([value] * 5000) for value in (0.0, -1 - 2.0**-11, b)]

    raw, _ = run_delta(kernels, inputs, delta_figures(keep_all(2), [1.0, b]))

    assert np.frombuffer(raw, np.float32).tolist() == [0.0] * 5000


@KERNELS
@pytest.mark.parametrize("elect", [False, True])
def test_scale_and_base_are_rounded_one_by_one(kernels: Kernels, *, elect: bool) -> None:
    """A task vector of b = 1 + 2**-12 times lambda b, over a base of -(1 + 2**-11)."""
    b = 1 + 2.0**-12
    inputs = [stored([-1 - 2.0**-11] * 5000), stored([-(2.0**-12)] * 5000)]

    raw, _ = run_delta(kernels, inputs, delta_figures(keep_all(1), [1.0], scale=b, elect=elect))

    assert np.frombuffer(raw, np.float32).tolist() == [0.0] * 5000


@KERNELS
def test_the_vote_is_a_float32_sum_in_recipe_order(kernels: Kernels) -> None:
    """-2**24 - 1 + 2**24 is 0 in float32, a tie that elects +; with the 1 last it is -1."""
    columns = {(-(2.0**24), -1.0, 2.0**24): 1.0, (-(2.0**24), 2.0**24, -1.0): -1.0}
    for entries, sign in columns.items():
        inputs = [stored([0.0]), *(stored([entry]) for entry in entries)]
        raw, _ = run_delta(kernels, inputs, delta_figures(keep_all(3), [1.0] * 3, elect=True))
        assert np.sign(np.frombuffer(raw, np.float32)[0]) == sign


@KERNELS
@pytest.mark.parametrize("dtype", MERGEABLE)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@EACH_FUSE
def test_an_input_that_is_not_finite_is_reported_even_where_it_is_dropped(
    kernels: Kernels, dtype: DType, value: float, fuse: Fuse
) -> None:
    values = np.ones(5000, np.float32)
    values[4999] = value
    inputs = [stored(np.ones(5000)), stored(np.ones(5000)), stored(values, dtype)]
    figures = figures_of(keep_drawn([0, 0], [1, 2]), [0.0, 0.0], fuse)

    assert run_delta(kernels, inputs, figures)[1] == [2]


@KERNELS
@EACH_FUSE
@pytest.mark.parametrize(
    ("places", "reports"),
    [
        pytest.param({0: 0, 1: 1, 2: 2}, [0, -1], id="the first of three"),
        pytest.param({2: 0, 1: 7000}, [1, -1], id="the first input, not the first block"),
        pytest.param({1: 0, 0: 7000}, [0, -1], id="the base, though a source's comes earlier"),
        pytest.param({1: 8192}, [-1, 1], id="tile by tile"),
    ],
)
def test_the_first_input_that_is_not_finite_is_reported(
    kernels: Kernels, fuse: Fuse, places: dict[int, int], reports: list[int]
) -> None:
    values = np.ones((3, 9000), np.float32)
    for source, index in places.items():
        values[source, index] = np.nan
    inputs = [stored(row) for row in values]
    figures = figures_of(keep_all(2), [1.0, 1.0], fuse)

    assert run_delta(kernels, inputs, figures, step=8192)[1] == reports


@KERNELS
@pytest.mark.parametrize(
    ("dtype", "scale", "report"),
    [
        pytest.param(DType.F16, 65519.0, -1, id="F16 rounds down to the largest"),
        pytest.param(DType.F16, 65520.0, 2, id="F16 overflows in the cast"),
        pytest.param(DType.BF16, 3.4e38, 2, id="BF16 overflows in the cast"),
        pytest.param(DType.F32, 3.4e38, -1, id="F32 holds it"),
    ],
)
def test_a_finite_result_that_becomes_inf_is_reported(
    kernels: Kernels, dtype: DType, scale: float, report: int
) -> None:
    inputs = [stored(np.zeros(10)), stored(np.ones(10))]
    figures = delta_figures(keep_all(1), [1.0], scale=scale)

    assert run_delta(kernels, inputs, figures, dtype=dtype)[1] == [report]


@KERNELS
def test_a_task_vector_that_overflows_is_the_output_s_fault(kernels: Kernels) -> None:
    inputs = [stored([-3e38, 0]), stored([3e38, 0])]

    assert run_delta(kernels, inputs, delta_figures(keep_all(1), [1.0]))[1] == [2]


@KERNELS
def test_the_threshold_entry_itself_stays(kernels: Kernels) -> None:
    inputs = [stored(np.zeros(4)), stored([1.0, -2.0, 3.0, 2.0])]
    limit = Threshold(bits=int(np.float32(2).view(np.uint32)), kept=2, tied=2)

    raw, _ = run_delta(kernels, inputs, delta_figures(keep_largest([limit]), [1.0]))

    assert np.frombuffer(raw, np.float32).tolist() == [0, -2, 3, 2]
