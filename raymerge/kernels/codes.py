"""FP8 codes times scales, written as weights of another precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import carray

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.constants import BLOCK
from raymerge.kernels.floats import narrow, pointer
from raymerge.kernels.jit import kernel

# Exponent bits, mantissa bits, and whether the highest exponent is Inf and NaN as in IEEE 754;
# E4M3 has one NaN per sign instead and counts on.
_FORMATS = {DType.F8_E4M3: (4, 3, False), DType.F8_E5M2: (5, 2, True)}
_SMALLEST_SCALE_EXPONENT = -127
_NAN_SCALE = 255


def code_values(dtype: DType) -> npt.NDArray[np.float32]:
    """The value of each of the 256 codes, float32."""
    exponent_bits, mantissa_bits, ieee = _FORMATS[dtype]
    bias = 2 ** (exponent_bits - 1) - 1
    codes = np.arange(256)
    exponent = (codes >> mantissa_bits) & (2**exponent_bits - 1)
    mantissa = codes & (2**mantissa_bits - 1)
    fraction = np.where(exponent > 0, 2**mantissa_bits + mantissa, mantissa)
    values = np.ldexp(fraction.astype(np.float64), np.maximum(exponent, 1) - bias - mantissa_bits)
    top = exponent == 2**exponent_bits - 1
    if ieee:
        values = np.where(top, np.where(mantissa == 0, np.inf, np.nan), values)
    else:
        values = np.where(top & (mantissa == 2**mantissa_bits - 1), np.nan, values)
    return np.where(codes >= 128, -values, values).astype(np.float32)  # noqa: PLR2004 - sign bit


def power_scales(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """E8M0 scales, a power of two each, as float32."""
    exponents = codes.astype(np.int64) + _SMALLEST_SCALE_EXPONENT
    values = np.ldexp(np.ones(codes.shape), exponents)
    return np.where(codes == _NAN_SCALE, np.nan, values).astype(np.float32)


@kernel(
    "void(int64, int64, int64, int64, int64, int64, int64, float32[::1], float32[::1], int64,"
    " int64)"
)
def scale_codes(
    code_address: int,
    first: int,
    count: int,
    rows: int,
    columns: int,
    block_rows: int,
    block_columns: int,
    values: Any,
    scales: Any,
    out_address: int,
    out_code: int,
) -> None:
    """Write `value(code) * scale`, a float32 product rounded once to the output's type.

    Args:
        code_address: Codes of `count` elements, one byte each.
        first: Flat index of the first one in a stack of matrices of `rows` by `columns`.
        count: Elements.
        rows: Of a matrix.
        columns: Of a matrix.
        block_rows: Rows that share a scale.
        block_columns: Columns that share a scale.
        values: float32 value of each code.
        scales: float32, by matrix, then by row and column of blocks.
        out_address: Where the elements go.
        out_code: Their type.
    """
    codes = carray(pointer(code_address), (count,), np.uint8)
    wide = (columns + block_columns - 1) // block_columns
    high = (rows + block_rows - 1) // block_rows
    products = np.empty(BLOCK, np.float32)
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        done = 0
        while done < width:
            row, column = divmod(first + start + done, columns)
            matrix, row_in = divmod(row, rows)
            block = column // block_columns
            stop = min(columns, (block + 1) * block_columns)
            run = min(width - done, stop - column)
            scale = scales[(matrix * high + row_in // block_rows) * wide + block]
            for k in range(run):
                products[done + k] = values[codes[start + done + k]] * scale
            done += run
        narrow(products, width, out_address, out_code, start)
