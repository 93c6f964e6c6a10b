"""Streams that copy as late as they may: who does not wait for a copy finds what was there before.

Kernels run where they are called, so a stream `compute` is never behind.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from threading import RLock

import numpy as np
import torch
from torch import Tensor

from raymerge.kernels.tile import Bytes
from raymerge.kernels.torch_streams import Stream

STALE = 0xAA
Place = tuple[Stream, int]
"""A stream, and how many of its copies lie before."""


class LateStreams:
    """See `Streams`. `left` copies were asked for and not made."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._waiting: dict[Stream, deque[Callable[[], object]]] = {s: deque() for s in Stream}
        self._done = dict.fromkeys(Stream, 0)
        self.released = 0

    @property
    def left(self) -> int:
        return sum(map(len, self._waiting.values()))

    def memory(self, nbytes: int) -> Bytes:
        return np.full(nbytes, STALE, np.uint8)

    def compute(self) -> None:
        pass

    def send(self, source: Tensor) -> Tensor:
        target = torch.full_like(source, STALE)
        self._later(Stream.IN, lambda: target.copy_(source))
        return target

    def bring(self, source: Tensor, target: Tensor) -> None:
        kept = weakref.ref(source)

        def copy() -> None:
            found = kept()
            # Memory of the device that nobody keeps is soon another's.
            target.copy_(torch.full_like(target, STALE) if found is None else found)

        self._later(Stream.OUT, copy)

    def mark(self, stream: Stream) -> Place:
        with self._lock:
            return stream, self._done[stream] + len(self._waiting[stream])

    def follow(self, stream: Stream, mark: Place) -> None:
        if stream is Stream.COMPUTE:
            self.wait(mark)
        else:
            self._later(stream, lambda: self.wait(mark))

    def wait(self, mark: Place) -> None:
        stream, number = mark
        with self._lock:
            while self._done[stream] < number:
                self._waiting[stream].popleft()()
                self._done[stream] += 1

    def drain(self) -> None:
        for stream in Stream:
            self.wait(self.mark(stream))

    def release(self) -> None:
        self.released += 1

    def _later(self, stream: Stream, copy: Callable[[], object]) -> None:
        with self._lock:
            self._waiting[stream].append(copy)
