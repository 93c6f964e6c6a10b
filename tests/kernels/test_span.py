"""The span pass: numba, torch and the oracle give the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.kernels.tile import ALL_FINITE, Kernels
from raymerge.kernels.torch_kernels import TorchKernels
from tests.oracles import relative_span_pass, span_pass, to_dtype
from tests.strategies import (
    MERGEABLE,
    OUTPUTS,
    Stored,
    cut,
    fine_tunes,
    knob_values,
    quick,
    run_span,
    stored,
    tensors,
)

KERNELS = pytest.mark.parametrize(
    "kernels", [CpuKernels(), TorchKernels("cpu")], ids=["numba", "torch"]
)
BOTH = (CpuKernels(), TorchKernels("cpu"))
EACH_DTYPE = pytest.mark.parametrize("dtype", OUTPUTS)


def by_oracle(
    inputs: list[Stored], coefficients: list[float], *, relative: bool, dtype: DType
) -> bytes:
    values = [source.values for source in inputs]
    if relative:
        return to_dtype(relative_span_pass(values[0], values[1:], coefficients), dtype)
    return to_dtype(span_pass(values, coefficients), dtype)


@quick
@given(inputs=tensors(min_inputs=2), relative=st.booleans(), choose=st.data())
@EACH_DTYPE
def test_numba_torch_and_the_oracle_give_the_same_bytes(
    dtype: DType, inputs: list[Stored], *, relative: bool, choose: st.DataObject
) -> None:
    count = len(inputs) - relative
    coefficients = choose.draw(st.lists(knob_values, min_size=count, max_size=count))
    expected = by_oracle(inputs, coefficients, relative=relative, dtype=dtype)
    for kernels in BOTH:
        raw, _ = run_span(kernels, inputs, coefficients, relative=relative, dtype=dtype)
        assert raw == expected


@KERNELS
@EACH_DTYPE
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("size", [1, 255, 257, 4095, 4096, 4097, 30_001])
def test_any_size_and_any_mixture_of_types_gives_the_oracle_s_bytes(
    kernels: Kernels, dtype: DType, *, relative: bool, size: int
) -> None:
    inputs = fine_tunes(4, size, dtypes=MERGEABLE)
    coefficients = [0.3, -0.7, 1.1, 0.05, 0.25][relative:]

    raw, reports = run_span(kernels, inputs, coefficients, relative=relative, dtype=dtype)

    assert raw == by_oracle(inputs, coefficients, relative=relative, dtype=dtype)
    assert reports == [ALL_FINITE]


@KERNELS
@pytest.mark.parametrize("step", [256, 4096, 4352, 16_384])
def test_tiles_change_nothing(kernels: Kernels, step: int) -> None:
    inputs = fine_tunes(3, 20_000, dtypes=MERGEABLE)
    whole = run_span(kernels, inputs, [0.5, 0.3, 0.2], relative=True, dtype=DType.BF16)[0]
    tiled = run_span(kernels, inputs, [0.5, 0.3, 0.2], relative=True, dtype=DType.BF16, step=step)[
        0
    ]

    assert tiled == whole


@KERNELS
def test_no_input_is_written(kernels: Kernels) -> None:
    inputs = fine_tunes(3, 5000, dtypes=MERGEABLE)
    before = [source.raw.tobytes() for source in inputs]
    run_span(kernels, inputs, [2, 3, 4], relative=True)
    run_span(kernels, inputs, [2, 3, 4, 5])

    assert [source.raw.tobytes() for source in inputs] == before


@KERNELS
@EACH_DTYPE
def test_only_the_tile_s_elements_are_written(kernels: Kernels, dtype: DType) -> None:
    (tile,) = cut(fine_tunes(1, 300))
    out = np.full(dtype.num_bytes([310]), 0xAB, np.uint8)
    kernels.span(tile, np.array([0.5, 0.5], np.float32), relative=False, out=out, dtype=dtype)

    assert set(out[dtype.num_bytes([300]) :].tolist()) == {0xAB}


@KERNELS
@pytest.mark.parametrize("relative", [False, True])
def test_multiply_and_add_are_rounded_one_by_one(kernels: Kernels, *, relative: bool) -> None:
    """The square of b = 1 + 2**-12 rounds to 1 + 2**-11; fused, 2**-24 of it would be left."""
    b = 1 + 2.0**-12
    inputs = [stored([-1 - 2.0**-11] * 5000), stored([b] * 5000)]
    if relative:
        inputs.insert(0, stored([0.0] * 5000))

    raw, _ = run_span(kernels, inputs, [1.0, b], relative=relative)

    assert np.frombuffer(raw, np.float32).tolist() == [0.0] * 5000


@KERNELS
def test_sums_are_added_in_recipe_order(kernels: Kernels) -> None:
    """2**24 + 1 + 1 loses both ones, and 1 + 1 + 2**24 neither."""
    inputs = [stored([2.0**24, 1.0]), stored([1.0, 1.0]), stored([1.0, 2.0**24])]

    raw, _ = run_span(kernels, inputs, [1, 1, 1])

    assert np.frombuffer(raw, np.float32).tolist() == [2.0**24, 2.0**24 + 2]


@KERNELS
def test_half_precision_sources_are_summed_in_float32(kernels: Kernels) -> None:
    """In bfloat16 1 + 2**-9 - 1 is 0."""
    inputs = [stored([value], DType.BF16) for value in (1.0, 2.0**-9, -1.0)]

    raw, _ = run_span(kernels, inputs, [1, 1, 1], dtype=DType.BF16)

    assert raw == to_dtype(np.array([2.0**-9], np.float32), DType.BF16)


@KERNELS
@pytest.mark.parametrize("dtype", MERGEABLE)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("coefficient", [0.0, 1.0])
def test_an_input_that_is_not_finite_is_reported_whatever_its_coefficient(
    kernels: Kernels, dtype: DType, value: float, *, relative: bool, coefficient: float
) -> None:
    inputs = [stored(np.ones(5000), kind) for kind in (DType.BF16, DType.F32, dtype)]
    broken = inputs[2].values.copy()
    broken[4999] = value
    inputs[2] = stored(broken, dtype)

    _, reports = run_span(kernels, inputs, [coefficient] * (3 - relative), relative=relative)

    assert reports == [2]


@KERNELS
@pytest.mark.parametrize("relative", [False, True])
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
    kernels: Kernels, *, relative: bool, places: dict[int, int], reports: list[int]
) -> None:
    values = np.ones((3, 9000), np.float32)
    for source, index in places.items():
        values[source, index] = np.nan
    inputs = [stored(row) for row in values]

    assert (
        run_span(kernels, inputs, [1.0] * (3 - relative), relative=relative, step=8192)[1]
        == reports
    )


@KERNELS
@pytest.mark.parametrize(
    ("dtype", "coefficient", "report"),
    [
        pytest.param(DType.F16, 65519.0, -1, id="F16 rounds down to the largest"),
        pytest.param(DType.F16, 65520.0, 1, id="F16 overflows in the cast"),
        pytest.param(DType.BF16, 3.39e38, -1, id="BF16 rounds down to the largest"),
        pytest.param(DType.BF16, 3.4e38, 1, id="BF16 overflows in the cast"),
        pytest.param(DType.F32, 3.4e38, -1, id="F32 holds it"),
    ],
)
def test_a_finite_result_that_becomes_inf_is_reported(
    kernels: Kernels, dtype: DType, coefficient: float, report: int
) -> None:
    _, reports = run_span(kernels, [stored(np.ones(10))], [coefficient], dtype=dtype)

    assert reports == [report]


@KERNELS
def test_a_sum_that_overflows_is_the_output_s_fault(kernels: Kernels) -> None:
    inputs = [stored([1e38, 0]), stored([3e38, 0])]

    assert run_span(kernels, inputs, [1, 1])[1] == [2]


@KERNELS
def test_an_input_goes_before_an_output_that_overflowed_in_an_earlier_block(
    kernels: Kernels,
) -> None:
    values = np.ones(9000, np.float32)
    values[0], values[8999] = 3e38, np.nan

    assert run_span(kernels, [stored(values)], [2.0])[1] == [0]


@KERNELS
def test_nothing_is_finite(kernels: Kernels) -> None:
    (tile,) = cut(fine_tunes(1, 256))
    empty = type(tile)(buffers=tile.buffers, dtypes=tile.dtypes, first=0, count=0)
    out = np.zeros(4, np.uint8)

    assert (
        kernels.span(empty, np.array([1, 1], np.float32), relative=False, out=out, dtype=DType.F32)
        == -1
    )
    assert not out.any()


@KERNELS
@EACH_DTYPE
@quick
@given(
    inputs=tensors(min_inputs=2),
    relative=st.booleans(),
    step=st.sampled_from([None, 256]),
    choose=st.data(),
)
def test_several_outputs_are_what_each_is_alone(
    kernels: Kernels,
    dtype: DType,
    inputs: list[Stored],
    *,
    relative: bool,
    step: int | None,
    choose: st.DataObject,
) -> None:
    count = len(inputs) - relative
    own = st.lists(knob_values, min_size=count, max_size=count)
    coefficients = choose.draw(st.lists(own, min_size=1, max_size=5))
    lost = choose.draw(st.none() | st.integers(0, len(inputs) - 1))
    if lost is not None:
        inputs[lost].raw[-inputs[lost].dtype.bits // 8 :] = 0xFF
    parts: list[bytes] = [b""] * len(coefficients)
    reports: list[list[int]] = [[] for _ in coefficients]
    for tile in cut(inputs, step):
        outs = [np.zeros(dtype.num_bytes([tile.count]), np.uint8) for _ in coefficients]
        rows = np.array(coefficients, np.float32)
        found = kernels.span_trials(tile, rows, relative=relative, outs=outs, dtype=dtype)
        for position, (out, report) in enumerate(zip(outs, found, strict=True)):
            parts[position] += out.tobytes()
            reports[position].append(report)

    expected = [
        run_span(kernels, inputs, each, relative=relative, dtype=dtype, step=step)
        for each in coefficients
    ]
    assert list(zip(parts, reports, strict=True)) == expected
