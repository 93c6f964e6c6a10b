"""A remote folder that is near: files of this machine, read as if over a network."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock

from raymerge.checkpoint.folder import Pin
from raymerge.errors import SourceError
from raymerge.plan.graph import PlannedSource
from raymerge.storage.posix import PosixFolder
from raymerge.storage.store import Access

Asked = tuple[str, int, int]
"""File and half-open range of a request."""


class DistantFolder:
    """A `RemoteFolder`: every request takes a journey, and those on their way pass each other.

    Args:
        path: The folder.
        latency_s: Of a request; each takes between this and a half more.
        bytes_per_s: Of a connection.
    """

    def __init__(self, path: Path, *, latency_s: float = 0.0, bytes_per_s: float = 1e12) -> None:
        self._folder = PosixFolder(path)
        self._latency_s = latency_s
        self._bytes_per_s = bytes_per_s
        self._delays = random.Random(0)
        self._lock = Lock()
        self.asked: list[Asked] = []
        self.on_its_way = self.most_on_its_way = 0
        self.on_fetch: Callable[[Asked], None] = lambda _: None
        """Called before a request is answered; what it raises is the answer."""
        self.retries = 0
        self.copied = None

    @property
    def location(self) -> str:
        return f"distant://{self._folder.location}"

    def sizes(self) -> Mapping[str, int]:
        return self._folder.sizes()

    def read(self, name: str, start: int, stop: int) -> bytes:
        return self._folder.read(name, start, stop)

    def pin(self, name: str) -> Pin:
        return self._folder.pin(name)

    def fetch(self, name: str, start: int, stop: int, pin: Pin) -> memoryview:
        asked = name, start, stop
        with self._lock:
            self.asked.append(asked)
            self.on_its_way += 1
            self.most_on_its_way = max(self.most_on_its_way, self.on_its_way)
            delay_s = self._latency_s * (1 + self._delays.random() / 2)
        try:
            self.on_fetch(asked)
            time.sleep(delay_s + (stop - start) / self._bytes_per_s)
            if self._folder.pin(name) != pin:
                raise SourceError(f"{self.location}: {name} changed since it was planned")
            return memoryview(self._folder.read(name, start, stop))
        finally:
            with self._lock:
                self.on_its_way -= 1

    @property
    def fetched_bytes(self) -> int:
        """Of all requests."""
        return sum(stop - start for _, start, stop in self.asked)


class Distance:
    """Opens sources as `DistantFolder`s, and keeps them to be looked at."""

    def __init__(self, *, latency_s: float = 0.0, bytes_per_s: float = 1e12) -> None:
        self._latency_s = latency_s
        self._bytes_per_s = bytes_per_s
        self.folders: dict[str, DistantFolder] = {}
        self.on_fetch: Callable[[Asked], None] = lambda _: None

    def __call__(self, source: PlannedSource, _access: Access) -> DistantFolder:
        folder = DistantFolder(
            Path(source.location), latency_s=self._latency_s, bytes_per_s=self._bytes_per_s
        )
        folder.on_fetch = self.on_fetch
        return self.folders.setdefault(source.label, folder)

    @property
    def asked(self) -> list[tuple[str, str, int, int]]:
        """Source, file and range of every request."""
        return [(label, *one) for label, folder in self.folders.items() for one in folder.asked]

    @property
    def fetched_bytes(self) -> int:
        """Of all requests to all sources."""
        return sum(folder.fetched_bytes for folder in self.folders.values())
