"""A line to storage that carries so many bytes a second, for all threads of a process together."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from raymerge.storage.posix import PosixFolder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from raymerge.checkpoint.folder import Pin
    from raymerge.plan.graph import PlannedSource
    from raymerge.storage.store import Access


@dataclass(slots=True)
class Line:
    """Opens sources on this machine as if they lay behind it. Every process has one of its own."""

    bytes_per_s: float
    free_at: float = 0.0
    lock: Any = field(default_factory=Lock)

    def __getstate__(self) -> float:
        return self.bytes_per_s

    def __setstate__(self, bytes_per_s: float) -> None:
        self.bytes_per_s, self.free_at, self.lock = bytes_per_s, 0.0, Lock()

    def __call__(self, source: PlannedSource, _access: Access) -> LineFolder:
        """A source's folder."""
        return LineFolder(Path(source.location), self)

    def carry(self, nbytes: int) -> None:
        """Return once so many bytes have come, behind whatever was asked for before."""
        with self.lock:
            self.free_at = max(self.free_at, time.monotonic()) + nbytes / self.bytes_per_s
            there = self.free_at
        time.sleep(max(0.0, there - time.monotonic()))


class LineFolder:
    """A `RemoteFolder` of files behind a line."""

    retries = 0
    copied = None

    def __init__(self, path: Path, line: Line) -> None:
        self._folder = PosixFolder(path)
        self._line = line

    @property
    def location(self) -> str:
        """Where the files are."""
        return self._folder.location

    def sizes(self) -> Mapping[str, int]:
        """See `Folder`."""
        return self._folder.sizes()

    def read(self, name: str, start: int, stop: int) -> bytes:
        """See `Folder`."""
        return self._folder.read(name, start, stop)

    def pin(self, name: str) -> Pin:
        """See `Folder`."""
        return self._folder.pin(name)

    def fetch(self, name: str, start: int, stop: int, pin: Pin) -> memoryview:  # noqa: ARG002
        """See `RemoteFolder`."""
        self._line.carry(stop - start)
        return memoryview(self._folder.read(name, start, stop))
