"""Ranks within rows: exact, stable, and the same from numba, torch and a plain sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.constants import LANES
from raymerge.kernels.cpu import CpuKernels
from raymerge.kernels.delta import KEEP_RANKED, MODE
from raymerge.kernels.rows import Rows, keep_probabilities, rows_of, whole_rows
from raymerge.kernels.tile import Kernels, Ranked
from raymerge.kernels.torch_kernels import TorchKernels
from tests.oracles import Floats
from tests.strategies import (
    delta_figures,
    fine_tunes,
    float_arrays,
    keep_drawn,
    quick,
    run_delta,
    stored,
)

BOTH = (CpuKernels(), TorchKernels("cpu"))
KERNELS = pytest.mark.parametrize("kernels", BOTH, ids=["numba", "torch"])


def ranks(kernels: Kernels, values: Floats, rows: Rows) -> Floats:
    """The ranks a kernel finds: by factors that are ranks, of entries that all stay, over signs."""
    length = rows.length
    ranked = Ranked(
        rows=rows,
        limits=np.full((1, length), 2**32, np.uint64),
        factors=np.arange(1, length + 1, dtype=np.float32).reshape(1, length),
    )
    selectors = keep_drawn([1], [7])
    selectors[:, MODE] = KEEP_RANKED
    inputs = [stored(np.zeros(values.size)), stored(values)]
    raw, _ = run_delta(kernels, inputs, delta_figures(selectors, [1.0], ranked=ranked))
    return np.frombuffer(raw, np.float32)


def by_sorting(values: Floats, rows: Rows) -> Floats:
    """Each value times its rank, from 1 for the smallest magnitude."""
    shape = (-1, rows.length, rows.stride)
    order = np.argsort(np.abs(values).reshape(shape), axis=1, kind="stable")
    found = np.argsort(order, axis=1, kind="stable").reshape(-1)
    return values * (found + 1).astype(np.float32)


@quick
@given(values=float_arrays(), repeats=st.sampled_from([1, 2, 7]), choose=st.data())
def test_ranks_are_those_of_a_stable_sort(
    values: Floats, repeats: int, choose: st.DataObject
) -> None:
    values = np.tile(values, repeats)
    strides = [stride for stride in (1, repeats, values.size) if values.size % stride == 0]
    stride = choose.draw(st.sampled_from(strides))
    rows = Rows(length=values.size // stride, stride=stride)
    for kernels in BOTH:
        assert np.array_equal(ranks(kernels, values, rows), by_sorting(values, rows))


HARD = {
    "zeros": np.zeros(1000),
    "one value": np.full(1000, -3.5),
    "descending": np.arange(1000.0, 0, -1),
    "two near values": np.where(np.arange(4000) % 3, 1.0, 1 + 2.0**-23),
    "all in one bucket but one": np.append(1 + np.arange(3000)[::-1] * 2.0**-23, 1e-30),
    "every exponent": 2.0 ** np.linspace(-149, 127, 3000),
    "the largest and the smallest": [3.4e38, 1e-45] * 50,
    "a fine-tune": fine_tunes(1, 70_001)[1].values - fine_tunes(1, 70_001)[0].values,
}


@KERNELS
@pytest.mark.parametrize("values", HARD.values(), ids=HARD)
def test_rows_that_are_hard_to_order(kernels: Kernels, values: Floats) -> None:
    """Some in few buckets, which are sorted digit by digit; signs alternate."""
    row = np.array(values, np.float32)
    row[1::2] *= -1
    with np.errstate(over="ignore"):
        expected = by_sorting(row, Rows(length=row.size, stride=1))
        found = ranks(kernels, row, Rows(length=row.size, stride=1))

    assert np.array_equal(found, expected)


@KERNELS
@pytest.mark.parametrize("stride", [1, 2, 31, 32, 33, 100])
@pytest.mark.parametrize("length", [1, 2, 32, 33, 400])
def test_rows_lie_apart_behind_a_third_dimension(
    kernels: Kernels, length: int, stride: int
) -> None:
    rows = Rows(length=length, stride=stride)
    values = np.random.default_rng(1).normal(size=3 * rows.elements).astype(np.float32)

    assert np.array_equal(ranks(kernels, values, rows), by_sorting(values, rows))


@pytest.mark.parametrize(
    ("shape", "length", "stride"),
    [
        pytest.param((), 1, 1, id="scalar"),
        pytest.param((7,), 7, 1, id="vector: one row"),
        pytest.param((5, 7), 7, 1, id="matrix"),
        pytest.param((5, 1), 1, 1, id="rows of one"),
        pytest.param((5, 1, 4), 1, 4, id="depthwise convolution: rows of one"),
        pytest.param((5, 3, 2, 2), 3, 4, id="convolution: rows of input channels"),
        pytest.param((0, 7), 7, 1, id="no rows"),
        pytest.param((7, 0), 0, 1, id="empty rows"),
    ],
)
def test_rows_run_along_dimension_1(shape: tuple[int, ...], length: int, stride: int) -> None:
    assert rows_of(shape) == Rows(length=length, stride=stride)


@given(
    length=st.integers(0, 5000),
    stride=st.integers(1, 50),
    tile=st.integers(1, 2**12).map(lambda count: 256 * count),
)
def test_a_tile_holds_whole_rows_and_ends_at_a_lane(length: int, stride: int, tile: int) -> None:
    rows = Rows(length=length, stride=stride)
    found = whole_rows(rows, tile)

    assert found % LANES == 0
    assert found % max(1, rows.elements) == 0
    assert found <= max(tile, LANES * max(1, rows.elements))


def test_probabilities_rise_evenly_around_the_density() -> None:
    assert keep_probabilities(0.5, 0.2, 5).tolist() == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7])
    assert keep_probabilities(0.3, 0.2, 1).tolist() == [0.3]
    assert keep_probabilities(0.7, 0.3, 3).max() <= 1
    assert keep_probabilities(0.5, 0.2, 0).size == 0


@KERNELS
def test_a_tile_in_the_middle_of_a_tensor_draws_its_own_words(kernels: Kernels) -> None:
    """Rows of 5: tiles begin where a row does and at a multiple of 256."""
    inputs = fine_tunes(1, 4 * 1280, dtypes=[DType.F32])
    rows = Rows(length=5, stride=1)
    ranked = Ranked(
        rows=rows,
        limits=np.full((1, 5), 2**31, np.uint64),
        factors=np.ones((1, 5), np.float32),
    )
    selectors = keep_drawn([1], [7])
    selectors[:, MODE] = KEEP_RANKED
    figures = delta_figures(selectors, [1.0], ranked=ranked)

    assert run_delta(kernels, inputs, figures, step=1280) == (
        run_delta(kernels, inputs, figures)[0],
        [-1] * 4,
    )
