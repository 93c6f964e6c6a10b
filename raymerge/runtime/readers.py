"""The open files of a run, and how the bytes of any input come out of them."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING, Protocol

from raymerge.checkpoint.header import TensorEntry
from raymerge.kernels.tile import Bytes
from raymerge.plan.graph import Derived, Input, PlannedSource, Read
from raymerge.plan.memory import Budget
from raymerge.plan.ranges import Need, ranges
from raymerge.runtime.fetching import Prefetch
from raymerge.runtime.stopping import LoosePool
from raymerge.storage import SourceFolder, open_folder
from raymerge.storage.posix import PosixFolder, PosixReader
from raymerge.storage.store import Access
from raymerge.storage.urls import Scheme
from raymerge.storage.urls import source as find_source

if TYPE_CHECKING:
    from raymerge.runtime.derived.merged import Workshop

AHEAD_BYTES = 2**23
"""How far ahead of the reads of a tensor the kernel is asked to fetch. One thread read a cold file
at 1.0 to 1.5 GB/s when it asked ahead, and at 0.5 to 0.7 when it left that to the kernel."""

COPIED_AT_ONCE = 4
"""Files on their way to this node at once; each fills a good part of a line by itself."""

_File = tuple[int, str]
"""A source's position and a file's name."""


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


class Fetched:
    """A tensor's bytes as they lie in a remote file."""

    def __init__(self, readers: Readers, read: Read) -> None:
        self._readers = readers
        self._read = read

    def fill(self, buffer: Bytes, offset: int) -> int:
        """See `Filler.fill`. What is fetched ahead is counted when it comes, not here."""
        entry = self._read.entry
        start = entry.start + offset
        where = self._read.source, entry.file
        if self._readers.ahead is not None:
            self._readers.ahead.read_into(buffer, *where, start)
            return 0
        buffer.data[:] = self._readers.fetch(*where, start, start + buffer.nbytes)
        return buffer.nbytes

    def will_need(self, offset: int, nbytes: int) -> None:
        """See `Filler.will_need`: a unit's needs are known before it begins."""


OpenSource = Callable[[PlannedSource, Access], SourceFolder]


def open_planned(source: PlannedSource, access: Access) -> SourceFolder:
    """A source where the plan has found it."""
    pins = {**source.pins, **source.side_pins}
    return open_folder(source.location, label=source.label, access=access, pins=pins)


def check_copies(sources: Iterable[PlannedSource], access: Access) -> None:
    """See to it, before hours of work, that what is copied to this node first finds room there.

    Raises:
        StorageError: The Hub's cache has too little; how much is needed and free is in the message.
    """
    on_hub = [one for one in sources if find_source(one.location).scheme is Scheme.HUB]
    if not on_hub or not access.cache:
        return
    from raymerge.storage.hub import HubFolder
    from raymerge.storage.hub_cache import check_room

    folders = [HubFolder(one.location, pins=one.pins) for one in on_hub]
    check_room(sum(f.uncached_bytes(one.pins) for f, one in zip(folders, on_hub, strict=True)))


