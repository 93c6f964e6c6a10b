"""Bring the bytes of a tensor's inputs to a thread, tile by tile, for as many sweeps as it takes.

Buffers come from an arena that a thread reuses from tensor to tensor, so that they stay in the
cache and no page is faulted in twice. A tensor that is held is read once and kept between sweeps;
any other is read again for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event

import numpy as np

from raymerge.checkpoint.layout import Slot
from raymerge.kernels.constants import LANES
from raymerge.kernels.tile import Bytes, Tile
from raymerge.plan.graph import Input, Read, TensorNode
from raymerge.plan.memory import SAMPLE_ELEMENTS, Budget, tile_of
from raymerge.runtime.readers import AHEAD_BYTES, Readers
from raymerge.runtime.stopping import StoppedError

ALIGNMENT = 64
"""Buffers start at cache lines."""
PAGE = 4096
PROBES = 16
"""Places a sample is taken from."""


class Arena:
    """Memory of one thread, handed out front to back and taken back all at once."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self._address = 0
        self._used = 0

    def reserve(self, *sizes: int) -> None:
        """Take everything back, and have buffers of these sizes, in this order, to hand out."""
        self._used = 0
        # Lost before each: up to a line to begin at one, and up to two lines to stay apart.
        nbytes = sum(sizes) + 3 * ALIGNMENT * len(sizes)
        if nbytes > self._memory.nbytes:
            # Freed before the new one is made: the two must not add up.
            self._memory = np.empty(0, np.uint8)
            self._memory = np.empty(nbytes, np.uint8)
            self._address = self._memory.__array_interface__["data"][0]

    def take(
        self, nbytes: int, *, source: Input | None = None, target: Slot | None = None
    ) -> Bytes:
        """The next `nbytes`, at the start of a cache line, with whatever they held before.

        Args:
            nbytes: The buffer's size.
            source: What it is filled from.
            target: Where it is written to.
        """
        start = self._used + -(self._address + self._used) % ALIGNMENT
        while (isinstance(source, Read) and _lags(source.entry.start, self._address + start)) or (
            target is not None and _lags(self._address + start, target.start)
        ):
            start += ALIGNMENT
        self._used = start + nbytes
        assert self._used <= self._memory.nbytes, (self._used, self._memory.nbytes)
        return self._memory[start : self._used]


def _lags(source: int, target: int) -> bool:
    """Whether bytes copied from one place to another, in memory or in a file, go slowly.

    The kernel copies page by page with `rep movsb`. On AMD's Zen 4 that took 1.3 to 4 times as long
    where, counted within pages, the target lies 1 to 63 bytes beyond the source.
    """
    return 0 < (target - source) % PAGE < ALIGNMENT


class Inputs:
    """The inputs of one tensor, swept as often as its step needs."""

    def __init__(
        self,
        node: TensorNode,
        readers: Readers,
        arena: Arena,
        budget: Budget,
        *,
        stop: Event,
        on_read: Callable[[int], None],
    ) -> None:
        self._fillers = [
            readers.filler(one, budget.inside(node, one.inner) if one.inner else None)
            for one in node.inputs
        ]
        self._stop = stop
        self._on_read = on_read
        self.elements = node.inputs[0].num_elements
        # An empty tensor has no tile, and no tile is empty.
        self.tile_elements = max(1, tile_of(node, budget.tile_elements))
        self.dtypes = [one.dtype for one in node.inputs]
        self._widths = [dtype.bits // 8 for dtype in self.dtypes]
        self._held = budget.holds(node)
        self._sampled = budget.sampled(node)
        self._loaded = False
        buffered = self.elements if self._held else self.tile_elements
        sizes = [dtype.num_bytes((buffered,)) for dtype in self.dtypes]
        out_bytes = node.slot.dtype.num_bytes((self.tile_elements,))
        arena.reserve(*sizes, out_bytes)
        self._buffers = [
            arena.take(size, source=one) for one, size in zip(node.inputs, sizes, strict=True)
        ]
        self.out = arena.take(out_bytes, target=node.slot)
        """Room for a tile of the output."""

    def sweep(self) -> Iterator[Tile]:
        """Every tile in order. A tile is valid until the next one is asked for."""
        for first in range(0, self.elements, self.tile_elements):
            if self._stop.is_set():
                raise StoppedError("stopped")
            count = min(self.tile_elements, self.elements - first)
            yield self.tile(first, count)
        self._loaded = True

    def tile(self, first: int, count: int) -> Tile:
        """The tile of `count` elements, at most a whole one, from `first`, a multiple of 256."""
        return Tile(self._tile(first, count), self.dtypes, first, count)

    def sample(self) -> Iterator[Tile]:
        """Evenly spaced pieces, `SAMPLE_ELEMENTS` in all, or the whole; see `Budget.sampled`."""
        if self._sampled == self.elements or self.elements <= SAMPLE_ELEMENTS:
            yield from self.sweep()
            return
        if self._held:
            for _ in self.sweep():
                pass  # read once, from the first tile to the last, and then at hand
        piece = SAMPLE_ELEMENTS // PROBES
        step = self.elements // PROBES // LANES * LANES
        for probe in range(PROBES):
            first, left = probe * step, piece
            while left:
                count = min(left, self.tile_elements)
                yield self.tile(first, count)
                first, left = first + count, left - count

    def _tile(self, first: int, count: int) -> list[Bytes]:
        pieces = []
        num_read = 0
        for filler, width, buffer in zip(self._fillers, self._widths, self._buffers, strict=True):
            offset, nbytes = first * width, count * width
            piece = buffer[offset : offset + nbytes] if self._held else buffer[:nbytes]
            if not self._loaded:
                filler.will_need(offset + AHEAD_BYTES, nbytes)
            if not (self._held and self._loaded):
                num_read += filler.fill(piece, offset)
            pieces.append(piece)
        self._on_read(num_read)
        return pieces
