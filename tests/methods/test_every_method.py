"""What every method owes, whatever it computes. A new method gets these by a row in `KNOBS`."""

from __future__ import annotations

from typing import Any

import pytest

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.kernels.tile import Kernels
from raymerge.kernels.torch_kernels import TorchKernels
from raymerge.methods import methods
from tests.strategies import MERGEABLE, OUTPUTS, Stored, fine_tunes, merge

KERNELS = pytest.mark.parametrize(
    "kernels", [CpuKernels(), TorchKernels("cpu")], ids=["numba", "torch"]
)
CPU = CpuKernels()

KNOBS: dict[str, dict[str, Any]] = {
    "arcee_fusion": {},
    "breadcrumbs": {"weight": 0.7, "density": 0.3, "gamma": 0.05, "rescale": "l1"},
    "breadcrumbs_ties": {"weight": 0.7, "density": 0.3, "gamma": 0.05},
    "dare_linear": {"weight": 0.7, "density": 0.3, "rescale": "l1"},
    "dare_ties": {"weight": 0.7, "density": 0.3},
    "della": {"weight": 0.7, "density": 0.3},
    "della_linear": {"weight": 0.7, "density": 0.3, "epsilon": 0.2, "rescale": "l1"},
    "karcher": {"max_iter": 5},
    "linear": {"weight": 0.7},
    "model_stock": {"filter_wise": True},
    "multislerp": {"weight": 0.7, "eps": 1e-6},
    "nearswap": {"t": 1e-4},
    "nuslerp": {"weight": (0.7, 0.2), "nuslerp_flatten": False},
    "passthrough": {"scale": 0.7},
    "ram": {"epsilon": 1e-4},
    "ramplus_tl": {"r": 0.5, "alpha": 10.0, "epsilon": 1e-4},
    "sce": {"select_topk": 0.3},
    "slerp": {"t": 0.3},
    "task_arithmetic": {"weight": 0.7, "lambda_": 0.5},
    "ties": {"weight": 0.7, "density": 0.3, "rescale": "l1"},
}
EACH_METHOD = pytest.mark.parametrize("name", sorted(KNOBS))


def inputs_of(name: str, size: int) -> list[Stored]:
    """As many tensors as the method takes, three at most, each of another type."""
    method = methods()[name]
    sources = min(3, method.max_sources or 3)
    return fine_tunes(sources - 1 + method.needs_base, size, dtypes=MERGEABLE)


def test_every_method_is_held_to_this() -> None:
    assert set(KNOBS) == set(methods())


@EACH_METHOD
@KERNELS
@pytest.mark.parametrize("size", [1, 257, 9001])
@pytest.mark.parametrize("dtype", OUTPUTS)
def test_the_output_has_the_input_s_elements_and_the_dtype_asked_for(
    name: str, kernels: Kernels, size: int, dtype: DType
) -> None:
    found = merge(name, inputs_of(name, size), kernels=kernels, dtype=dtype, **KNOBS[name])

    assert len(found) == dtype.num_bytes([size])


@EACH_METHOD
@KERNELS
def test_no_input_is_written(name: str, kernels: Kernels) -> None:
    inputs = inputs_of(name, 9001)
    before = [source.raw.tobytes() for source in inputs]
    merge(name, inputs, kernels=kernels, **KNOBS[name])

    assert [source.raw.tobytes() for source in inputs] == before


@EACH_METHOD
@KERNELS
@pytest.mark.parametrize("step", [256, 4096, 4352])
def test_neither_tiles_nor_the_kind_of_kernel_change_a_byte(
    name: str, kernels: Kernels, step: int
) -> None:
    inputs = inputs_of(name, 20_001)
    whole = merge(name, inputs, kernels=CPU, dtype=DType.BF16, **KNOBS[name])

    tiled = merge(name, inputs, kernels=kernels, dtype=DType.BF16, step=step, **KNOBS[name])

    assert tiled == whole


@EACH_METHOD
def test_a_method_is_a_pure_function_of_its_knobs(name: str) -> None:
    inputs = inputs_of(name, 5000)

    assert merge(name, inputs, kernels=CPU, **KNOBS[name]) == merge(
        name, inputs, kernels=CPU, **KNOBS[name]
    )
