"""Draws by rank: each entry of a row against a probability that rises with its magnitude's rank.

A row is ordered by spreading its entries over buckets that follow the magnitude, in index order,
and by inserting the few that are out of order within a bucket: bfloat16 task vectors have few
values, most buckets hold one. Where that takes too many moves the row is sorted digit by digit. All
of it is stable: entries of equal magnitude rank in index order. `rows.py` has the probabilities.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from raymerge.kernels.delta import KEEP_RANKED, KEY, MODE
from raymerge.kernels.floats import widen
from raymerge.kernels.jit import kernel, part
from raymerge.kernels.philox import philox_words
from raymerge.kernels.rows import MAX_BUCKETS, MAX_COLUMNS

PER_BUCKET = 4
"""Entries of a bucket on average, at least: with more buckets their sums took longer than what is
left to insert, in rows of 4096 and 14,336 bfloat16 entries."""
FEW = 32
"""Rows of no more entries are ordered by insertion alone."""
MAX_MOVES = 8
"""Moves an entry may take on average before the row is sorted digit by digit instead."""


@part
def bucket_of(key: Any, below: Any, shift: Any) -> Any:
    """The bucket of a magnitude's bits: 0 for zero, then by distance from the smallest other.

    `below` is one less than the smallest other. No branch: which entries are zero is as good as
    random, and a wrong guess costs more than the rest.
    """
    distance = np.uint64(max(key, below) - below)
    return (distance + (np.uint64(1) << shift) - np.uint64(1)) >> shift


@part
def spread(keys: Any, length: int, pairs: Any, buckets: Any) -> None:
    """Write magnitude and index of every entry to `pairs`, in the order of their buckets."""
    below, largest = np.uint32(0xFFFFFFFF), np.uint32(0)
    for k in range(length):
        # Zero becomes the largest of all words: a bucket of its own keeps the others narrow.
        below = min(below, np.uint32(keys[k] - np.uint32(1)))
        largest = max(largest, keys[k])
    below = min(below, largest)
    number = 256
    while number < MAX_BUCKETS and number <= length // PER_BUCKET:
        number *= 2
    shift = np.uint64(0)
    while bucket_of(largest, below, shift) > np.uint64(number):
        shift += np.uint64(1)
    last = np.int64(bucket_of(largest, below, shift))
    buckets[: last + 1] = 0
    for k in range(length):
        buckets[bucket_of(keys[k], below, shift)] += np.uint32(1)
    before = np.uint32(0)
    for bucket in range(last + 1):
        counted = buckets[bucket]
        buckets[bucket] = before
        before += counted
    for k in range(length):
        place = bucket_of(keys[k], below, shift)
        pairs[buckets[place]] = np.uint64(keys[k]) << np.uint64(32) | np.uint64(k)
        buckets[place] += np.uint32(1)


@part
def insert(pairs: Any, length: int) -> bool:
    """Sort pairs that are nearly sorted; False, half done, if they are not."""
    moves: Any = MAX_MOVES * length
    last = pairs[0]
    for k in range(1, length):
        pair = pairs[k]
        if pair >= last:
            last = pair
            continue
        at = k
        while at > 0 and pairs[at - 1] > pair:
            pairs[at] = pairs[at - 1]
            at -= 1
        pairs[at] = pair
        moves -= k - at
        if moves < 0:
            return False
    return True


@part
def sort_digits(keys: Any, length: int, pairs: Any, spare: Any, buckets: Any) -> None:
    """Write magnitude and index of every entry to `pairs`, sorted, in four passes of 8 bits."""
    for k in range(length):
        pairs[k] = np.uint64(keys[k]) << np.uint64(32) | np.uint64(k)
    source, target = pairs, spare
    for digit in range(4):
        shift = np.uint64(32 + 8 * digit)
        buckets[:256] = 0
        for k in range(length):
            buckets[np.int64((source[k] >> shift) & np.uint64(0xFF))] += np.uint32(1)
        before = np.uint32(0)
        for bucket in range(256):
            counted = buckets[bucket]
            buckets[bucket] = before
            before += counted
        for k in range(length):
            place = np.int64((source[k] >> shift) & np.uint64(0xFF))
            target[buckets[place]] = source[k]
            buckets[place] += np.uint32(1)
        source, target = target, source


@part
def order_row(keys: Any, length: int, pairs: Any, spare: Any, buckets: Any) -> None:
    """Write magnitude and index of every entry to `pairs`, sorted: index in the lower 32 bits."""
    if length > FEW:
        spread(keys, length, pairs, buckets)
    else:
        for k in range(length):
            pairs[k] = np.uint64(keys[k]) << np.uint64(32) | np.uint64(k)
    if not insert(pairs, length):
        sort_digits(keys, length, pairs, spare, buckets)


@part
def gather_keys(
    addresses: Any,
    codes: Any,
    source: int,
    start: int,
    stride: int,
    keys: Any,
    base: Any,
    delta: Any,
) -> None:
    """Write the magnitude bits of a source's deltas, the rows that begin at `start`, to `keys`."""
    rows, length = keys.shape
    # Contiguous rows come one at a time, whole; others side by side, entry by entry.
    reads, width = (1, length) if stride == 1 else (length, rows)
    bits = delta.view(np.uint32)
    for read in range(reads):
        at = start + read * stride
        widen(addresses[0], codes[0], at, width, base)
        widen(addresses[source], codes[source], at, width, delta)
        for k in range(width):
            delta[k] -= base[k]
        if stride == 1:
            for k in range(width):
                keys[0, k] = bits[k] & np.uint32(0x7FFFFFFF)
        else:
            for row in range(width):
                keys[row, read] = bits[row] & np.uint32(0x7FFFFFFF)


