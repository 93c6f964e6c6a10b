"""A remote folder that is near: files of this machine, read as if over a network."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock

import raymerge
from raymerge.checkpoint.folder import Pin
from raymerge.errors import SourceError
from raymerge.plan.build import Plan
from raymerge.plan.graph import PlannedSource
from raymerge.plan.memory import project
from raymerge.plan.needs import merge_needs, survey_needs
from raymerge.plan.ranges import Range, ranges
from raymerge.runtime.destination import Destination
from raymerge.runtime.driver import MergeResult, execute
from raymerge.runtime.local import LocalEngine
from raymerge.runtime.settings import OnProgress, run_settings
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
        self.retries_each = self.retries = 0
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
            self.retries += self.retries_each
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
        self.retries_each = 0

    def __call__(self, source: PlannedSource, _access: Access) -> DistantFolder:
        folder = DistantFolder(
            Path(source.location), latency_s=self._latency_s, bytes_per_s=self._bytes_per_s
        )
        folder.on_fetch, folder.retries_each = self.on_fetch, self.retries_each
        return self.folders.setdefault(source.label, folder)

    @property
    def asked(self) -> list[tuple[str, str, int, int]]:
        """Source, file and range of every request."""
        return [(label, *one) for label, folder in self.folders.items() for one in folder.asked]

    @property
    def fetched_bytes(self) -> int:
        """Of all requests to all sources."""
        return sum(folder.fetched_bytes for folder in self.folders.values())


def remotely(plan: Plan, window_bytes: int | None = None, *, hold: bool = True) -> Plan:
    """The same plan of sources that are far away."""
    memory = project(
        plan.nodes,
        budget_bytes=plan.memory.budget_bytes,
        device="cpu",
        device_budget_bytes=None,
        threads=plan.memory.threads,
        tile_elements=plan.memory.budget.tile_elements,
        remote=True,
    )
    budget = replace(memory.budget, window_bytes=window_bytes or memory.budget.window_bytes)
    if not hold:
        budget = replace(budget, thread_bytes=0)
    return replace(plan, memory=replace(memory, budget=budget))


def planned(recipe: Path, tile: int | None = None, *, stats: bool = False) -> Plan:
    return raymerge.plan(
        recipe, engine="local", device="cpu", workers=2, tile_elements=tile, stats=stats
    )


def run(plan: Plan, out: Path, distance: Distance) -> MergeResult:
    def start(destination: Destination, report: OnProgress) -> LocalEngine:
        settings = run_settings(plan, destination.units_at, "cpu", open_source=distance)
        return LocalEngine(settings, threads=plan.memory.threads, on_progress=report)

    return execute(
        plan, str(out), start, overwrite=True, on_progress=lambda _: None, access=Access()
    )


def foreseen(plan: Plan) -> list[Range]:
    """Every request of a merge."""
    budget = plan.memory.budget
    each = [merge_needs(unit.nodes, budget) for unit in plan.units]
    for _ in range(3 if plan.surveyed else 0):
        each += [survey_needs(unit.nodes, budget) for unit in plan.units]
    return [one for needs in each for one in ranges(needs, budget.window_bytes)]


def requests(plan: Plan) -> Counter[tuple[str, str, int, int]]:
    labels = [source.label for source in plan.sources]
    return Counter((labels[r.source], r.file, r.start, r.stop) for r in foreseen(plan))
