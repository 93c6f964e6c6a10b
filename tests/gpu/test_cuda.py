"""CUDA gives the CPU's bytes, kernel by kernel, on a few million elements."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.kernels.groups import Group, Groups
from raymerge.kernels.philox import draw_key
from raymerge.kernels.tile import Kernels, Selectors
from raymerge.kernels.torch_kernels import TorchKernels
from raymerge.kernels.torch_kernels import philox_words as torch_philox_words
from tests.oracles import drawn_words
from tests.strategies import (
    MERGEABLE,
    OUTPUTS,
    Stored,
    delta_figures,
    find_gram,
    find_grams,
    find_norms,
    find_thresholds,
    fine_tunes,
    keep_all,
    keep_drawn,
    keep_largest,
    merge,
    run_delta,
    run_group_span,
    run_span,
    stored,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

SIZE = 3 * 2**20 + 777
TILE = 2**20
CPU = CpuKernels()
EACH_DTYPE = pytest.mark.parametrize("dtype", OUTPUTS)
DTYPES = {"bfloat16": (DType.BF16,), "mixed": MERGEABLE}
EACH_SOURCES = pytest.mark.parametrize("sources", DTYPES)


@cache
def cuda() -> Kernels:
    return TorchKernels("cuda")


@cache
def inputs(sources: str) -> list[Stored]:
    return fine_tunes(3, SIZE, dtypes=DTYPES[sources])


@cache
def selectors(sources: str, how: str) -> Selectors:
    if how == "largest":
        return keep_largest(find_thresholds(CPU, inputs(sources), [0.2, 0.5, 0.01]))
    if how == "drawn":
        return keep_drawn([0.1, 0.5, 0.9], [draw_key(0, label=x, tensor="t") for x in "abc"])
    return keep_all(3)


@EACH_SOURCES
@EACH_DTYPE
@pytest.mark.parametrize("relative", [False, True])
def test_span(sources: str, dtype: DType, *, relative: bool) -> None:
    coefficients = [0.3, -0.7, 1.1, 0.05][relative:]
    expected = run_span(CPU, inputs(sources), coefficients, relative=relative, dtype=dtype)

    found = run_span(cuda(), inputs(sources), coefficients, relative=relative, dtype=dtype)

    assert found == expected


@EACH_SOURCES
@EACH_DTYPE
@pytest.mark.parametrize("how", ["all", "largest", "drawn"])
@pytest.mark.parametrize("elect", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_delta(sources: str, dtype: DType, how: str, *, elect: bool, normalize: bool) -> None:
    figures = delta_figures(
        selectors(sources, how),
        [1.3, 0.4, 2.1],
        weights=[0.9, 0.35, 1.1],
        elect=elect,
        normalize=normalize,
        scale=0.7,
    )
    expected = run_delta(CPU, inputs(sources), figures, dtype=dtype, step=TILE)

    assert run_delta(cuda(), inputs(sources), figures, dtype=dtype, step=TILE) == expected
    assert run_delta(cuda(), inputs(sources), figures, dtype=dtype)[0] == expected[0]


@EACH_SOURCES
@pytest.mark.parametrize("relative", [False, True])
def test_gram(sources: str, *, relative: bool) -> None:
    expected = find_gram(CPU, inputs(sources), relative=relative)

    assert find_gram(cuda(), inputs(sources), relative=relative, step=TILE).tobytes() == (
        expected.tobytes()
    )


@EACH_SOURCES
@pytest.mark.parametrize("how", ["largest", "drawn"])
def test_norms(sources: str, how: str) -> None:
    expected = find_norms(CPU, inputs(sources), selectors(sources, how))

    assert np.array_equal(
        find_norms(cuda(), inputs(sources), selectors(sources, how), step=TILE), expected
    )


@EACH_SOURCES
@pytest.mark.parametrize("density", [0.001, 0.2, 0.9])
def test_thresholds(sources: str, density: float) -> None:
    asked = [density, 0.5, 0.0]

    assert find_thresholds(cuda(), inputs(sources), asked, step=TILE) == find_thresholds(
        CPU, inputs(sources), asked
    )


def test_draws() -> None:
    key = draw_key(0, label="a", tensor="t")
    words = torch_philox_words(key, 4 * 2**33, SIZE, torch.device("cuda")).cpu().numpy()

    assert np.array_equal(words.astype(np.uint64), drawn_words(key, 4 * 2**33, SIZE))


def test_multiply_and_add_are_rounded_one_by_one() -> None:
    """The square of b = 1 + 2**-12 rounds to 1 + 2**-11; fused, 2**-24 of it would be left."""
    b = 1 + 2.0**-12
    pair = [stored([-1 - 2.0**-11] * 5000), stored([b] * 5000)]
    zeros = [stored([0.0] * 5000)]

    assert not np.frombuffer(run_span(cuda(), pair, [1.0, b])[0], np.float32).any()
    figures = delta_figures(keep_all(2), [1.0, b])
    assert not np.frombuffer(run_delta(cuda(), zeros + pair, figures)[0], np.float32).any()


def test_subnormals_are_not_flushed() -> None:
    tiny = [stored([1e-45, -1e-40, 3e-39]), stored([1e-44, 1e-40, 1e-39])]

    assert run_span(cuda(), tiny, [0.5, 0.5]) == run_span(CPU, tiny, [0.5, 0.5])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_input_that_is_not_finite_is_reported(value: float) -> None:
    broken = np.ones(SIZE, np.float32)
    broken[-1] = value
    ones = stored(np.ones(SIZE))

    assert run_span(cuda(), [ones, stored(broken), ones], [0, 0, 0])[1] == [1]


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        pytest.param("linear", {"weight": [1, 2, 3, 4]}, id="linear"),
        pytest.param("task_arithmetic", {"weight": [0.3, -0.2, 0.9]}, id="task_arithmetic"),
        pytest.param("ties", {"weight": 1, "density": 0.2, "rescale": "l1"}, id="ties"),
        pytest.param("karcher", {}, id="karcher"),
        pytest.param("model_stock", {}, id="model_stock"),
        pytest.param("multislerp", {"weight": 1}, id="multislerp"),
        pytest.param("dare_linear", {"weight": 1, "density": 0.1}, id="dare_linear"),
        pytest.param("dare_ties", {"weight": 1, "density": 0.1, "rescale": "l1"}, id="dare_ties"),
        pytest.param("breadcrumbs", {"weight": 1, "density": 0.5, "gamma": 0.1}, id="breadcrumbs"),
        pytest.param("della", {"weight": 1, "density": 0.4}, id="della, one row"),
        pytest.param(
            "della",
            {"weight": 1, "density": 0.4, "rescale": "l1", "shape": (15, 209_767)},
            id="della, long rows",
        ),
        pytest.param(
            "della_linear",
            {"weight": 1, "density": 0.4, "shape": (209_767, 3, 5)},
            id="della_linear, rows of three",
        ),
        pytest.param("ram", {"epsilon": 1e-4}, id="ram"),
        pytest.param("ramplus_tl", {"epsilon": 1e-4, "alpha": 9.0}, id="ramplus_tl"),
        pytest.param("sce", {"select_topk": 0.3}, id="sce"),
        pytest.param("sce", {}, id="sce, all"),
    ],
)
def test_whole_methods(name: str, knobs: dict[str, Any]) -> None:
    given = inputs("bfloat16")
    expected = merge(name, given, kernels=CPU, dtype=DType.BF16, **knobs)

    assert merge(name, given, kernels=cuda(), dtype=DType.BF16, step=TILE, **knobs) == expected


@pytest.mark.parametrize("kind", [Group.ROW, Group.COLUMN], ids=str)
@pytest.mark.parametrize("shape", [(3, 2**20 + 259), (1029, 3057), (49161, 64)], ids=str)
@pytest.mark.parametrize("relative", [False, True])
def test_rows_and_columns(kind: Group, shape: tuple[int, int], *, relative: bool) -> None:
    given = fine_tunes(2, shape[0] * shape[1], dtypes=MERGEABLE)
    groups = Groups.of(kind, shape)
    expected = find_grams(CPU, given, groups, relative=relative)

    found = find_grams(cuda(), given, groups, relative=relative, step=TILE)
    assert np.array_equal(found, expected)
    figures = np.random.default_rng(0).normal(size=(3 - relative, groups.count))
    of_cpu = run_group_span(groups, CPU, given, figures, relative=relative, dtype=DType.BF16)
    of_cuda = run_group_span(groups, cuda(), given, figures, relative=relative, dtype=DType.BF16)
    assert of_cuda == of_cpu


def test_slerp() -> None:
    rng = np.random.default_rng(0)
    given = [stored(rng.normal(size=SIZE), DType.BF16) for _ in range(2)]
    expected = merge("slerp", given, kernels=CPU, dtype=DType.BF16, t=0.3)

    assert merge("slerp", given, kernels=cuda(), dtype=DType.BF16, step=TILE, t=0.3) == expected


@pytest.mark.parametrize("name", ["nearswap", "arcee_fusion"])
def test_methods_of_one_source(name: str) -> None:
    knobs = {"t": 1e-4} if name == "nearswap" else {}
    given = fine_tunes(1, 3 * 2**20)
    options: dict[str, Any] = {"dtype": DType.BF16, "shape": (3 * 2**11, 2**9), **knobs}
    expected = merge(name, given, kernels=CPU, **options)

    assert merge(name, given, kernels=cuda(), step=TILE + 256, **options) == expected
