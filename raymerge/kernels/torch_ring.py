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

import torch
from torch import Tensor

from raymerge.kernels.feed import Done, Work
from raymerge.kernels.tile import Bytes, Tile
from raymerge.kernels.torch_streams import Mark, Stream, Streams, streams_of


@dataclass(frozen=True, slots=True)
class DeviceTile(Tile):
    """A tile that is on the device, or on its way there."""

    sent: Sequence[Tensor]
    """The bytes of each input on the device."""
    bring: Callable[[Tensor, Tensor], None]
    """Has what a kernel made copied to host memory, without waiting for it."""


_Flight = tuple[DeviceTile, Future[tuple[int, Mark]]]
"""A tile, and its kernel's report with the mark at which it is back."""


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

    def run(self, tiles: Iterable[Tile], work: Work, done: Done) -> None:
        """See `Feed.run`."""
        flying: deque[_Flight] = deque()
        try:
            for tile in tiles:
                flying.append(self._launch(tile, work))
                if len(flying) == self.depth:
                    self._land(flying, done)
        finally:
            # Also where a tile could not be read: those before it come first, in any case.
            while flying:
                self._land(flying, done)

    def release(self) -> None:
        """See `Feed.release`."""
        self._streams.release()

    def _launch(self, tile: Tile, work: Work) -> _Flight:
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
        return moved, self._computing.submit(self._compute, moved, there, work)

    def _compute(self, tile: DeviceTile, there: Mark, work: Work) -> tuple[int, Mark]:
        self._streams.follow(Stream.COMPUTE, there)
        report = work(tile)
        # Also where nothing is brought back: a slot is free once its kernels are done.
        self._streams.follow(Stream.OUT, self._streams.mark(Stream.COMPUTE))
        return report, self._streams.mark(Stream.OUT)

    def _land(self, flying: deque[_Flight], done: Done) -> None:
        tile, computed = flying.popleft()
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

    def _abandon(self, flying: deque[_Flight]) -> None:
        """Let go of what is under way, once nothing touches its memory any more."""
        for _, computed in flying:
            computed.cancel()
        wait([computed for _, computed in flying])
        flying.clear()
        self._streams.drain()


def ring_of(device: str, depth: int) -> Ring:
    """A ring of a device that torch knows by this name."""
    return Ring(streams_of(device), depth)
