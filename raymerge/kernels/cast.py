"""Change the element type of a run of values: widened to float32, narrowed once."""

from __future__ import annotations

import numpy as np

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.constants import BLOCK
from raymerge.kernels.floats import CODES, narrow, widen
from raymerge.kernels.jit import kernel
from raymerge.kernels.tile import Bytes


def cast(piece: Bytes, dtype: DType, target: DType) -> tuple[Bytes, bool]:
    """Round values to nearest even; every NaN becomes the same NaN, and -0 stays -0.

    Args:
        piece: Values of the floating-point type `dtype`, a whole number of them.
        dtype: What they are.
        target: F32, F16 or BF16. A float64 is rounded to float32 on the way, as in a merge.

    Returns:
        The values as `target`, and whether one of them, or of `piece`, is NaN or Inf.
    """
    count = piece.nbytes * 8 // dtype.bits
    out = np.empty(target.num_bytes((count,)), np.uint8)
    # A tensor in someone's file may lie at any byte; the loop reads whole words.
    aligned = np.ascontiguousarray(piece) if _address(piece) % 8 == 0 else piece.copy()
    source = _address(aligned), CODES[dtype]
    return out, bool(cast_tile(*source, count, _address(out), CODES[target]))


@kernel("boolean(int64, int64, int64, int64, int64)")
def cast_tile(address: int, code: int, count: int, out_address: int, out_code: int) -> bool:
    """Write `count` values of type `code` as `out_code`; True if one is NaN or Inf, here or there.

    Args:
        address: Where they lie.
        code: Their element type.
        count: How many.
        out_address: Where they go.
        out_code: Element type of the output.
    """
    values = np.empty(BLOCK, np.float32)
    bad = False
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        bad |= widen(address, code, start, width, values)
        bad |= narrow(values, width, out_address, out_code, start)
    return bad


def _address(buffer: Bytes) -> int:
    address: int = buffer.__array_interface__["data"][0]
    return address
