"""Two SHA-256 streams at once against hashlib."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from raymerge.kernels import sha256
from raymerge.kernels.sha256 import PairedHash

pytestmark = pytest.mark.skipif(
    not sha256.available(), reason="this processor has no instructions for SHA-256"
)
BYTES = np.random.default_rng(0).integers(0, 256, 70_000, np.uint8)


def _hexdigest(content: np.ndarray) -> str:
    return hashlib.sha256(content.tobytes()).hexdigest()


@pytest.mark.parametrize("length", [*range(130), 191, 192, 193, 4096, 65_537])
def test_both_streams_are_hashlibs_at_any_length(length: int) -> None:
    pair = PairedHash()
    pair.update(BYTES[:length])
    assert pair.hexdigest(0) == pair.hexdigest(1) == _hexdigest(BYTES[:length])


def test_constants_are_those_of_the_standard() -> None:
    # FIPS 180-4, 4.2.2 and 5.3.3: first and last.
    assert [hex(word) for word in sha256.ROUND_WORDS[::63]] == ["0x428a2f98", "0xc67178f2"]
    assert [hex(word) for word in sha256.FIRST_WORDS[::7]] == ["0x6a09e667", "0x5be0cd19"]


def test_streams_stand_at_different_places_of_a_block() -> None:
    random = np.random.default_rng(1)
    for _ in range(300):
        pair, start = PairedHash(), 0
        pieces = random.integers(0, random.choice([3, 70, 200, 5000]), 8)
        restarts = random.integers(0, 8)
        for number, length in enumerate(pieces):
            if number == restarts:
                pair.restart(0)
                began = start
            pair.update(BYTES[start : start + length])
            start += length
        assert pair.hexdigest(0) == _hexdigest(BYTES[began:start]), pieces
        assert pair.hexdigest(1) == _hexdigest(BYTES[:start]), pieces


def test_a_digest_leaves_its_stream_as_it_was() -> None:
    pair = PairedHash()
    pair.update(BYTES[:100])
    assert pair.hexdigest(1) == pair.hexdigest(1)
    pair.update(BYTES[100:])
    assert pair.hexdigest(1) == _hexdigest(BYTES)


def test_streams_of_different_bytes() -> None:
    random = np.random.default_rng(2)
    others = BYTES[::-1].copy()
    for _ in range(100):
        pair, start = PairedHash(), 0
        for number, length in enumerate(random.integers(0, random.choice([3, 70, 200, 5000]), 8)):
            if number == 2:
                pair.restart(1)
                began = start
            stop = start + length
            pair.update(BYTES[start:stop], others[start:stop])
            start = stop
        assert pair.hexdigest(0) == _hexdigest(BYTES[:start])
        assert pair.hexdigest(1) == _hexdigest(others[began:start])
