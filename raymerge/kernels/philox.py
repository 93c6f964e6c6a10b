"""Keyed draws: Philox4x32-10, a counter-based generator.

Salmon, Moraes, Dror, Shaw. Parallel Random Numbers: As Easy as 1, 2, 3. SC 2011.

What is drawn for an entry depends on the seed, the source's label, the tensor's name and the
entry's flat index alone: not on workers, order, tiles, device, or which other sources take part.
Word `i % 4` of counter `i // 4` belongs to entry i. The same words serve every density, so that an
entry kept at one density is kept at every greater one.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from raymerge.kernels.jit import part

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
"""What each round adds to the two words of the key."""


def draw_key(seed: int, *, label: str, tensor: str) -> int:
    """The 64-bit key of the draws for one source's task vector of one output tensor."""
    named = f"{seed}\0{label}\0{tensor}".encode()
    return int.from_bytes(hashlib.blake2b(named, digest_size=8).digest(), "little")


def draw_limit(density: float) -> int:
    """An entry stays iff its word is below this: `floor(density * 2**32)`."""
    return int(density * 2**32)


@part
def philox_words(key: int, first: int, count: int, words: Any) -> None:
    """Write the words of entries `[first, first + count)`; both are multiples of 4."""
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    begin = np.uint64(first) // np.uint64(4)
    for group in range(count // 4):
        counter = begin + np.uint64(group)
        a, b = counter & low, counter >> half
        c, d = np.uint64(0), np.uint64(0)
        k, m = key & low, key >> half
        for _ in range(10):
            p = a * np.uint64(0xD2511F53)
            q = c * np.uint64(0xCD9E8D57)
            a, b, c, d = (q >> half) ^ b ^ k, q & low, (p >> half) ^ d ^ m, p & low
            k = (k + np.uint64(0x9E3779B9)) & low
            m = (m + np.uint64(0xBB67AE85)) & low
        words[4 * group] = np.uint32(a)
        words[4 * group + 1] = np.uint32(b)
        words[4 * group + 2] = np.uint32(c)
        words[4 * group + 3] = np.uint32(d)
