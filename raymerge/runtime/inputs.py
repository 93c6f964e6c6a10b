"""Bring the bytes of a tensor's inputs to a thread, tile by tile, for as many sweeps as it takes.

Buffers come from an arena that a thread reuses from tensor to tensor, so that they stay in the
cache and no page is faulted in twice. A tensor that is held is read once and kept between sweeps;
any other is read again for each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from threading import Event

import numpy as np

from raymerge.checkpoint.dtypes import DType
from raymerge.checkpoint.layout import Slot
from raymerge.errors import NonFiniteError
from raymerge.kernels.constants import LANES
from raymerge.kernels.feed import unpinned
from raymerge.kernels.tile import Bytes, Tile
from raymerge.plan.graph import Input, Read, TensorNode
from raymerge.plan.memory import SAMPLE_ELEMENTS, Budget, Sweeping, sweeping_of
from raymerge.runtime.readers import AHEAD_BYTES, Filler, Readers
from raymerge.runtime.stopping import StoppedError

ALIGNMENT = 64
"""Buffers start at cache lines."""
PAGE = 4096
PROBES = 16
"""Places a sample is taken from."""


class Arena:
    """Memory of one thread, handed out front to back and taken back all at once.

    Args:
        make: Where the memory is from.
    """

    def __init__(self, make: Callable[[int], Bytes] = unpinned) -> None:
        self._make = make
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
            self._memory = self._make(nbytes)
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


class _Buffer:
    """Memory for some of an input's bytes, and which those are."""

    def __init__(self, memory: Bytes) -> None:
        self.memory = memory
        self.filled: tuple[int, int] | None = None
        """Which range of its bytes lies at the beginning, if it is known."""
        self.error: NonFiniteError | None = None
        """What ended the attempt to fill that."""

    def fill(self, filler: Filler, piece: Bytes, offset: int, *, again: bool) -> int:
        """Fill a piece of the memory; returns the bytes read.

        Args:
            filler: What fills it.
            piece: Where to.
            offset: First byte of the tensor that goes there.
            again: Whether to do so where the piece holds those bytes already.
        """
        wanted = offset, piece.nbytes
        if again or self.filled != wanted:
            self.filled, self.error = wanted, None
            try:
                return filler.fill(piece, offset)
            except NonFiniteError as error:
                self.error = error
        if self.error is not None:
            raise self.error
        return 0


class _Buffered:
    """One input: what fills its buffers, and how far that is done."""

    def __init__(self, filler: Filler, dtype: DType, buffers: Sequence[Bytes]) -> None:
        self.filler = filler
        self.dtype = dtype
        self.width = dtype.bits // 8
        self.buffers = list(map(_Buffer, buffers))
        """One for each tile in memory at once, or one for all of it."""
        self.swept = False
        """Whether all of it has been read; of a tensor that is held it is in the buffer then."""


class Inputs:
    """The inputs of one tensor, swept as often as its step needs.

    Args:
        node: The tensor.
        readers: The open files.
        arena: What buffers are taken from.
        budget: Of the thread.
        stop: Ends a sweep with StoppedError.
        on_read: Told of bytes read.
        sweeping: In which tiles, and what is kept; None leaves it to the budget.
        outputs: Outputs that there are, of one dtype.
        depth: Tiles that are in memory at once, of inputs that are not held and of each output.
    """

    def __init__(
        self,
        node: TensorNode,
        readers: Readers,
        arena: Arena,
        budget: Budget,
        *,
        stop: Event,
        on_read: Callable[[int], None],
        sweeping: Sweeping | None = None,
        outputs: int = 1,
        depth: int = 1,
    ) -> None:
        self._stop = stop
        self._depth = depth
        self._on_read = on_read
        self.elements = node.inputs[0].num_elements
        sweeping = sweeping or sweeping_of(node, budget)
        # An empty tensor has no tile, and no tile is empty.
        self.tile_elements = max(1, sweeping.tile_elements)
        self._held = sweeping.held
        self._sampled = sweeping.sampled
        self._again = not sweeping.shared
        buffered = self.elements if self._held else self.tile_elements
        buffers = 1 if self._held else depth
        sizes = [one.dtype.num_bytes((buffered,)) for one in node.inputs]
        out_bytes = node.slot.dtype.num_bytes((self.tile_elements,))
        arena.reserve(*sizes * buffers, *[out_bytes] * (outputs * depth))
        self._sources = [
            _Buffered(
                readers.filler(one, budget.inside(node, one.inner) if one.inner else None),
                one.dtype,
                [arena.take(size, source=one) for _ in range(buffers)],
            )
            for one, size in zip(node.inputs, sizes, strict=True)
        ]
        self._out_width = node.slot.dtype.bits // 8
        self.outs = [arena.take(out_bytes, target=node.slot) for _ in range(outputs * depth)]
        """Room for tiles of the outputs."""
        self.out = self.outs[0]

    def of(self, positions: Sequence[int]) -> Inputs:
        """Some of the inputs, in the same memory: what either reads the other has."""
        some = copy(self)
        some._sources = [self._sources[position] for position in positions]  # noqa: SLF001
        return some

    def room(self, tile: Tile, *, output: int = 0) -> Bytes:
        """Where a tile of an output goes; taken by another `depth` tiles later."""
        slot = tile.first // self.tile_elements % self._depth
        return self.outs[output * self._depth + slot][: tile.count * self._out_width]

    def sweep(self) -> Iterator[Tile]:
        """Every tile in order. A tile is valid until as many as `depth` others are asked for."""
        for number, (first, count) in enumerate(self.places()):
            yield self.tile(first, count, number)
        for source in self._sources:
            source.swept = True

    def places(self) -> Iterator[tuple[int, int]]:
        """First element and length of every tile in order."""
        for first in range(0, self.elements, self.tile_elements):
            if self._stop.is_set():
                raise StoppedError("stopped")
            yield first, min(self.tile_elements, self.elements - first)

    def tile(self, first: int, count: int, number: int = 0) -> Tile:
        """The tile of `count` elements, at most a whole one, from `first`, a multiple of 256.

        Args:
            first: Its first element.
            count: Its length.
            number: Tiles asked for before, if those may still be in use.
        """
        dtypes = [source.dtype for source in self._sources]
        return Tile(self._tile(first, count, number % self._depth), dtypes, first, count)

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
        numbers = itertools.count()
        for probe in range(PROBES):
            first, left = probe * step, piece
            while left:
                count = min(left, self.tile_elements)
                yield self.tile(first, count, next(numbers))
                first, left = first + count, left - count

    def _tile(self, first: int, count: int, slot: int) -> list[Bytes]:
        pieces = []
        num_read = 0
        for source in self._sources:
            offset, nbytes = first * source.width, count * source.width
            buffer = source.buffers[0 if self._held else slot]
            begin = offset if self._held else 0
            piece = buffer.memory[begin : begin + nbytes]
            if not source.swept:
                source.filler.will_need(offset + AHEAD_BYTES, nbytes)
            if not (self._held and source.swept):
                num_read += buffer.fill(source.filler, piece, offset, again=self._again)
            pieces.append(piece)
        self._on_read(num_read)
        return pieces
