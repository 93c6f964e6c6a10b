"""Fill buffers with FP8 weights, widened by their scales."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.codes import code_values, power_scales, scale_codes
from raymerge.kernels.floats import CODES, widen
from raymerge.kernels.tile import Bytes
from raymerge.plan.dequantised import Dequantised
from raymerge.plan.graph import Read
from raymerge.runtime.readers import Readers


class DequantisedFiller:
    """Reads a tile's codes and writes them times their scales, which are read once."""

    def __init__(self, one: Dequantised, readers: Readers) -> None:
        codes, scale = one.reads
        self._blocks = one.blocks
        self._codes = readers.filler(codes)
        self._values = code_values(codes.dtype)
        self._scales, self._read_scales = _scales(scale, readers)
        self._width = one.dtype.bits // 8
        self._code = CODES[one.dtype]
        self._buffer = np.empty(0, np.uint8)

    def fill(self, buffer: Bytes, offset: int) -> int:
        """See `Filler.fill`."""
        count = buffer.nbytes // self._width
        first = offset // self._width
        if self._buffer.nbytes < count:
            self._buffer = np.empty(count, np.uint8)
        codes = self._buffer[:count]
        num_read = self._codes.fill(codes, first)
        blocks = self._blocks
        scale_codes(
            codes.ctypes.data,
            first,
            count,
            blocks.rows,
            blocks.columns,
            blocks.block_rows,
            blocks.block_columns,
            self._values,
            self._scales,
            buffer.ctypes.data,
            self._code,
        )
        return num_read + (self._read_scales if first == 0 else 0)

    def will_need(self, offset: int, nbytes: int) -> None:
        """See `Filler.will_need`."""
        self._codes.will_need(offset // self._width, nbytes // self._width)


def _scales(scale: Read, readers: Readers) -> tuple[npt.NDArray[np.float32], int]:
    """The scales, and the bytes read for them."""
    stored = np.empty(scale.read_bytes, np.uint8)
    num_read = readers.filler(scale).fill(stored, 0)
    if scale.dtype is DType.F8_E8M0:
        return power_scales(stored), num_read
    scales = np.empty(scale.num_elements, np.float32)
    widen(stored.ctypes.data, CODES[scale.dtype], 0, scales.size, scales)
    return scales, num_read
