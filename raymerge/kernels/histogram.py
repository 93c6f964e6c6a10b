"""Counting bits of values in a block: the upper 15 of a magnitude, and the lower 16 in a bin."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.cpython.unsafe.numbers import trailing_zeros
from numba.extending import intrinsic

from raymerge.kernels.constants import HIGH_BINS, LOW_BINS, STRIPES
from raymerge.kernels.jit import part


@part
def add_high(values: Any, width: int, bins: Any, stripes: Any) -> None:
    """Count the upper 15 magnitude bits of `width` values into `stripes`, `(HIGH_BINS, STRIPES)`.

    `bins` is scratch, one uint16 per value.
    """
    bits = values.view(np.uint32)
    for k in range(width):
        bins[k] = (bits[k] >> np.uint32(16)) & np.uint32(0x7FFF)
    for k in range(width):
        stripes[bins[k], k % STRIPES] += np.uint32(1)


@part
def fold_stripes(stripes: Any, counts: Any) -> None:
    """Add what every stripe counted to `counts`, `(HIGH_BINS,)`."""
    for b in range(HIGH_BINS):
        for s in range(STRIPES):
            counts[b] += stripes[b, s]


@intrinsic  # type: ignore[untyped-decorator]
def _below(_typing: Any, address: Any, _offset: Any, _limit: Any) -> Any:
    """Bit k of the result: whether the k-th of 64 words at `address`, less `offset`, is below."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        lanes = ir.VectorType(ir.IntType(32), 64)
        words = builder.load(builder.inttoptr(args[0], lanes.as_pointer()), align=4)

        def spread(word: Any) -> Any:
            one = builder.insert_element(ir.Constant(lanes, ir.Undefined), word, ir.IntType(32)(0))
            undefined = ir.Constant(lanes, ir.Undefined)
            return builder.shuffle_vector(one, undefined, ir.Constant(lanes, [0] * 64))

        apart = builder.sub(words, spread(args[1]))
        below = builder.icmp_unsigned("<", apart, spread(args[2]))
        return builder.bitcast(below, ir.IntType(64))

    return types.uint64(types.int64, types.uint32, types.uint32), generate


@intrinsic  # type: ignore[untyped-decorator]
def _ones(_typing: Any, _word: Any) -> Any:
    """How many bits are set."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), generate


@part
def add_low(values: Any, width: int, bin_: int, words: Any, counts: Any) -> None:
    """Count the lower 16 bits of the values in a high bin, and what lies above it, in `counts`.

    `words` is scratch, one uint32 per value and room up to the next multiple of 64.
    """
    bits = values.view(np.uint32)
    for k in range(width):
        words[k] = bits[k] & np.uint32(0x7FFFFFFF)
    # Padding that lies below every bin but the lowest, where it is taken off again.
    padding = (64 - width % 64) % 64
    words[width : width + padding] = 0
    lowest = np.uint32(bin_) << np.uint32(16)
    address = words.ctypes.data
    above, zeros = np.uint64(0), np.uint64(0)
    for start in range(0, width, 64):
        here = address + 4 * start
        above += np.uint64(64) - _ones(_below(here, np.uint32(0), lowest + np.uint32(LOW_BINS)))
        inside = _below(here, lowest, np.uint32(LOW_BINS))
        if inside:
            # Many may have no lower bits, such as zeros: those are counted without a loop.
            equal = _below(here, lowest, np.uint32(1))
            zeros += _ones(equal)
            inside &= ~equal
            while inside:
                index = start + np.int64(trailing_zeros(inside))
                inside &= inside - np.uint64(1)
                counts[words[index] - lowest] += 1
    counts[LOW_BINS] += np.int64(above)
    counts[0] += np.int64(zeros) - (padding if bin_ == 0 else 0)
