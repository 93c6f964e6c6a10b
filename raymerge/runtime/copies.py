"""Bytes that are copied or compared, not merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Event

import numpy as np

from raymerge.errors import SourceError
from raymerge.kernels.tile import Bytes
from raymerge.plan.graph import Input, PlannedSource
from raymerge.runtime.inputs import StoppedError
from raymerge.runtime.readers import Filler, Readers

COPY_BYTES = 2**21
"""Piece in which bytes are copied or compared."""


def pieces(
    one: Input, readers: Readers, *, stop: Event, on_read: Callable[[int], None]
) -> Iterator[tuple[int, Bytes]]:
    """A tensor's bytes in order, each piece with its offset and valid until the next."""
    nbytes = one.dtype.num_bytes(one.shape)
    filler = readers.filler(one)
    buffer = np.empty(min(nbytes, COPY_BYTES), np.uint8)
    for offset in range(0, nbytes, COPY_BYTES):
        if stop.is_set():
            raise StoppedError("stopped")
        piece = buffer[: min(COPY_BYTES, nbytes - offset)]
        on_read(filler.fill(piece, offset))
        yield offset, piece


def require_equal(
    one: Input,
    other: Input,
    piece: Bytes,
    offset: int,
    *,
    filler: Filler,
    sources: Sequence[PlannedSource],
    on_read: Callable[[int], None],
) -> None:
    """Raise unless `other` holds the bytes of `piece`, which are those of `one` at `offset`."""
    compared = np.empty_like(piece)
    on_read(filler.fill(compared, offset))
    if np.array_equal(piece, compared):
        return
    first, second = (sources[read.source].label for read in (one, other))
    if one.source == other.source:
        raise SourceError(
            f"{first}: config.json says the head is tied, but {other.name} differs from "
            f"{one.name}; set tie_word_embeddings to false there if the head is its own, "
            f"else write `drop: [{other.name}]`",
            source=first,
            tensor=other.name,
            file=other.file,
        )
    raise SourceError(
        f"{one.name} holds {one.dtype} values, which are not merged, and differs "
        f"between {first} and {second}. To copy the donor's write `keep: [{one.name}]`, to "
        f"leave it out `drop: [{one.name}]`.",
        source=second,
        tensor=one.name,
        file=other.file,
    )
