"""The fused span pass: a sum of inputs with one float32 coefficient each, cast once."""

from __future__ import annotations

from typing import Any

import numpy as np

from raymerge.kernels.constants import BLOCK
from raymerge.kernels.floats import (
    BEYOND_BF16,
    BF16,
    float_of,
    halves_at,
    larger,
    narrow,
    round_halves,
    widen,
)
from raymerge.kernels.jit import kernel, part


@part
def _wide(half: Any) -> Any:
    return float_of(np.uint32(half) << np.uint32(16))


@part
def _span_halves(
    addresses: Any, count: int, coefficients: Any, relative: bool, out_address: int
) -> bool:
    """`span_tile` where all is bfloat16; False if something is not finite.

    Without a widened copy of every input it takes two thirds of the time.
    """
    mix = np.empty(BLOCK, np.float32)
    worst = np.uint32(0)
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        base = halves_at(addresses[0], start, width)
        mix[:width] = 0.0
        for i in range(coefficients.size):
            if relative:
                _add_delta(halves_at(addresses[i + 1], start, width), base, coefficients[i], mix)
            else:
                _add(halves_at(addresses[i], start, width), coefficients[i], mix)
        if relative:
            _add(base, np.float32(1.0), mix)
        worst = larger(worst, round_halves(mix, halves_at(out_address, start, width)))
    return bool(worst < BEYOND_BF16)


@part
def _add(halves: Any, coefficient: Any, mix: Any) -> None:
    for k in range(halves.size):
        mix[k] += _wide(halves[k]) * coefficient


@part
def _add_delta(halves: Any, base: Any, coefficient: Any, mix: Any) -> None:
    for k in range(halves.size):
        mix[k] += (_wide(halves[k]) - _wide(base[k])) * coefficient


@kernel("int64(int64[::1], int64[::1], int64, float32[::1], boolean, int64, int64)")
def span_tile(
    addresses: Any,
    codes: Any,
    count: int,
    coefficients: Any,
    relative: bool,
    out_address: int,
    out_code: int,
) -> int:
    """Write `sum c_i x_i` over a tile or, relative, `x_0 + sum c_i (x_i - x_0)`.

    Args:
        addresses: Address of each input's tile.
        codes: Element type of each input.
        count: Elements of the tile.
        coefficients: float32, one per vector: the inputs, or all but the base when relative.
        relative: The first input is the base, and the vectors are the others minus it.
        out_address: Where the tile of the output goes.
        out_code: Element type of the output.

    Returns:
        -1; or the first input that holds a NaN or an Inf; or the number of inputs, where all are
        finite and an output is not.
    """
    inputs = addresses.shape[0]
    halves = out_code == BF16 and codes.max() == BF16
    # What is not finite among the inputs shows in the output, and is then looked for below.
    if halves and _span_halves(addresses, count, coefficients, relative, out_address):
        return -1
    skip = 1 if relative else 0
    base = np.zeros(BLOCK, np.float32)
    values = np.empty(BLOCK, np.float32)
    mix = np.empty(BLOCK, np.float32)
    bad = inputs + 1
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        if relative and widen(addresses[0], codes[0], start, width, base):
            bad = 0
        mix[:width] = 0.0
        for i in range(skip, inputs):
            if widen(addresses[i], codes[i], start, width, values):
                bad = min(bad, i)
            coefficient = coefficients[i - skip]
            if relative:
                for k in range(width):
                    mix[k] += (values[k] - base[k]) * coefficient
            else:
                for k in range(width):
                    mix[k] += values[k] * coefficient
        if relative:
            for k in range(width):
                mix[k] += base[k]
        if narrow(mix, width, out_address, out_code, start):
            bad = min(bad, inputs)
    return bad if bad <= inputs else -1
