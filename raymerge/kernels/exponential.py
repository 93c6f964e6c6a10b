"""exp and log in float64 from additions, multiplications and divisions alone.

IEEE 754 says what those give to the last bit; it does not for `exp` and `log`, which differ from
one library, machine and device to the next. Both are right to some 4 units in the last place.

    exp u      u = k ln 2 + r, |r| <= ln 2 / 2;  2^k (1 + r + r^2/2! + ... + r^12/12!)
    log p/q    s = (p - q) / (p + q);  2 (s + s^3/3 + s^5/5 + ...), after p / q = 2^k m where the
               two are not near

`torch_fusion.py` has the same in torch, operation by operation.
"""

from __future__ import annotations

from math import factorial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from raymerge.kernels.jit import part

LOWEST = -700.0
"""Below this exp counts as exp of this: 1e-304, nothing beside what it is added to."""
INVERSE_LN_2 = 1.4426950408889634
LN_2_HIGH = 0.6931471803691238
"""ln 2 to 32 bits: its product with k is exact."""
LN_2_LOW = 1.9082149292705877e-10
ROUND_TO_WHOLE = 6755399441055744.0
"""1.5 * 2^52: added to a number, it leaves its nearest whole number in the last bits."""
EXP_TERMS = tuple(1 / factorial(n) for n in range(12, -1, -1))
"""Highest power first."""
NEAR = 0.0625
"""Up to this |s| 7 terms of the series are enough for float64: to a ratio of 1.13."""
NEAR_TERMS = tuple(1 / (2 * n + 1) for n in range(6, -1, -1))
FAR_TERMS = tuple(1 / (2 * n + 1) for n in range(10, -1, -1))
"""For |s| up to 0.172, half an octave."""
EXPONENT_BIAS = 1023
HALF_OCTAVE = 0x3FE6A09E667F3BCD
"""The bits of the root of 1/2."""

_E12, _E11, _E10, _E9, _E8, _E7, _E6, _E5, _E4, _E3, _E2, _E1, _E0 = EXP_TERMS
_N6, _N5, _N4, _N3, _N2, _N1, _N0 = NEAR_TERMS
_F10, _F9, _F8, _F7, _F6, _F5, _F4, _F3, _F2, _F1, _F0 = FAR_TERMS


@intrinsic  # type: ignore[untyped-decorator]
def _double(_typing: Any, word: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.DoubleType())

    return types.float64(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _word(_typing: Any, value: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(64))

    return types.int64(types.float64), generate


@part
def exponentials(values: Any, anchor: float, out: Any) -> None:
    """Write `exp(values - anchor)` of float32 values; no difference may exceed 700."""
    for i in range(len(values)):
        # In this order a NaN stays one.
        u = max(np.float64(values[i]) - anchor, LOWEST)
        shifted = u * INVERSE_LN_2 + ROUND_TO_WHOLE
        k = shifted - ROUND_TO_WHOLE
        r = (u - k * LN_2_HIGH) - k * LN_2_LOW
        power = _E12
        power = power * r + _E11
        power = power * r + _E10
        power = power * r + _E9
        power = power * r + _E8
        power = power * r + _E7
        power = power * r + _E6
        power = power * r + _E5
        power = power * r + _E4
        power = power * r + _E3
        power = power * r + _E2
        power = power * r + _E1
        power = power * r + _E0
        # The whole number stands in the last bits; those above it are shifted out.
        out[i] = power * _double((_word(shifted) + EXPONENT_BIAS) << 52)


@part
def far_log_ratio(p: Any, q: Any) -> Any:
    """`log(p / q)` of any two positive numbers whose ratio is one."""
    ratio = _word(p / q)
    k = (ratio - HALF_OCTAVE) >> 52
    m = _double(ratio - (k << 52))
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    series = _F10
    series = series * square + _F9
    series = series * square + _F8
    series = series * square + _F7
    series = series * square + _F6
    series = series * square + _F5
    series = series * square + _F4
    series = series * square + _F3
    series = series * square + _F2
    series = series * square + _F1
    series = series * square + _F0
    return np.float64(k) * LN_2_HIGH + ((s + s) * series + np.float64(k) * LN_2_LOW)


@part
def divergence_terms(
    left: Any, left_share: float, right: Any, right_share: float, smoothing: float, out: Any
) -> None:
    """Write `p log(p / q)`, p and q being `left` and `right` times their shares, smoothed."""
    far = 0
    for i in range(len(left)):
        p = left[i] * left_share + smoothing
        q = right[i] * right_share + smoothing
        s = (p - q) / (p + q)
        square = s * s
        series = _N6
        series = series * square + _N5
        series = series * square + _N4
        series = series * square + _N3
        series = series * square + _N2
        series = series * square + _N1
        series = series * square + _N0
        out[i] = p * ((s + s) * series)
        far += 1 if abs(s) > NEAR else 0
    if far:
        for i in range(len(left)):
            p = left[i] * left_share + smoothing
            q = right[i] * right_share + smoothing
            if abs((p - q) / (p + q)) > NEAR:
                out[i] = p * far_log_ratio(p, q)
