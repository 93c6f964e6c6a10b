"""Tiles on their way to a device and back: one is sent and one comes back while one is computed.

              slot 0      slot 1      slot 2      slot 0
    thread    read 0      read 1      read 2      write 0, read 3    write 1, read 4 ...
    in             send 0      send 1      send 2              send 3
    compute             kernel 0    kernel 1    kernel 2
    out                      bring 0     bring 1     bring 2

A slot is memory for one tile of every input and of the output. Kernels wait for the device now and
then (for a count, a sum, a report), so they run on a thread of their own, one tile after another:
what they carry from tile to tile is as it is without a ring.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from raymerge.kernels.feed import Done, Flight, Work
from raymerge.kernels.tile import Bytes, Tile
from raymerge.kernels.torch_streams import Mark, Stream, Streams, streams_of

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class DeviceTile(Tile):
    """A tile that is on the device, or on its way there."""

    sent: Sequence[Tensor]
    """The bytes of each input on the device."""
    bring: Callable[[Tensor, Tensor], None]
    """Has what a kernel made copied to host memory, without waiting for it."""


_Flying = deque[tuple[DeviceTile, Future[tuple[Any, Mark]], Callable[[Tile, Any], None]]]
"""Tiles, each with its report, the mark at which it is back, and what is done with it then."""


class Ring:
    """Feeds one thread's tiles to a device. See `Feed`.

    Args:
        streams: Of the device.
        depth: Slots: 1 does one thing at a time, 2 reads and computes, 3 writes besides.
    """

    def __init__(self, streams: Streams, depth: int) -> None:
        self.depth = depth
        self._streams = streams
        self._computing = ThreadPoolExecutor(1, "kernels", initializer=streams.compute)

    def memory(self, nbytes: int) -> Bytes:
        """See `Feed.memory`."""
        return self._streams.memory(nbytes)

    def fly(self, flights: Iterable[Flight[R]]) -> None:
        """See `Feed.fly`."""
        flying: _Flying = deque()
        try:
            for flight in flights:
                self._launch(flight, flying)
                if len(flying) == self.depth:
                    self._land(flying)
        finally:
            # Also where a tile could not be read: those before it come first, in any case.
            while flying:
                self._land(flying)

    def run(self, tiles: Iterable[Tile], work: Work, done: Done) -> None:
        """See `Feed.run`."""
        self.fly(Flight(tile, work, done) for tile in tiles)

    def release(self) -> None:
        """See `Feed.release`."""
        self._streams.release()

    def _launch(self, flight: Flight[R], flying: _Flying) -> None:
        tile = flight.tile
        try:
            sent = [self._streams.send(torch.from_numpy(buffer)) for buffer in tile.buffers]
        except BaseException:
            self._streams.drain()  # of what was begun nobody would hear
            raise
        there = self._streams.mark(Stream.IN)
        results: list[Tensor] = []

        def bring(result: Tensor, target: Tensor) -> None:
            # Kept as long as the tile: its memory would be used again before it is copied.
            results.append(result)
            self._streams.follow(Stream.OUT, self._streams.mark(Stream.COMPUTE))
            self._streams.bring(result, target)

        moved = DeviceTile(tile.buffers, tile.dtypes, tile.first, tile.count, sent, bring)
        computed = self._computing.submit(self._compute, moved, there, flight.work)
        flying.append((moved, computed, flight.done))

    def _compute(self, tile: DeviceTile, there: Mark, work: Callable[[Tile], R]) -> tuple[R, Mark]:
        self._streams.follow(Stream.COMPUTE, there)
        report = work(tile)
        # Also where nothing is brought back: a slot is free once its kernels are done.
        self._streams.follow(Stream.OUT, self._streams.mark(Stream.COMPUTE))
        return report, self._streams.mark(Stream.OUT)

    def _land(self, flying: _Flying) -> None:
        tile, computed, done = flying.popleft()
        try:
            report, back = computed.result()
            self._streams.wait(back)
            done(tile, report)
        except BaseException:
            self._abandon(flying)
            raise
        finally:
            # An error has this frame, and the call the error: together they would keep tensors.
            del computed

    def _abandon(self, flying: _Flying) -> None:
        """Let go of what is under way, once nothing touches its memory any more."""
        for _, computed, _ in flying:
            computed.cancel()
        wait([computed for _, computed, _ in flying])
        self._streams.drain()
        flying.clear()


def ring_of(device: str, depth: int) -> Ring:
    """A ring of a device that torch knows by this name."""
    return Ring(streams_of(device), depth)
