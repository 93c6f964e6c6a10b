"""Read a whole shard once, in file order, a few MB at a time: find NaN and Inf, take its hash."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.folder import Folder
from raymerge.checkpoint.header import Header, TensorEntry

if TYPE_CHECKING:
    from hashlib import _Hash

# Large enough that a request costs less than its bytes, small enough that the hash and the bit test
# find them in the cache.
PIECE_BYTES = 4 * 2**20

# A floating-point number is NaN or Inf exactly where all bits of its exponent are set; E4M3 has no
# Inf, and a NaN where those of its fraction are set as well.
_EXPONENTS: dict[DType, np.unsignedinteger] = {
    DType.F16: np.uint16(0x7C00),
    DType.BF16: np.uint16(0x7F80),
    DType.F32: np.uint32(0x7F80_0000),
    DType.F64: np.uint64(0x7FF0_0000_0000_0000),
    DType.F8_E4M3: np.uint8(0x7F),
    DType.F8_E5M2: np.uint8(0x7C),
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch `[start, stop)` of a shard's data and the tensors it touches."""

    start: int
    stop: int
    entries: tuple[TensorEntry, ...]


def cut(header: Header, *, piece_bytes: int = PIECE_BYTES) -> Iterator[Piece]:
    """Cut a shard's data into pieces, never through an element, small tensors joined."""
    start = header.data_start
    joined: list[TensorEntry] = []
    for entry in header.entries:
        while entry.stop - start > piece_bytes:
            # Whole elements: all that are looked at have 1, 2, 4 or 8 bytes.
            stop = entry.start + (start + piece_bytes - entry.start) // 8 * 8
            if stop > entry.start:
                joined.append(entry)
            yield Piece(start, stop, tuple(joined))
            start, joined = stop, []
        joined.append(entry)
    if joined and joined[-1].stop > start:
        yield Piece(start, joined[-1].stop, tuple(joined))


def scan_shard(folder: Folder, name: str, header: Header, digest: _Hash | None) -> tuple[str, ...]:
    """Names of the tensors with NaN or Inf, in file order.

    Args:
        folder: Where the shard lies.
        name: The shard.
        header: Its header, as read before.
        digest: Fed with the whole file, header included, if given.

    Raises:
        SourceError: The file ends before its header said it would.
    """
    if digest:
        digest.update(folder.read(name, 0, header.data_start))
    broken: dict[str, None] = {}
    for piece in cut(header):
        content = folder.read(name, piece.start, piece.stop)
        if digest:
            digest.update(content)
        for entry in piece.entries:
            if entry.name not in broken and not _is_finite(entry, content, piece):
                broken[entry.name] = None
    return tuple(broken)


def same_bytes(folder: Folder, one: TensorEntry, other: TensorEntry) -> bool:
    """Whether two tensors of one folder hold the same bytes."""
    if one.nbytes != other.nbytes:
        return False
    for offset in range(0, one.nbytes, PIECE_BYTES):
        length = min(PIECE_BYTES, one.nbytes - offset)
        a = folder.read(one.file, one.start + offset, one.start + offset + length)
        if a != folder.read(other.file, other.start + offset, other.start + offset + length):
            return False
    return True


def _is_finite(entry: TensorEntry, content: bytes, piece: Piece) -> bool:
    exponent = _EXPONENTS.get(entry.dtype)
    if exponent is None:
        return True
    start, stop = max(entry.start, piece.start), min(entry.stop, piece.stop)
    count = (stop - start) // exponent.itemsize
    if count == 0:
        return True
    bits = np.frombuffer(content, exponent.dtype, count, start - piece.start)
    return bool((bits & exponent).max() != exponent)
