"""What a unit's bytes hash to, with the processor's instructions and without."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from raymerge.kernels import sha256
from raymerge.runtime.hashing import TensorHashes, unit_hash

HEAD = b"a header of a length that is no multiple of a block" * 3
TENSORS = [np.arange(length, dtype=np.uint8) for length in (0, 1, 64, 200, 250, 128)]


@pytest.mark.parametrize("whole_shard", [True, False])
@pytest.mark.parametrize("paired", [True, False])
def test_every_tensor_and_the_whole(
    monkeypatch: pytest.MonkeyPatch, *, paired: bool, whole_shard: bool
) -> None:
    if not paired:
        monkeypatch.setattr(sha256, "available", lambda: False)
    hashes = unit_hash(HEAD, whole_shard=whole_shard)
    for tensor in TENSORS:
        for piece in np.array_split(tensor, 3):
            hashes.update(piece)
        assert hashes.end_tensor() == hashlib.sha256(tensor.tobytes()).hexdigest()
    everything = HEAD + b"".join(tensor.tobytes() for tensor in TENSORS)
    assert hashes.shard() == (hashlib.sha256(everything).hexdigest() if whole_shard else None)


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("paired", [True, False])
def test_a_tensor_of_several_trials(
    monkeypatch: pytest.MonkeyPatch, *, paired: bool, number: int
) -> None:
    if not paired:
        monkeypatch.setattr(sha256, "available", lambda: False)
    wholes = np.random.default_rng(0).integers(0, 256, (number, 1000), np.uint8)
    hashes = TensorHashes(number)
    for pieces in np.array_split(wholes, 3, axis=1):
        hashes.update([piece.copy() for piece in pieces])
    assert hashes.hexdigests() == [hashlib.sha256(whole.tobytes()).hexdigest() for whole in wholes]
