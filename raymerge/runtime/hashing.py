"""SHA-256 of what a unit writes: of every tensor, and of the shard where the unit is all of it.

Where the processor has instructions for it two streams take hardly more time than one: a tensor's
and its shard's, or those of two trials.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from raymerge.kernels import sha256
from raymerge.kernels.tile import Bytes

_TENSOR, _SHARD = 0, 1


class UnitHash(Protocol):
    """Takes a unit's bytes in order."""

    def update(self, piece: Bytes) -> None:
        """The next bytes of a tensor."""

    def end_tensor(self) -> str:
        """Hex digest of the tensor that ends here; another begins."""
        ...

    def shard(self) -> str | None:
        """Hex digest of everything, the head included, where the unit is a whole shard."""
        ...


def unit_hash(head: bytes, *, whole_shard: bool) -> UnitHash:
    """What hashes a unit.

    Args:
        head: What stands before its first tensor.
        whole_shard: It is all of its shard.
    """
    if whole_shard and sha256.available():
        return _Paired(head)
    return _Single(head, whole_shard=whole_shard)


class _Single:
    """One after the other."""

    def __init__(self, head: bytes, *, whole_shard: bool) -> None:
        self._tensor = hashlib.sha256()
        self._shard = hashlib.sha256(head) if whole_shard else None

    def update(self, piece: Bytes) -> None:
        self._tensor.update(piece.data)
        if self._shard is not None:
            self._shard.update(piece.data)

    def end_tensor(self) -> str:
        digest, self._tensor = self._tensor.hexdigest(), hashlib.sha256()
        return digest

    def shard(self) -> str | None:
        return self._shard.hexdigest() if self._shard is not None else None


class _Paired:
    """Both at once, in hardly more time than one takes."""

    def __init__(self, head: bytes) -> None:
        self._pair = sha256.PairedHash()
        self._pair.update(np.frombuffer(head, np.uint8))
        self._pair.restart(_TENSOR)

    def update(self, piece: Bytes) -> None:
        self._pair.update(piece)

    def end_tensor(self) -> str:
        digest = self._pair.hexdigest(_TENSOR)
        self._pair.restart(_TENSOR)
        return digest

    def shard(self) -> str | None:
        return self._pair.hexdigest(_SHARD)


class TensorHashes:
    """Hashes of one tensor as several trials have it, whose bytes come side by side."""

    def __init__(self, number: int) -> None:
        pairs = number // 2 if sha256.available() else 0
        self._pairs = [sha256.PairedHash() for _ in range(pairs)]
        self._others = [hashlib.sha256() for _ in range(number - 2 * pairs)]

    def update(self, pieces: Sequence[Bytes]) -> None:
        """The next bytes of each, as many of all."""
        paired = 2 * len(self._pairs)
        for pair, first, second in zip(
            self._pairs, pieces[:paired:2], pieces[1:paired:2], strict=True
        ):
            pair.update(first, second)
        for other, piece in zip(self._others, pieces[paired:], strict=True):
            other.update(piece.data)

    def hexdigests(self) -> list[str]:
        """Of each, in order."""
        paired = [pair.hexdigest(stream) for pair in self._pairs for stream in range(2)]
        return paired + [other.hexdigest() for other in self._others]
