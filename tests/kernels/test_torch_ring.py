"""A ring takes tiles to a device and back in order, in memory that is used again and again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from threading import Event
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
import torch

from raymerge.checkpoint.dtypes import DType
from raymerge.kernels.tile import Bytes, Tile
from raymerge.kernels.torch_ring import DeviceTile, Ring
from raymerge.kernels.torch_streams import HostStreams, Stream, Streams
from tests.late_streams import LateStreams, Place

COUNT = 256
WAIT_S = 30
EACH_DEPTH = pytest.mark.parametrize("depth", [1, 2, 3, 4])
EACH_STREAMS = pytest.mark.parametrize("streams", [HostStreams, LateStreams])


class Line:
    """Tiles that hold their number, from and to as many buffers as a ring has slots.

    A kernel reports the number that it finds and writes the next one.
    """

    def __init__(
        self,
        tiles: int,
        depth: int,
        *,
        reads: Callable[[int], object] = lambda _: None,
        computes: Callable[[int], object] = lambda _: None,
        ends: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._tiles = tiles
        self._ins = [np.zeros(COUNT, np.uint8) for _ in range(depth)]
        self._outs = [np.zeros(COUNT, np.uint8) for _ in range(depth)]
        self._reads, self._computes, self._ends = reads, computes, ends
        self.read = 0
        self.most = 0
        """Tiles that were read and not done with."""
        self.done: list[tuple[int, int, list[int]]] = []
        """Number, report, and what was written, of each tile."""

    def through(self, ring: Ring) -> None:
        ring.run(self._sweep(), self._work, self._end)

    def _sweep(self) -> Iterator[Tile]:
        for number in range(self._tiles):
            self._reads(number)
            buffer = self._ins[number % len(self._ins)]
            buffer[:] = number
            self.read += 1
            self.most = max(self.most, self.read - len(self.done))
            yield Tile([buffer], [DType.U8], number * COUNT, COUNT)

    def _work(self, tile: Tile) -> int:
        assert isinstance(tile, DeviceTile)
        number = tile.first // COUNT
        self._computes(number)
        found = tile.sent[0].clone()
        tile.bring(found + 1, torch.from_numpy(self._out(tile)))
        assert bool((found == found[0]).all())
        return int(found[0])

    def _end(self, tile: Tile, report: int) -> None:
        number = tile.first // COUNT
        self._ends(number)
        assert set(tile.buffers[0].tolist()) == {number}, "what was read is still there"
        self.done.append((number, report, sorted(set(self._out(tile).tolist()))))

    def _out(self, tile: Tile) -> Bytes:
        return self._outs[tile.first // COUNT % len(self._outs)]


def whole(tiles: int) -> list[tuple[int, int, list[int]]]:
    return [(number, number, [number + 1]) for number in range(tiles)]


@EACH_STREAMS
@EACH_DEPTH
@pytest.mark.parametrize("tiles", [0, 1, 2, 3, 7])
def test_every_tile_comes_back_in_order(
    streams: Callable[[], Streams], depth: int, tiles: int
) -> None:
    ring, line = Ring(streams(), depth), Line(tiles, depth)
    line.through(ring)
    assert line.done == whole(tiles)
    assert line.most == min(depth, tiles)


def test_one_ring_takes_sweep_after_sweep() -> None:
    ring = Ring(LateStreams(), 3)
    for tiles in (5, 1, 0, 4):
        line = Line(tiles, 3)
        line.through(ring)
        assert line.done == whole(tiles)


def raised_once(events: list[Event]) -> Callable[[int], None]:
    return lambda number: events[number].set()


@EACH_STREAMS
def test_tiles_are_read_and_written_while_others_are_computed(
    streams: Callable[[], Streams],
) -> None:
    """Kernel k ends once tile k + 1 is read and tile k - 1 written."""
    tiles = 6
    read, written = ([Event() for _ in range(tiles)] for _ in range(2))

    def compute(number: int) -> None:
        assert number + 1 == tiles or read[number + 1].wait(WAIT_S)
        assert number == 0 or written[number - 1].wait(WAIT_S)

    line = Line(tiles, 3, reads=raised_once(read), computes=compute, ends=raised_once(written))
    line.through(Ring(streams(), 3))
    assert line.done == whole(tiles)


def test_a_ring_of_one_does_one_thing_at_a_time() -> None:
    done: list[str] = []
    line = Line(
        3,
        1,
        reads=lambda number: done.append(f"read {number}"),
        computes=lambda number: done.append(f"compute {number}"),
        ends=lambda number: done.append(f"end {number}"),
    )
    line.through(Ring(LateStreams(), 1))
    assert done == [f"{what} {k}" for k in range(3) for what in ("read", "compute", "end")]


class SinkingError(Exception):
    pass


def sink_at(number: int) -> Callable[[int], None]:
    def sink(reached: int) -> None:
        if reached == number:
            raise SinkingError(number)

    return sink


@EACH_STREAMS
@EACH_DEPTH
@pytest.mark.parametrize("step", ["reads", "computes", "ends"])
@pytest.mark.parametrize("at", [0, 1, 4])
def test_an_error_comes_when_its_tile_is_due(
    streams: Callable[[], Any], depth: int, step: str, at: int
) -> None:
    used = streams()
    ring = Ring(used, depth)
    sinking: dict[str, Any] = {step: sink_at(at)}
    line = Line(5, depth, **sinking)
    with pytest.raises(SinkingError):
        line.through(ring)

    assert line.done == whole(at), "all before it, and nothing behind it"
    assert isinstance(used, HostStreams) or used.left == 0, "no copy is under way"
    again = Line(5, depth)
    again.through(ring)
    assert again.done == whole(5)


@EACH_DEPTH
def test_of_two_errors_the_one_of_the_earlier_tile_is_raised(depth: int) -> None:
    line = Line(5, depth, reads=sink_at(3), computes=sink_at(2))
    with pytest.raises(SinkingError) as caught:
        line.through(Ring(LateStreams(), depth))
    assert caught.value.args == (2,)
    assert line.done == whole(2)


def test_what_a_failed_kernel_held_is_free_when_its_error_is_gone() -> None:
    """Memory of the device, above all: the unit is tried again in smaller tiles."""
    held: list[weakref.ref[Any]] = []

    def fail(number: int) -> None:
        temporary = np.zeros(7)
        held.append(weakref.ref(temporary))
        if number == 1:
            raise SinkingError

    ring = Ring(HostStreams(), 3)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(SinkingError) as caught:
            Line(5, 3, computes=fail).through(ring)
        assert held[1]() is not None
        del caught
        give_up = monotonic() + WAIT_S
        while held[1]() is not None and monotonic() < give_up:
            sleep(0.01)  # the kernel's thread has it for a moment longer
        assert held[1]() is None
    finally:
        gc.enable()


def test_copies_that_nobody_waits_for_are_seen_in_these_tests() -> None:
    class Heedless(LateStreams):
        def follow(self, stream: Stream, mark: Place) -> None:
            pass

    class Hasty(LateStreams):
        def wait(self, mark: Place) -> None:
            if mark[0] is Stream.IN:
                super().wait(mark)

    for streams in (Heedless(), Hasty()):
        line = Line(5, 2)
        line.through(Ring(streams, 2))
        assert line.done != whole(5)
