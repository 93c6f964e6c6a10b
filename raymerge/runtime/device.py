"""What a worker merges with: a device's kernels, and for each thread its way there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident, local

from raymerge.kernels.feed import DirectFeed, Feed
from raymerge.kernels.tile import Kernels
from raymerge.runtime.inputs import Arena


def load_kernels(device: str) -> Kernels:
    """The kernels of a device: numba's on the CPU, torch's on CUDA."""
    if device == "cpu":
        from raymerge.kernels.cpu import CpuKernels

        return CpuKernels()
    from raymerge.kernels.torch_kernels import TorchKernels

    return TorchKernels(device)


def load_feed(device: str, depth: int) -> Feed:
    """A thread's way to a device: a ring of `depth` tiles to CUDA, none to the CPU."""
    if device == "cpu":
        return DirectFeed()
    from raymerge.kernels.torch_ring import ring_of

    return ring_of(device, depth)


class Desk:
    """What a thread merges at."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        """Its way to the device."""
        self.arena = Arena(feed.memory)
        """Memory that is used for one tensor after another."""
        self.thread = 0
        """Who sat there last."""


class Desks:
    """As many desks as threads were ever at work at once.

    A plan counts memory for those, and Ray has more threads than are at work.

    Args:
        device: Where kernels run.
        depth: Of a ring to it, if there is one.
    """

    def __init__(self, device: str, depth: int) -> None:
        self._device = device
        self._depth = depth
        self._thread = local()
        self._lock = Lock()
        self._free: list[Desk] = []

    @contextmanager
    def seated(self) -> Iterator[None]:
        """While the calling thread has a desk: if it is free, the one whose memory it knows."""
        with self._lock:
            self._free.sort(key=lambda desk: desk.thread == get_ident())
            found = self._free.pop() if self._free else None
        desk = self._thread.desk = found or Desk(load_feed(self._device, self._depth))
        desk.thread = get_ident()
        try:
            yield
        finally:
            del self._thread.desk
            with self._lock:
                self._free.append(desk)

    @property
    def mine(self) -> Desk:
        """The calling thread's."""
        desk: Desk = self._thread.desk
        return desk

    def release(self) -> None:
        """Give back what is kept of the device's memory and not in use."""
        with self._lock:
            for desk in self._free:
                desk.feed.release()
