"""The open files of a run, and how the bytes of any input come out of them."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from raymerge.checkpoint.header import TensorEntry
from raymerge.kernels.tile import Bytes
from raymerge.plan.graph import Derived, Input, PlannedSource, Read
from raymerge.plan.memory import Budget
from raymerge.storage.posix import PosixFolder, PosixReader

if TYPE_CHECKING:
    from raymerge.runtime.derived.merged import Workshop

AHEAD_BYTES = 2**23
"""How far ahead of the reads of a tensor the kernel is asked to fetch. One thread read a cold file
at 1.0 to 1.5 GB/s when it asked ahead, and at 0.5 to 0.7 when it left that to the kernel."""


class Filler(Protocol):
    """Gives the bytes of one input. Belongs to one thread."""

    def fill(self, buffer: Bytes, offset: int) -> int:
        """Fill the whole buffer with the tensor's bytes from byte `offset` on.

        Returns:
            Bytes read from storage.
        """

    def will_need(self, offset: int, nbytes: int) -> None:
        """Have the kernel fetch what these bytes, if the tensor has them, are made of."""


class Stored:
    """A tensor's bytes as they lie in a file."""

    def __init__(self, reader: PosixReader, entry: TensorEntry) -> None:
        self._reader = reader
        self._start = entry.start
        self._stop = entry.stop

    def fill(self, buffer: Bytes, offset: int) -> int:
        """See `Filler.fill`."""
        self._reader.read_into(buffer.data, self._start + offset)
        return buffer.nbytes

    def will_need(self, offset: int, nbytes: int) -> None:
        """See `Filler.will_need`."""
        start = self._start + offset
        nbytes = min(nbytes, self._stop - start)
        if nbytes > 0:
            self._reader.will_need(start, nbytes)


class Readers:
    """The open files of all sources; one set serves all threads of a process."""

    def __init__(self, sources: Sequence[PlannedSource], workshop: Workshop | None = None) -> None:
        self._sources = sources
        self.workshop = workshop
        """What stages inside the recipe are merged with; None if there are none."""
        self._open: dict[tuple[int, str], PosixReader] = {}
        self._lock = Lock()
        # Every file of every source stays open: three of 163 shards each are past a usual limit.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def __getitem__(self, read: Read) -> PosixReader:
        key = read.source, read.entry.file
        reader = self._open.get(key)
        if reader is None:
            source = self._sources[read.source]
            path = PosixFolder(source.location).path(read.entry.file)
            with self._lock:
                if key not in self._open:
                    pin = source.pins[read.entry.file]
                    self._open[key] = PosixReader(path, pin, source=source.label)
                reader = self._open[key]
        return reader

    def filler(self, one: Input, budget: Budget | None = None) -> Filler:
        """What fills buffers with the bytes of an input, for the calling thread.

        Args:
            one: The input.
            budget: See `derived_filler`.
        """
        if isinstance(one, Derived):
            from raymerge.runtime.derived import derived_filler

            return derived_filler(one, self, budget)
        return Stored(self[one], one.entry)

    def will_need(self, inputs: Sequence[Input]) -> None:
        """Have the kernel fetch the beginnings of these tensors while others are computed."""
        for one in inputs:
            for read in one.reads:
                Stored(self[read], read.entry).will_need(0, AHEAD_BYTES)

    def check_unchanged(self) -> None:
        """Raise SourceError if a file that was read is no longer the planned one."""
        for reader in list(self._open.values()):  # other threads open more meanwhile
            reader.check_unchanged()

    def close(self) -> None:
        """Close all files."""
        for reader in self._open.values():
            reader.close()
        self._open.clear()
