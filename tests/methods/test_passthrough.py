from __future__ import annotations

import numpy as np
import pytest

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cpu import CpuKernels
from raymerge.methods.passthrough import passthrough
from tests.strategies import fine_tunes, merge, stored

CPU = CpuKernels()


def test_the_coefficient_is_the_scale() -> None:
    assert passthrough() == [1]
    assert passthrough(scale=(-0.5,)) == [-0.5]


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16, DType.F32])
def test_at_scale_1_the_source_is_itself(dtype: DType) -> None:
    (source,) = fine_tunes(0, 5000, dtypes=[dtype])

    assert merge("passthrough", [source], kernels=CPU, dtype=dtype) == source.raw.tobytes()


def test_a_scale_multiplies() -> None:
    found = merge("passthrough", [stored([1.0, -2, 0])], kernels=CPU, scale=-0.5)

    assert np.frombuffer(found, np.float32).tolist() == [-0.5, 1, 0]
