"""Bytes that are copied or compared, not merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Event

import numpy as np

from raymerge.errors import SourceError
from raymerge.kernels.tile import Bytes
from raymerge.plan.graph import PlannedSource, Read
from raymerge.runtime.inputs import Readers, StoppedError

COPY_BYTES = 2**21
"""Piece in which bytes are copied or compared."""


def pieces(
    read: Read, readers: Readers, *, stop: Event, on_read: Callable[[int], None]
) -> Iterator[tuple[int, Bytes]]:
    """A tensor's bytes in order, each piece with its offset and valid until the next."""
    nbytes = read.entry.nbytes
    buffer = np.empty(min(nbytes, COPY_BYTES), np.uint8)
    for offset in range(0, nbytes, COPY_BYTES):
        if stop.is_set():
            raise StoppedError("stopped")
        piece = buffer[: min(COPY_BYTES, nbytes - offset)]
        readers.fill(read, piece, offset)
        on_read(piece.nbytes)
        yield offset, piece


def require_equal(
    one: Read,
    other: Read,
    piece: Bytes,
    offset: int,
    *,
    readers: Readers,
    sources: Sequence[PlannedSource],
    on_read: Callable[[int], None],
) -> None:
    """Raise unless `other` holds the bytes of `piece`, which are those of `one` at `offset`."""
    compared = np.empty_like(piece)
    readers.fill(other, compared, offset)
    on_read(compared.nbytes)
    if np.array_equal(piece, compared):
        return
    first, second = (sources[read.source].label for read in (one, other))
    if one.source == other.source:
        raise SourceError(
            f"{first}: config.json says the head is tied, but {other.entry.name} differs from "
            f"{one.entry.name}; set tie_word_embeddings to false there if the head is its own, "
            f"else write `drop: [{other.entry.name}]`",
            source=first,
            tensor=other.entry.name,
            file=other.entry.file,
        )
    raise SourceError(
        f"{one.entry.name} holds {one.entry.dtype} values, which are not merged, and differs "
        f"between {first} and {second}. To copy the donor's write `keep: [{one.entry.name}]`, to "
        f"leave it out `drop: [{one.entry.name}]`.",
        source=second,
        tensor=one.entry.name,
        file=other.entry.file,
    )
