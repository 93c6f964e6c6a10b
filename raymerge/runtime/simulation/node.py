"""One node of a simulation: its units in progress, and what has gone over its line."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

from raymerge.runtime.simulation.demands import Demand
from raymerge.runtime.simulation.fleet import Fleet
from raymerge.runtime.simulation.sharing import speeds

DONE = 1e-9
"""Less of a demand than this is left over by rounding."""


@dataclass(eq=False, slots=True)
class Running:
    """A unit in progress."""

    worker: int
    unit: int
    demands: deque[Demand]
    left: float = 1.0
    """Of the first demand."""
    speed: float = 0.0
    """Of it in a second."""


@dataclass(eq=False, slots=True)
class Site:
    """A node as of `now`."""

    fleet: Fleet
    running: list[Running] = field(default_factory=list)
    now: float = 0.0
    next_s: float = inf
    """When a demand will be met, if nothing else begins before."""
    read_bytes: float = 0.0
    write_bytes: float = 0.0
    cores: dict[int, int] = field(default_factory=dict)
    """What merges at once in each of its workers."""
    merge_s: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    """Of what merges in each of its workers."""

    def begin(self, worker: int, unit: int, demands: Iterable[Demand]) -> None:
        """Take a unit in; `share` is due."""
        self.running.append(Running(worker, unit, deque(demands)))

    def move(self, now: float) -> None:
        """Let time pass."""
        passed, self.now = now - self.now, now
        for one in self.running:
            part = min(one.left, one.speed * passed)
            demand = one.demands[0]
            self.read_bytes += part * demand.read_bytes
            self.write_bytes += part * demand.write_bytes
            self.merge_s[one.worker] += part * demand.merge_s
            one.left -= part

    def take_ended(self) -> list[Running]:
        """Go on to the next demand of each unit; returns those that have none. `share` is due."""
        for one in self.running:
            if one.left <= DONE:
                one.demands.popleft()
                one.left = 1.0
        ended = [one for one in self.running if not one.demands]
        self.running = [one for one in self.running if one.demands]
        return ended

    def stop(self) -> None:
        """Drop what is in progress."""
        self.running = []
        self.share()

    def share(self) -> None:
        """Share lines and devices among the units in progress."""
        asked = [(one.worker, one.demands[0]) for one in self.running]
        for one, speed in zip(self.running, speeds(asked, self.fleet, self.cores), strict=True):
            one.speed = speed
        self.next_s = min((self.now + one.left / one.speed for one in self.running), default=inf)