class Readers:
    """The open files of all sources; one set serves all threads of a process.

    Args:
        sources: As planned; behind them may stand stages, of which nothing is stored.
        workshop: What stages inside the recipe are merged with; None if there are none.
        access: How storage is reached.
        open_source: Gives the folder of a source.
    """

    def __init__(
        self,
        sources: Sequence[PlannedSource],
        workshop: Workshop | None = None,
        access: Access | None = None,
        open_source: OpenSource = open_planned,
    ) -> None:
        self._sources = sources
        self.workshop = workshop
        """See above."""
        self.ahead: Prefetch | None = None
        """What remote files are read through; see `during`."""
        self._access = access or Access()
        self._open_source = open_source
        self._folders: dict[int, SourceFolder] = {}
        self._open: dict[_File, PosixReader] = {}
        self._copies: dict[_File, Future[Path]] = {}
        self._copiers = LoosePool(COPIED_AT_ONCE)
        self._lock = Lock()
        # Every file of every source stays open: three of 163 shards each are past a usual limit.
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def filler(self, one: Input, budget: Budget | None = None) -> Filler:
        """What fills buffers with the bytes of an input, for the calling thread.

        Args:
            one: The input.
            budget: See `derived_filler`.
        """
        if isinstance(one, Derived):
            from raymerge.runtime.derived import derived_filler

            return derived_filler(one, self, budget)
        return self._stored(one) or Fetched(self, one)

    def fetch(self, source: int, file: str, start: int, stop: int) -> memoryview:
        """Bytes of a remote file."""
        folder = self._folder(source)
        assert not isinstance(folder, PosixFolder), folder.location
        return folder.fetch(file, start, stop, self._sources[source].pins[file])

    @contextmanager
    def during(
        self, needs: Iterable[Need], budget: Budget, *, stop: Event, on_read: Callable[[int], None]
    ) -> Iterator[Readers]:
        """These readers while a unit is in progress: what it needs of remote files is fetched.

        Args:
            needs: In the order in which the unit reads.
            budget: Has the window.
            stop: Ends what waits for a file.
            on_read: Told of bytes fetched, from any thread.
        """
        if not budget.window_bytes:
            yield self
            return
        planned = ranges(
            (need for need in needs if self._is_remote(need.source)), budget.window_bytes
        )
        unit = copy(self)
        with Prefetch(
            planned, self.fetch, window_bytes=budget.window_bytes, stop=stop, on_read=on_read
        ) as unit.ahead:
            yield unit

    def reach(self, node: int) -> None:
        """Say that the tensor at this position of the unit is begun."""
        if self.ahead is not None:
            self.ahead.reach(node)

    def will_need(self, inputs: Sequence[Input]) -> None:
        """Have the kernel fetch the beginnings of these tensors while others are computed.

        A file that is copied to this node first begins to be.
        """
        for one in inputs:
            for read in one.reads:
                folder = self._folder(read.source)
                copied = None if isinstance(folder, PosixFolder) else folder.copied
                if copied and not self._copy(read.source, read.file).done():
                    continue
                if stored := self._stored(read):
                    stored.will_need(0, AHEAD_BYTES)

    def check_unchanged(self) -> None:
        """Raise SourceError if a file that was read is no longer the planned one.

        Remote ones are looked at with every range.
        """
        for reader in list(self._open.values()):  # other threads open more meanwhile
            reader.check_unchanged()

    @property
    def retries(self) -> int:
        """Requests for remote files that were made again so far."""
        folders = list(self._folders.values())
        return sum(folder.retries for folder in folders if not isinstance(folder, PosixFolder))

    def close(self) -> None:
        """Close all files."""
        self._copiers.close()
        for reader in self._open.values():
            reader.close()
        self._open.clear()

    def _is_remote(self, source: int) -> bool:
        folder = self._folder(source)
        return not isinstance(folder, PosixFolder) and folder.copied is None

    def _copy(self, source: int, file: str) -> Future[Path]:
        """The copy on this node of a source's file, begun by whoever asks first."""
        folder, pin = self._folder(source), self._sources[source].pins[file]
        assert not isinstance(folder, PosixFolder), folder.location
        assert folder.copied is not None, folder.location
        with self._lock:
            if (source, file) not in self._copies:
                self._copies[source, file] = self._copiers.submit(folder.copied, file, pin)
            return self._copies[source, file]

    def _folder(self, source: int) -> SourceFolder:
        folder = self._folders.get(source)
        if folder is None:
            with self._lock:
                if source not in self._folders:
                    opened = self._open_source(self._sources[source], self._access)
                    self._folders[source] = opened
                folder = self._folders[source]
        return folder

    def _stored(self, read: Read) -> Stored | None:
        """What fills buffers from a local file; None where it is not one."""
        key = read.source, read.entry.file
        reader = self._open.get(key)
        if reader is None:
            folder, source = self._folder(read.source), self._sources[read.source]
            if isinstance(folder, PosixFolder):
                path, pin = folder.path(read.file), source.pins[read.file]
            elif folder.copied is not None:
                path = self._copy(*key).result()
                # Its content was checked as it came; from here on it is a file like any other.
                pin = PosixFolder(path.parent).pin(path.name)
            else:
                return None
            with self._lock:
                if key not in self._open:
                    self._open[key] = PosixReader(path, pin, source=source.label)
                reader = self._open[key]
        return Stored(reader, read.entry)
