"""The fused delta pass of several merges of the same inputs: read once, an output for each.

    inputs      widened once
    deltas      the entries that a selector keeps, once for all merges that have the selector
    mixes       weight, elect, mean: once for all merges that differ in scale or output alone
    outputs     scale, add and cast

Every output is what `delta_tile` makes of the merge's own figures: the same float32 operations in
the same order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raymerge.kernels.constants import BLOCK
from raymerge.kernels.delta import keep_entries
from raymerge.kernels.floats import narrow, widen
from raymerge.kernels.jit import kernel, part


@part
def _add_up(deltas: Any, rows: Any, shares: Any, width: int, votes: Any) -> None:
    """Sum the shares of all entries."""
    votes[:width] = 0.0
    for i in range(rows.size):
        delta, share = deltas[rows[i]], shares[i]
        for k in range(width):
            votes[k] += delta[k] * share


@part
def _add_agreeing(
    deltas: Any,
    rows: Any,
    shares: Any,
    weights: Any,
    width: int,
    votes: Any,
    mix: Any,
    divisor: Any,
) -> None:
    """Sum the shares, and the weights, of the entries that have the sign of the vote."""
    mix[:width] = 0.0
    divisor[:width] = 0.0
    for i in range(rows.size):
        delta, share, weight = deltas[rows[i]], shares[i], weights[i]
        for k in range(width):
            entry = delta[k] * share
            agrees = entry * votes[k] > 0
            mix[k] += entry if agrees else np.float32(0.0)
            divisor[k] += weight if agrees else np.float32(0.0)


@part
def _fuse(
    deltas: Any,
    rows: Any,
    shares: Any,
    weights: Any,
    elect: bool,
    normalize: bool,
    width: int,
    scratch: Any,
) -> None:
    """Mix the kept entries of a block into the first row of `scratch`."""
    mix, votes, divisor = scratch[0], scratch[1], scratch[2]
    if not elect:
        _add_up(deltas, rows, shares, width, mix)
        total = np.float32(0.0)
        for i in range(rows.size):
            total += weights[i]
        if normalize and total != 0:
            for k in range(width):
                mix[k] /= total
        return
    _add_up(deltas, rows, shares, width, votes)
    for k in range(width):
        votes[k] = np.float32(1.0) if votes[k] >= 0 else np.float32(-1.0)
    _add_agreeing(deltas, rows, shares, weights, width, votes, mix, divisor)
    if normalize:
        for k in range(width):
            mix[k] /= divisor[k] if divisor[k] != 0 else np.float32(1.0)


@part
def _keep(
    addresses: Any,
    codes: Any,
    first: int,
    start: int,
    width: int,
    sources: Any,
    selectors: Any,
    factors: Any,
    base: Any,
    deltas: Any,
) -> Any:
    """Fill a block of every row of `deltas`; returns the first input that is not finite."""
    bad = addresses.shape[0]
    whole = np.empty(BLOCK, np.float32)
    words = np.empty(BLOCK, np.uint32)
    if widen(addresses[0], codes[0], start, width, base):
        bad = 0
    for row in range(sources.size):
        source = sources[row]
        if row == 0 or source != sources[row - 1]:
            if widen(addresses[source], codes[source], start, width, whole):
                bad = min(bad, source)
            for k in range(width):
                whole[k] -= base[k]
        delta = deltas[row]
        for k in range(width):
            delta[k] = whole[k]
        chosen = factors[row, start : start + width]
        keep_entries(delta, width, first + start, selectors[row], words, chosen)
    return bad


@kernel(
    "void(int64[::1], int64[::1], int64, int64, int64[::1], uint64[:, ::1], float32[:, ::1],"
    " int64[:, ::1], float32[:, ::1], float32[:, ::1], boolean[:, ::1], int64[::1], float32[::1],"
    " int64[:, ::1], int64[::1])"
)
def delta_trials_tile(
    addresses: Any,
    codes: Any,
    first: int,
    count: int,
    sources: Any,
    selectors: Any,
    factors: Any,
    rows: Any,
    shares: Any,
    weights: Any,
    ways: Any,
    mixes: Any,
    scales: Any,
    targets: Any,
    reports: Any,
) -> None:
    """Merge a tile in every way asked for; see `delta_tile`.

    Args:
        addresses: Address of each input's tile; input 0 is the base.
        codes: Element type of each input.
        first: Flat index of the tile's first element, a multiple of 4.
        count: Elements of the tile.
        sources: The input that each row of kept entries is of; those of one input are neighbours.
        selectors: How each row's entries are kept; `SEEN` is updated.
        factors: Of each row's entries, where they are drawn by rank (`rank.py`).
        rows: `(mixes, sources)`: the row of kept entries that each source of a mix has.
        shares: `(mixes, sources)`: what an entry is multiplied by.
        weights: `(mixes, sources)`: what `normalize` divides by.
        ways: `(mixes, 2)`: whether signs are elected, and whether the mix is normalized.
        mixes: The mix of each output; equal ones are neighbours.
        scales: float32 factor of each output's merged delta.
        targets: `(outputs, 2)`: address and element type of each output's tile.
        reports: What `delta_tile` would return, written for each output.
    """
    base = np.empty(BLOCK, np.float32)
    deltas = np.empty((sources.size, BLOCK), np.float32)
    scratch = np.empty((3, BLOCK), np.float32)
    merged = np.empty(BLOCK, np.float32)
    inputs = addresses.shape[0]
    bad = inputs
    reports[:] = -1
    for start in range(0, count, BLOCK):
        width = min(BLOCK, count - start)
        met = _keep(
            addresses, codes, first, start, width, sources, selectors, factors, base, deltas
        )
        bad = min(bad, met)
        for output in range(mixes.size):
            mix = mixes[output]
            if output == 0 or mix != mixes[output - 1]:
                elect, normalize = ways[mix, 0], ways[mix, 1]
                _fuse(
                    deltas, rows[mix], shares[mix], weights[mix], elect, normalize, width, scratch
                )
            scale = scales[output]
            for k in range(width):
                merged[k] = base[k] + scratch[0, k] * scale
            if narrow(merged, width, targets[output, 0], targets[output, 1], start):
                reports[output] = inputs
    if bad < inputs:
        reports[:] = bad
