"""Stored elements to float32 and back, in numpy: for what is too little to need a kernel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.tile import Bytes

Floats = npt.NDArray[np.float32]
_TYPES = {DType.F16: np.float16, DType.F32: np.float32, DType.F64: np.float64}


def widen(stored: Bytes, dtype: DType) -> Floats:
    """Elements as float32."""
    if dtype is DType.BF16:
        return (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    # Floats beyond float32 become Inf, which the kernels then name.
    with np.errstate(over="ignore"):
        return stored.view(_TYPES[dtype]).astype(np.float32)


def narrow(values: Floats, dtype: DType, out: Bytes) -> None:
    """Write float32 values as `dtype`, rounded to nearest, ties to even."""
    if dtype is not DType.BF16:
        with np.errstate(over="ignore"):
            out.view(_TYPES[dtype])[:] = values
        return
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    out.view(np.uint16)[:] = np.where(np.isnan(values), 0x7FC0, rounded)