@part
def draw(
    pairs: Any,
    length: int,
    limits: Any,
    factors: Any,
    words: Any,
    start: int,
    stride: int,
    row: Any,
) -> None:
    """Put the bits of its factor, or 0, in place of the word of each entry of a sorted row.

    Through `row`, scratch in the order of ranks: the choice among words that lie where they may is
    compiled to a branch, taken as often as a coin falls; among neighbours it is a vector's.
    """
    bits = factors.view(np.uint32)
    for rank in range(length):
        row[rank] = words[start + np.int64(pairs[rank] & np.uint64(0xFFFFFFFF)) * stride]
    for rank in range(length):
        row[rank] = bits[rank] if np.uint64(row[rank]) < limits[rank] else np.uint32(0)
    for rank in range(length):
        words[start + np.int64(pairs[rank] & np.uint64(0xFFFFFFFF)) * stride] = row[rank]


@kernel(
    "void(int64[::1], int64[::1], int64, int64, int64, int64, uint64[:, ::1], uint64[:, ::1],"
    " float32[:, ::1], float32[:, ::1])"
)
def rank_tile(
    addresses: Any,
    codes: Any,
    first: int,
    count: int,
    length: int,
    stride: int,
    selectors: Any,
    limits: Any,
    factors: Any,
    out: Any,
) -> None:
    """Work out what each entry of a tile is multiplied by: 0 where it is dropped.

    Args:
        addresses: Address of each input's tile; input 0 is the base.
        codes: Element type of each input.
        first: Flat index of the tile's first element, a multiple of 4; a row begins there.
        count: Elements of the tile, whole rows.
        length: Entries of a row.
        stride: Elements from one entry of a row to the next.
        selectors: How each source's entries are kept; only those drawn by rank are looked at.
        limits: By source and rank: an entry stays iff its word is below.
        factors: By source and rank: what an entry that stays is multiplied by.
        out: `(sources, count)`, the row length rounded up to a multiple of 4.
    """
    columns = min(stride, MAX_COLUMNS)
    keys = np.empty((columns, length), np.uint32)
    base = np.empty(max(length, columns), np.float32)
    delta = np.empty(max(length, columns), np.float32)
    pairs, spare = np.empty(length, np.uint64), np.empty(length, np.uint64)
    buckets = np.empty(MAX_BUCKETS + 1, np.uint32)
    for i in range(selectors.shape[0]):
        if selectors[i, MODE] != KEEP_RANKED:
            continue
        # The words lie where the factors will: each is read once, before its factor is written.
        words = out[i].view(np.uint32)
        philox_words(selectors[i, KEY], first, (count + 3) // 4 * 4, words)
        for group in range(0, count, length * stride):
            for column in range(0, stride, columns):
                start = group + column
                rows = keys[: min(columns, stride - column)]
                gather_keys(addresses, codes, i + 1, start, stride, rows, base, delta)
                for row in range(rows.shape[0]):
                    order_row(rows[row], length, pairs, spare, buckets)
                    draw(
                        pairs, length, limits[i], factors[i], words, start + row, stride, rows[row]
                    )
