"""Element types on the CPU: raw bytes at an address <-> float32 in a block of scratch memory.

A kernel is handed addresses and type codes instead of typed arrays, so that one compiled function
serves any number of sources of any mixture of types.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.jit import part

BF16, F16, F32, F64 = 0, 1, 2, 3
BEYOND_BF16 = np.uint32(0x7F7F8000)
"""Bits of the smallest float32 that rounds to an infinite bfloat16."""
CODES = {DType.BF16: BF16, DType.F16: F16, DType.F32: F32, DType.F64: F64}


@intrinsic  # type: ignore[untyped-decorator]
def pointer(_typing: Any, address: Any) -> Any:
    """An address, as `numba.carray` wants it."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def float_of(_typing: Any, word: Any) -> Any:
    """The float32 that has these bits."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def bits_of(_typing: Any, value: Any) -> Any:
    """The bits of a float32."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def larger(_typing: Any, left: Any, right: Any) -> Any:
    """The larger of two uint32. numba's `max` has 64 bits, for which AVX2 knows no instruction."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.select(builder.icmp_unsigned(">", *args), *args)

    return types.uint32(types.uint32, types.uint32), generate


@part
def halves_at(address: int, start: int, count: int) -> Any:
    """Elements `[start, start + count)` of two bytes, as they are."""
    return carray(pointer(address + 2 * start), (count,), np.uint16)


@part
def widen(address: int, code: int, start: int, count: int, out: Any) -> bool:
    """Write elements `[start, start + count)` as float32; True if one of them is NaN or Inf."""
    worst = np.uint32(0)
    bits = out.view(np.uint32)
    if code == BF16:
        halves = halves_at(address, start, count)
        for i in range(count):
            bits[i] = np.uint32(halves[i]) << np.uint32(16)
            worst = larger(worst, np.uint32(halves[i]) & np.uint32(0x7FFF))
        return bool(worst >= np.uint32(0x7F80))
    if code == F16:
        halves = halves_at(address, start, count)
        for i in range(count):
            magnitude = np.uint32(halves[i]) & np.uint32(0x7FFF)
            # Shifted into float32's fields the exponent is short by 127 - 15: scale by 2**112,
            # which is exact and normalises half's subnormals too.
            bits[i] = magnitude << np.uint32(13)
            out[i] *= np.float32(2.0**112)
            if magnitude >= np.uint32(0x7C00):
                bits[i] = np.uint32(0x7F800000) | (magnitude << np.uint32(13))
            bits[i] |= (np.uint32(halves[i]) & np.uint32(0x8000)) << np.uint32(16)
            worst = larger(worst, magnitude)
        return bool(worst >= np.uint32(0x7C00))
    if code == F64:
        doubles = carray(pointer(address + 8 * start), (count,), np.float64)
        for i in range(count):
            out[i] = np.float32(doubles[i])
            worst = larger(worst, bits[i] & np.uint32(0x7FFFFFFF))
        return bool(worst >= np.uint32(0x7F800000))
    floats = carray(pointer(address + 4 * start), (count,), np.float32)
    for i in range(count):
        out[i] = floats[i]
        worst = larger(worst, bits[i] & np.uint32(0x7FFFFFFF))
    return bool(worst >= np.uint32(0x7F800000))


@part
def _half(word: Any) -> Any:
    """float32 bits -> float16 bits, to nearest even."""
    sign = (word >> np.uint32(16)) & np.uint32(0x8000)
    magnitude = word & np.uint32(0x7FFFFFFF)
    if magnitude > np.uint32(0x7F800000):
        return np.uint32(0x7E00)
    if magnitude >= np.uint32(0x477FF000):  # 65520 and above round to Inf
        return sign | np.uint32(0x7C00)
    if magnitude >= np.uint32(0x38800000):  # normal halves: rebias the exponent, round 13 bits off
        magnitude -= np.uint32(0x38000000)
        return sign | (
            (magnitude + np.uint32(0x0FFF) + ((magnitude >> np.uint32(13)) & np.uint32(1)))
            >> np.uint32(13)
        )
    # Subnormal halves: adding 0.5 leaves the rounded multiple of 2**-24 in the last bits.
    shifted = float_of(magnitude) + np.float32(0.5)
    return sign | (bits_of(shifted) - np.uint32(0x3F000000))


@part
def round_halves(values: Any, out: Any) -> Any:
    """Write float32 as bfloat16, to nearest even, NaNs aside; returns the largest magnitude's bits.

    From `BEYOND_BF16` on, something is not finite.
    """
    worst = np.uint32(0)
    for i in range(out.size):
        word = bits_of(values[i])
        worst = larger(worst, word & np.uint32(0x7FFFFFFF))
        half = (word >> np.uint32(16)) & np.uint32(1)
        out[i] = np.uint16((word + np.uint32(0x7FFF) + half) >> np.uint32(16))
    return worst


@part
def narrow(values: Any, count: int, address: int, code: int, start: int) -> bool:
    """Write float32 `values` at elements `[start, start + count)`; True if one became NaN or Inf.

    Rounds to nearest, ties to even.
    """
    worst = np.uint32(0)
    bits = values.view(np.uint32)
    if code == BF16:
        halves = halves_at(address, start, count)
        magnitude = round_halves(values, halves)
        if magnitude > np.uint32(0x7F800000):
            for i in range(count):
                # One NaN for all: which one arithmetic makes differs from device to device.
                if (bits[i] & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
                    halves[i] = np.uint16(0x7FC0)
        return bool(magnitude >= BEYOND_BF16)
    if code == F16:
        halves = halves_at(address, start, count)
        for i in range(count):
            rounded = _half(bits[i])
            halves[i] = np.uint16(rounded)
            worst = larger(worst, rounded & np.uint32(0x7FFF))
        return bool(worst >= np.uint32(0x7C00))
    floats = carray(pointer(address + 4 * start), (count,), np.float32)
    for i in range(count):
        magnitude = bits[i] & np.uint32(0x7FFFFFFF)
        floats[i] = values[i] if magnitude <= np.uint32(0x7F800000) else np.float32(np.nan)
        worst = larger(worst, magnitude)
    return bool(worst >= np.uint32(0x7F800000))
