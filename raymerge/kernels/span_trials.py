"""The fused span pass of several merges of the same inputs: read once, an output for each.

Every output is what `span_tile` makes of the merge's own coefficients: the same float32 operations
in the same order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raymerge.kernels.constants import BLOCK
from raymerge.kernels.floats import narrow, widen
from raymerge.kernels.jit import kernel


@kernel(
    "void(int64[::1], int64[::1], int64, float32[:, ::1], boolean, int64[::1], int64, int64[::1])"
)
def span_trials_tile(
    addresses: Any,
    codes: Any,
    count: int,
    coefficients: Any,
    relative: bool,
    out_addresses: Any,
    out_code: int,
    reports: Any,
) -> None:
    """Merge a tile with each row of coefficients; see `span_tile`.

    Args:
        addresses: Address of each input's tile.
        codes: Element type of each input.
        count: Elements of the tile.
        coefficients: float32, `(outputs, vectors)`.
        relative: The first input is the base, and the vectors are the others minus it.
        out_addresses: Where each output's tile goes.
        out_code: Element type of the outputs.
        reports: What `span_tile` would return, written for each output.
    """
    inputs = addresses.shape[0]
    skip = 1 if relative else 0
    vectors = np.empty((inputs, BLOCK), np.float32)
    mix = np.empty(BLOCK, np.float32)
    bad = inputs
    reports[:] = -1
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        for i in range(inputs):
            if widen(addresses[i], codes[i], start, width, vectors[i]):
                bad = min(bad, i)
            if i >= skip and relative:
                for k in range(width):
                    vectors[i, k] -= vectors[0, k]
        for output in range(out_addresses.size):
            mix[:width] = 0.0
            for i in range(skip, inputs):
                coefficient = coefficients[output, i - skip]
                vector = vectors[i]
                for k in range(width):
                    mix[k] += vector[k] * coefficient
            if relative:
                for k in range(width):
                    mix[k] += vectors[0, k]
            if narrow(mix, width, out_addresses[output], out_code, start):
                reports[output] = inputs
    if bad < inputs:
        reports[:] = bad
