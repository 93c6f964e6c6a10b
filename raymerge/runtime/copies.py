"""Bytes that are copied or compared, not merged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Event

import numpy as np

from raymerge.checkpoint.layout import Slot
from raymerge.errors import SourceError
from raymerge.kernels.tile import Bytes
from raymerge.plan.graph import Input, PlannedSource, TensorNode
from raymerge.plan.needs import COPY_BYTES
from raymerge.plan.steps import COPY
from raymerge.runtime.finite import is_finite, refuse
from raymerge.runtime.inputs import Arena
from raymerge.runtime.readers import Filler, Readers
from raymerge.runtime.settings import RunSettings
from raymerge.runtime.stopping import StoppedError


def pieces(
    one: Input,
    readers: Readers,
    *,
    target: Slot | None = None,
    stop: Event,
    on_read: Callable[[int], None],
) -> Iterator[tuple[int, Bytes]]:
    """A tensor's bytes in order, each piece with its offset and valid until the next.

    Args:
        one: The tensor.
        readers: The open files.
        target: Where the pieces are written, if they are.
        stop: Ends it with StoppedError.
        on_read: Told of bytes read.
    """
    nbytes = one.dtype.num_bytes(one.shape)
    filler = readers.filler(one)
    arena = Arena()
    arena.reserve(min(nbytes, COPY_BYTES))
    buffer = arena.take(min(nbytes, COPY_BYTES), source=one, target=target)
    for offset in range(0, nbytes, COPY_BYTES):
        if stop.is_set():
            raise StoppedError("stopped")
        piece = buffer[: min(COPY_BYTES, nbytes - offset)]
        on_read(filler.fill(piece, offset))
        yield offset, piece


def check_copied(
    node: TensorNode,
    piece: Bytes,
    offset: int,
    others: Sequence[Filler],
    *,
    settings: RunSettings,
    on_read: Callable[[int], None],
) -> None:
    """Raise unless a piece of a copied tensor may be written: equal in all inputs, and finite.

    Args:
        node: The tensor.
        piece: Bytes of its first input.
        offset: Where in the tensor they lie.
        others: What gives the bytes of its other inputs.
        settings: Of the stage that copies.
        on_read: Told of bytes read.
    """
    first, *rest = node.inputs
    for other, filler in zip(rest, others, strict=True):
        require_equal(
            first, other, piece, offset, filler=filler, sources=settings.sources, on_read=on_read
        )
    dtype = first.dtype
    checked = node.step == COPY and dtype.mergeable and settings.nan == "error"
    if checked and not (finite := is_finite(piece, dtype)).all():
        index = offset * 8 // dtype.bits + int(np.argmin(finite))
        refuse(node, first, index, sources=settings.sources)


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
