"""FP8 codes times scales, against torch's own float8 types."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.codes import code_values, power_scales, scale_codes
from raymerge.kernels.floats import CODES

TORCH = {DType.F8_E4M3: torch.float8_e4m3fn, DType.F8_E5M2: torch.float8_e5m2}


@pytest.mark.parametrize("dtype", list(TORCH))
def test_every_code_has_torch_s_value(dtype: DType) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    np.testing.assert_array_equal(code_values(dtype), codes.view(TORCH[dtype]).float().numpy())


def test_every_power_scale_has_torch_s_value() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(torch.float8_e8m0fnu).float().numpy()
    np.testing.assert_array_equal(power_scales(codes.numpy()), expected)


@pytest.mark.parametrize("block", [(3, 5), (1, 17), (7, 17), (128, 128)], ids=str)
@pytest.mark.parametrize("tile", [256, 37, 10_000])
def test_every_entry_gets_the_scale_of_its_block(block: tuple[int, int], tile: int) -> None:
    stack, rows, columns = 3, 7, 17
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 0x7E, stack * rows * columns).astype(np.uint8)
    grid = -(-rows // block[0]), -(-columns // block[1])
    scales = generator.uniform(0.5, 2, (stack, *grid)).astype(np.float32)
    spread = np.repeat(np.repeat(scales, block[0], 1), block[1], 2)[:, :rows, :columns]
    values = code_values(DType.F8_E4M3)
    expected = torch.from_numpy(values[codes].reshape(stack, rows, columns) * spread).bfloat16()

    out = np.empty(codes.size, np.uint16)
    for first in range(0, codes.size, tile):
        part = codes[first : first + tile]
        place = out[first : first + tile].ctypes.data
        scale_codes(
            part.ctypes.data,
            first,
            part.size,
            rows,
            columns,
            *block,
            values,
            scales.ravel(),
            place,
            CODES[DType.BF16],
        )

    np.testing.assert_array_equal(out, expected.view(torch.uint16).numpy().ravel())
