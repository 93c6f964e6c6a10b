"""Rows and columns with Gram matrices and coefficients of their own: one order, in any tiles."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.kernels.groups import Group, Groups, GroupSums
from raymerge.kernels.reduce import REDUCTION_BLOCK
from raymerge.kernels.tile import Kernels
from raymerge.kernels.torch_kernels import TorchKernels
from tests.oracles import Doubles, Floats, relative_span_pass, span_pass, to_dtype
from tests.span_oracles import grams_of, groups_of
from tests.strategies import (
    MERGEABLE,
    OUTPUTS,
    Stored,
    cut,
    find_gram,
    find_grams,
    fine_tunes,
    quick,
    run_group_span,
    run_span,
    stored,
)

KERNELS = pytest.mark.parametrize(
    "kernels", [CpuKernels(), TorchKernels("cpu")], ids=["numba", "torch"]
)
BOTH = (CpuKernels(), TorchKernels("cpu"))
EACH_KIND = pytest.mark.parametrize("kind", [Group.ROW, Group.COLUMN], ids=str)
SHAPES = [(7, 300), (300, 7), (3, 2000), (2, 5000), (1000, 2), (90, 64), (9, 3, 5), (4, 1, 300)]


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        (Group.ROW, (4, 6), (Group.ROW, 4, 6)),
        (Group.COLUMN, (4, 6), (Group.COLUMN, 6, 4)),
        (Group.TENSOR, (4, 6), (Group.TENSOR, 1, 24)),
        (Group.ROW, (2, 3, 5), (Group.ROW, 6, 5)),
        (Group.COLUMN, (2, 3, 5), (Group.COLUMN, 15, 2)),
        (Group.ROW, (9,), (Group.TENSOR, 1, 9)),
        (Group.COLUMN, (9,), (Group.TENSOR, 1, 9)),
        (Group.ROW, (), (Group.TENSOR, 1, 1)),
        (Group.COLUMN, (), (Group.TENSOR, 1, 1)),
        (Group.ROW, (1, 6), (Group.TENSOR, 1, 6)),
        (Group.COLUMN, (6, 1), (Group.TENSOR, 1, 6)),
        (Group.ROW, (0, 8), (Group.ROW, 0, 8)),
        (Group.ROW, (8, 0), (Group.ROW, 8, 0)),
    ],
)
def test_groups_of_a_shape(
    kind: Group, shape: tuple[int, ...], expected: tuple[Group, int, int]
) -> None:
    groups = Groups.of(kind, shape)

    assert (groups.kind, groups.count, groups.size) == expected
    assert groups.count * groups.size == prod(shape)


def grams_by_oracle(vectors: list[Floats], shape: tuple[int, ...], kind: Group) -> Doubles:
    return np.array([gram for _, gram in grams_of(vectors, shape, kind.value)])


def relative_to_first(inputs: list[Stored]) -> list[Floats]:
    base, *sources = (source.values for source in inputs)
    return [source - base for source in sources]


@KERNELS
@EACH_KIND
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("step", [None, 256, 1280])
def test_each_group_is_summed_in_the_contract_s_order(
    kernels: Kernels, kind: Group, shape: tuple[int, ...], step: int | None, *, relative: bool
) -> None:
    inputs = fine_tunes(2, prod(shape), dtypes=MERGEABLE)
    vectors = relative_to_first(inputs) if relative else [source.values for source in inputs]

    groups = Groups.of(kind, shape)
    found = find_grams(kernels, inputs, groups, relative=relative, step=step)

    assert np.array_equal(found, grams_by_oracle(vectors, shape, kind))


@quick
@given(
    shape=st.tuples(st.integers(2, 60), st.integers(2, 60)),
    kind=st.sampled_from([Group.ROW, Group.COLUMN]),
    tiles=st.sampled_from([256, 512, 768]),
)
def test_any_matrix_in_any_tiles_is_summed_alike(
    shape: tuple[int, int], kind: Group, tiles: int
) -> None:
    inputs = fine_tunes(1, prod(shape), dtypes=MERGEABLE)
    expected = grams_by_oracle([source.values for source in inputs], shape, kind)
    for kernels in BOTH:
        found = find_grams(kernels, inputs, Groups.of(kind, shape), step=tiles)
        assert np.array_equal(found, expected)


@KERNELS
@pytest.mark.parametrize("step", [None, 2**18, 2**20 + 256])
def test_a_row_longer_than_a_reduction_block_has_several(
    kernels: Kernels, step: int | None
) -> None:
    length = REDUCTION_BLOCK + 5000
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 2 * length)) * 10.0 ** rng.integers(-6, 6, 2 * length)
    inputs = [stored(row) for row in values.astype(np.float32)]
    rows = [[stored(source.values[i * length :][:length]) for source in inputs] for i in range(2)]

    found = find_grams(kernels, inputs, Groups.of(Group.ROW, (2, length)), step=step)

    assert np.array_equal(found, [find_gram(CpuKernels(), row) for row in rows])


def test_squared_lengths_are_at_least_0_and_matrices_symmetric() -> None:
    sums = GroupSums.new(Groups.of(Group.ROW, (4, 6)), 2)
    sums.totals[:] = [[-1e-30] * 4, [2.0] * 4, [3.0] * 4]

    assert sums.grams(2, 1, 3).tolist() == [[[0.0, 2.0], [2.0, 3.0]]] * 2


@KERNELS
@EACH_KIND
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", OUTPUTS)
@pytest.mark.parametrize("relative", [False, True])
def test_each_group_is_multiplied_by_its_own_coefficients(
    kernels: Kernels, kind: Group, shape: tuple[int, ...], dtype: DType, *, relative: bool
) -> None:
    inputs = fine_tunes(2, prod(shape), dtypes=MERGEABLE)
    values = [source.values for source in inputs]
    groups = Groups.of(kind, shape)
    rng = np.random.default_rng(0)
    coefficients = rng.normal(size=(3 - relative, groups.count)).astype(np.float32)
    expected = np.zeros_like(values[0])
    for number, group in enumerate(groups_of(shape, kind.value)):
        own, figures = [value[group] for value in values], coefficients[:, number].tolist()
        expected[group] = (
            relative_span_pass(own[0], own[1:], figures) if relative else span_pass(own, figures)
        )

    for step in (None, 512):
        raw, reports = run_group_span(
            groups, kernels, inputs, coefficients, relative=relative, dtype=dtype, step=step
        )
        assert raw == to_dtype(expected, dtype)
        assert set(reports) == {-1}


@KERNELS
@EACH_KIND
def test_equal_coefficients_of_all_groups_are_those_of_the_tensor(
    kernels: Kernels, kind: Group
) -> None:
    inputs = fine_tunes(2, 6000, dtypes=MERGEABLE)
    groups = Groups.of(kind, (60, 100))
    figures = np.repeat(np.array([[0.3], [-0.2]], np.float32), groups.count, axis=1)

    assert run_group_span(groups, kernels, inputs, figures, relative=True) == run_span(
        kernels, inputs, [0.3, -0.2], relative=True
    )


@KERNELS
@EACH_KIND
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(
    ("places", "report"),
    [
        pytest.param({}, -1, id="all finite"),
        pytest.param({2: 8999}, 2, id="last input, last block"),
        pytest.param({2: 0, 1: 8999}, 1, id="the first input, not the first block"),
    ],
)
def test_the_first_input_that_is_not_finite_is_reported(
    kernels: Kernels, kind: Group, *, relative: bool, places: dict[int, int], report: int
) -> None:
    values = np.ones((3, 9000), np.float32)
    for source, index in places.items():
        values[source, index] = np.nan
    inputs = [stored(row, DType.F16) for row in values]
    groups = Groups.of(kind, (90, 100))
    vectors = 3 - relative
    sums = GroupSums.new(groups, vectors)
    figures = np.ones((vectors, groups.count), np.float32)
    (tile,) = cut(inputs)

    assert kernels.group_gram(tile, groups, relative=relative, sums=sums) == report
    assert run_group_span(groups, kernels, inputs, figures, relative=relative)[1] == [report]


@KERNELS
@EACH_KIND
def test_a_result_that_overflows_is_the_output_s_fault(kernels: Kernels, kind: Group) -> None:
    groups = Groups.of(kind, (2, 3))
    figures = np.full((1, groups.count), 65520.0, np.float32)

    assert run_group_span(groups, kernels, [stored(np.ones(6))], figures, dtype=DType.F16)[1] == [1]


@KERNELS
@EACH_KIND
def test_no_input_is_written(kernels: Kernels, kind: Group) -> None:
    inputs = fine_tunes(2, 6000, dtypes=MERGEABLE)
    before = [source.raw.tobytes() for source in inputs]
    groups = Groups.of(kind, (60, 100))
    find_grams(kernels, inputs, groups, relative=True)
    run_group_span(groups, kernels, inputs, np.ones((2, groups.count)), relative=True)

    assert [source.raw.tobytes() for source in inputs] == before
