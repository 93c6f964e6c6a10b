"""What happens in a run, as it happens: one frozen type for each kind of event.

Times are seconds since 1970 by the driver's clock. A worker's clock may be another: where what it
says contradicts what the driver saw, the driver's order counts (`spent_within`). Events hold names,
numbers and locations as the caller gave them, never messages of errors, and so no secrets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from time import perf_counter, time
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that has happened."""

    time_s: float = field(default_factory=time)
    """When the driver saw it."""

    def as_json(self) -> dict[str, Any]:
        """The event as a line of `--events`: its kind, then its fields."""
        kind = re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
        return {"event": kind, **asdict(self)}


OnEvent = Callable[[Event], None]
"""Told of one event at a time, on any thread."""


def nobody(_event: Event) -> None:
    """Whoever is told where nobody listens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """A run has begun; nothing is planned yet."""

    output: str
    version: str
    """Of raymerge."""
    driver: str
    """Host and process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned(Event):
    """There is a plan."""

    digest: str
    tensors: int
    units: int
    shards: int
    bytes_read: int
    """What the plan reads, sweeps that are made again counted."""
    bytes_written: int
    engine: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseBegun(Event):
    """The driver has begun plan, claim, engine, survey, a sweep of it, merge or publish."""

    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEnded(Event):
    """And ended it, or failed in it."""

    phase: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitsResumed(Event):
    """Units of an earlier run were found whole."""

    units: int
    nbytes: int
    """What they take in the output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEvent(Event):
    """Something about a worker."""

    worker: str
    """`host:process`, as in receipts and the ledger."""
    node: str
    """Ray's id of its node; the host where there is no Ray."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJoined(WorkerEvent):
    """A worker is ready for units."""

    threads: int
    """Units that it runs at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDrained(WorkerEvent):
    """Its node is about to go: it gets no more units, and ends those that run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost(WorkerEvent):
    """A worker is no more."""

    why: str
    """`preempted`, which counts against nothing, `died`, `memory` or `broken`, its device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitEvent(WorkerEvent):
    """Something about a unit on a worker."""

    unit: int
    call: str
    """`merge`; `merge_trials` of a sweep; `count_high`, `count_low`, `count_ties` of a survey."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitBegun(UnitEvent):
    """A worker was given a unit. On Ray one more than run may wait its turn there."""

    tensor: str
    """The first of it; empty where nothing is left of a sweep's unit."""
    shard: str
    nbytes: int
    """Of the output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRedone(UnitEvent):
    """A unit was given out again: its worker was lost, or takes too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitEnded(UnitEvent):
    """A unit is done.

    What is counted is what the worker has moved since its last unit ended: where several units run
    there, bytes of one may stand with another. Their sum is exact.
    """

    began_s: float
    seconds: float
    """On the worker, without waiting its turn."""
    bytes_read: int
    bytes_written: int
    retries: int
    """Requests to storage that were made again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFailed(UnitEvent):
    """A unit was begun, or waited its turn, and was not done."""

    why: str
    """That of the worker's loss; `stopped`: the worker was told to end; `memory`: it did not fit
    and is tried in smaller tiles; else the name of the error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardDone(Event):
    """A shard is whole."""

    shard: str
    nbytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Published(Event):
    """The output is there: its index is written."""

    digest: str
    bytes_read: int
    bytes_written: int
    workers: int
    """The most that there were at once."""
    retries: int
    lost_workers: int
    redone_units: int
    resumed_units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnded(Event):
    """A trial of a sweep has its checkpoint, or has failed."""

    trial: str
    output: str
    digest: str
    """Of its plan; empty if it failed."""
    error: str | None
    """Name of the error's class, if it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """A run is over. One that was killed has no such event."""

    ok: bool
    error: str | None
    """Name of the error's class, if it failed."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Spent:
    """When a worker began a unit by its own clock, and how long it took."""

    began_s: float
    seconds: float


def spent_within(spent: Spent, given_s: float, ended_s: float) -> Spent:
    """What a worker says of a unit, inside the time in which the driver knows that it ran.

    Args:
        spent: By the worker's clock.
        given_s: When the driver gave it the unit.
        ended_s: When the driver had the result.
    """
    seconds = min(spent.seconds, max(0.0, ended_s - given_s))
    return Spent(min(max(spent.began_s, given_s), ended_s - seconds), seconds)


@contextmanager
def phase(on_event: OnEvent, name: str) -> Iterator[None]:
    """Tell of a phase of the driver's that is the block."""
    began = perf_counter()
    on_event(PhaseBegun(phase=name))
    try:
        yield
    finally:
        on_event(PhaseEnded(phase=name, seconds=round(perf_counter() - began, 6)))
