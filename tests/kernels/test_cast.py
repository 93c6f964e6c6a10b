"""A cast is torch's, to the bit, but for NaN, of which there is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.cast import cast
from tests.conftest import raw

TYPES = {
    DType.F32: torch.float32,
    DType.F16: torch.float16,
    DType.BF16: torch.bfloat16,
    DType.F64: torch.float64,
}


def bits(words: int, count: int) -> torch.Tensor:
    """Any bit patterns, and so any values."""
    drawn = np.random.default_rng(words).integers(0, 256, count * words, np.uint8)
    return torch.from_numpy(drawn)


@pytest.mark.parametrize("source", TYPES)
@pytest.mark.parametrize("target", [DType.F32, DType.F16, DType.BF16])
def test_it_rounds_as_torch_does(source: DType, target: DType) -> None:
    values = bits(source.bits // 8, 5000).view(TYPES[source])
    values = values[~values.isnan()]
    out, _ = cast(np.frombuffer(raw(values), np.uint8), source, target)

    assert out.tobytes() == raw(values.to(torch.float32).to(TYPES[target]))


@pytest.mark.parametrize("target", [DType.F32, DType.F16, DType.BF16])
def test_zero_keeps_its_sign_and_what_is_not_finite_is_told(target: DType) -> None:
    zeros = torch.tensor([0.0, -0.0])
    out, bad = cast(np.frombuffer(raw(zeros), np.uint8), DType.F32, target)
    assert (out.tobytes(), bad) == (raw(zeros.to(TYPES[target])), False)

    for value in (float("nan"), float("inf"), 1e39):
        wide = np.frombuffer(raw(torch.tensor([1.0, value], dtype=torch.float64)), np.uint8)
        assert cast(wide, DType.F64, target)[1]


def test_bytes_may_lie_anywhere() -> None:
    values = torch.arange(1000.0)
    shifted = np.frombuffer(b"." + raw(values), np.uint8)[1:]

    assert cast(shifted, DType.F32, DType.BF16)[0].tobytes() == raw(values.bfloat16())
