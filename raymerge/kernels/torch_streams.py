"""The three streams of a ring: to the device, on it, and back; and memory it can copy from.

Copies and kernels of one stream run one after another, those of different streams side by side. A
mark is a place in a stream that another stream, or a thread, can wait for.
"""

from __future__ import annotations

import mmap
import weakref
from enum import Enum
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from raymerge.kernels.feed import unpinned
from raymerge.kernels.tile import Bytes

OUT_OF_MEMORY = 2
"""`cudaErrorMemoryAllocation`."""


class Stream(Enum):
    """Which."""

    IN = "in"
    COMPUTE = "compute"
    OUT = "out"


Mark = Any
"""A place in a stream."""


class Streams(Protocol):
    """The streams of one thread on one device."""

    def memory(self, nbytes: int) -> Bytes:
        """Host memory that copies can go on from and to while threads do something else."""
        ...

    def compute(self) -> None:
        """Have whatever the calling thread does with torch go to stream `COMPUTE` from now on."""

    def send(self, source: Tensor) -> Tensor:
        """The device's copy of host memory, which stream `IN` makes."""
        ...

    def bring(self, source: Tensor, target: Tensor) -> None:
        """Have stream `OUT` copy what lies on the device to host memory."""

    def mark(self, stream: Stream) -> Mark:
        """Mark where a stream is now."""

    def follow(self, stream: Stream, mark: Mark) -> None:
        """Have a stream do nothing more before a mark of another is reached."""

    def wait(self, mark: Mark) -> None:
        """Return once a mark is reached."""

    def drain(self) -> None:
        """Return once all streams have nothing left to do."""

    def release(self) -> None:
        """Give back memory of the device that torch keeps for later."""


class HostStreams:
    """Streams of torch's own device, the CPU: everything is done when it is asked for."""

    def memory(self, nbytes: int) -> Bytes:
        """See `Streams.memory`: any memory will do."""
        return unpinned(nbytes)

    def compute(self) -> None:
        """See `Streams.compute`."""

    def send(self, source: Tensor) -> Tensor:
        """See `Streams.send`."""
        return source.clone()

    def bring(self, source: Tensor, target: Tensor) -> None:
        """See `Streams.bring`."""
        target.copy_(source)

    def mark(self, stream: Stream) -> Mark:
        """See `Streams.mark`."""

    def follow(self, stream: Stream, mark: Mark) -> None:
        """See `Streams.follow`."""

    def wait(self, mark: Mark) -> None:
        """See `Streams.wait`."""

    def drain(self) -> None:
        """See `Streams.drain`."""

    def release(self) -> None:
        """See `Streams.release`."""


class CudaStreams:
    """Streams of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._streams: dict[Stream, Any] = {
            stream: torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            for stream in Stream
        }

    def memory(self, nbytes: int) -> Bytes:
        """See `Streams.memory`."""
        return pinned(nbytes)

    def compute(self) -> None:
        """See `Streams.compute`."""
        torch.cuda.set_stream(self._streams[Stream.COMPUTE])

    def send(self, source: Tensor) -> Tensor:
        """See `Streams.send`."""
        with torch.cuda.stream(self._streams[Stream.IN]):
            return source.to(self._device, non_blocking=True)

    def bring(self, source: Tensor, target: Tensor) -> None:
        """See `Streams.bring`."""
        with torch.cuda.stream(self._streams[Stream.OUT]):
            target.copy_(source, non_blocking=True)

    def mark(self, stream: Stream) -> Mark:
        """See `Streams.mark`."""
        # A thread that waits sleeps; else it would take a core from those that read and hash.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._streams[stream])
        return event

    def follow(self, stream: Stream, mark: Mark) -> None:
        """See `Streams.follow`."""
        self._streams[stream].wait_event(mark)

    def wait(self, mark: Mark) -> None:
        """See `Streams.wait`."""
        mark.synchronize()

    def drain(self) -> None:
        """See `Streams.drain`."""
        for stream in self._streams.values():
            stream.synchronize()

    def release(self) -> None:
        """See `Streams.release`."""
        torch.cuda.empty_cache()


def streams_of(device: str) -> Streams:
    """The streams of a device that torch knows by this name."""
    found = torch.device(device)
    return HostStreams() if found.type == "cpu" else CudaStreams(found)


def pinned(nbytes: int) -> Bytes:
    """Host memory whose pages stay in place: exactly so much, given back with its last view.

    torch's own pinned memory comes in powers of two, and no budget could be kept to the byte.

    Raises:
        MemoryError: There is not that much.
        RuntimeError: The system pins nothing; nothing slower is done instead.
    """
    pages = mmap.mmap(-1, max(nbytes, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = np.frombuffer(pages, np.uint8)
    address = memory.__array_interface__["data"][0]
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    found = int(runtime.cudaHostRegister(address, memory.nbytes, 0))
    if found == OUT_OF_MEMORY:
        raise MemoryError(f"cannot pin {nbytes} bytes of host memory for the device")
    if found:
        why = torch.cuda.CudaError(found)
        raise RuntimeError(f"CUDA error: cannot pin {nbytes} bytes of host memory: {why}")
    # Before its pages go, for the array's own memory outlives its weak references.
    weakref.finalize(memory, runtime.cudaHostUnregister, address).atexit = False
    return memory
