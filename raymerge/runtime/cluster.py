"""The Ray engine: long-lived actors, one per GPU or slice of CPUs, scheduled by the driver.

    driver   schedule --unit--> actor   `threads` units run; one more waits its turn
                ^               |       while the disk fetches its inputs
                |<--receipt-----'
                '-- units of a lost actor, for whichever is free

`schedule` decides who runs what, `crew` hires and loses workers, `ray_cluster` is what they ask of
Ray. Units are pure, so a unit run twice writes the same bytes at the same address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any, Generic

from raymerge.errors import ClusterError, RaymergeError
from raymerge.plan.graph import Unit
from raymerge.plan.sweep_unit import SweepUnit
from raymerge.plan.units import has_free_step
from raymerge.runtime import ray_cluster
from raymerge.runtime.cluster_events import ClusterEvents
from raymerge.runtime.crew import Crew, Member
from raymerge.runtime.engine import LOOK_S, Call, WorkUnit
from raymerge.runtime.events import OnEvent, nobody
from raymerge.runtime.losses import BrokenDeviceError, OutOfRoomError, WorkerLostError
from raymerge.runtime.placement import Hiring
from raymerge.runtime.schedule import MAX_FAILURES, Loss, Schedule
from raymerge.runtime.settings import OnProgress, RunSettings
from raymerge.runtime.stopping import StoppedError
from raymerge.storage.posix import PosixFolder, PosixReader
from raymerge.storage.urls import Scheme, destination
from raymerge.storage.urls import source as find_source


class ClusterEngine:
    """Runs units on the workers of a Ray cluster, its own or one that is there.

    Args:
        settings: What every worker has to know.
        workers: Worker processes; None takes one per GPU, on CPUs one per node.
        threads: Units in progress at once in a worker, as the plan divided its memory; None takes
            one per CPU of the worker.
        address: `auto` or host:port of a cluster; None starts one here, until `close`. A process
            that uses Ray already stays with the cluster it has.
        memory_bytes: What a worker reserves on a cluster that is not ours; None reserves nothing.
        on_progress: Told of the bytes moved whenever a unit lands.
        hiring: Which workers are wanted.
        on_event: Told of workers and their units.

    Raises:
        ClusterError: No cluster, no room on it, or a node with other code than this one.
        RaymergeError: A node does not see what the driver sees.
    """

    name = "ray"

    def __init__(
        self,
        settings: RunSettings,
        *,
        workers: int | None,
        threads: int | None,
        address: str | None,
        memory_bytes: int | None,
        on_progress: OnProgress,
        hiring: Hiring | None = None,
        on_event: OnEvent = nobody,
    ) -> None:
        self.redone_units = 0
        self._settings = settings = settings.for_other_nodes()
        self._on_progress = on_progress
        self._events = ClusterEvents(on_event)
        self._hiring = hiring or Hiring()
        self._connected = not ray_cluster.is_connected()
        if self._connected:
            ray_cluster.connect(address, workers=workers)
        self.crew = Crew(
            settings,
            workers=workers,
            threads=threads,
            memory_bytes=None if ray_cluster.is_own() else memory_bytes,
            hiring=self._hiring,
        )
        """The workers."""
        try:
            self.crew.start()
        except BaseException:
            self.close()
            raise

    @property
    def workers(self) -> int:
        """See `Engine.workers`: the most that there were at once."""
        return self.crew.most

    @property
    def lost_workers(self) -> int:
        """See `Engine.lost_workers`."""
        return self.crew.lost

    def run(
        self,
        call: Call,
        units: Sequence[WorkUnit],
        *args: Any,
        before: Callable[[WorkUnit], WorkUnit | None],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[WorkUnit, Any]]:
        """See `Engine.run`."""
        writes = call in {"merge", "merge_trials"}
        copies = writes and all(map(_bears_copies, self._settings.places))
        work = _Work(self.crew, call, units, args, copies=copies, events=self._events)
        try:
            for unit, (result, moved, _) in work.results(before, meanwhile):
                self._on_progress(moved)
                yield unit, result
        except BaseException:
            self.crew.stop(work.calls)
            raise
        finally:
            self.redone_units += work.schedule.redone
        self._check_sources()

    def close(self) -> None:
        """Stop the workers, and Ray if this engine started or joined it."""
        self.crew.close()
        if self._connected:
            ray_cluster.disconnect()

    def _check_sources(self) -> None:
        """Raise SourceError if a source is not the planned one any more, whoever has read it."""
        for source in self._settings.sources:
            if not source.pins:
                continue  # a stage, of which nothing is stored
            where = find_source(source.location)
            if where.scheme is not Scheme.FILE:
                continue  # whatever comes from elsewhere is checked as it comes
            folder = PosixFolder(where.path)
            for name, pin in source.pins.items():
                PosixReader(folder.path(name), pin, source=source.label).close()


class _Work(Generic[WorkUnit]):
    """One call of `run`: what has been given to whom."""

    def __init__(
        self,
        crew: Crew,
        call: Call,
        units: Sequence[WorkUnit],
        args: tuple[Any, ...],
        *,
        copies: bool,
        events: ClusterEvents,
    ) -> None:
        self.calls: dict[Any, tuple[Member, WorkUnit]] = {}
        """What is under way."""
        self.schedule = Schedule(
            {unit.number: unit.nbytes for unit in units},
            copies=copies,
            bound=[unit.number for unit in units if crew.is_mixed and _is_free(unit)],
        )
        self._crew = crew
        self._events = events
        self._call = call
        self._args = args
        self._units: dict[int, WorkUnit] = {unit.number: unit for unit in units}
        self._begun: set[int] = set()
        self._deserted_since: float | None = None
        for member in crew.started:
            self._join(member)

    def results(
        self, before: Callable[[WorkUnit], WorkUnit | None], meanwhile: Callable[[], None]
    ) -> Iterator[tuple[WorkUnit, Any]]:
        """Hand out units and give what comes back, until all have landed."""
        while not self.schedule.done:
            for order in self.schedule.orders(monotonic()):
                unit = self._units[order.unit]
                if order.unit not in self._begun:
                    self._begun.add(order.unit)
                    unit = self._units[order.unit] = before(unit) or unit
                member = self._crew.members[order.worker]
                ref = member.actor.run.remote(self._call, unit, self._args, order.shrink)
                self.calls[ref] = member, unit
                self._events.of(member).given(unit, self._call, again=order.again)
            ended = ray_cluster.ended([*self.calls, *self._crew.starting], LOOK_S)
            if not ended:
                meanwhile()
            for ref in ended:
                yield from self._take(ref)
            if self._crew.is_due:
                self._look()
        yield from self._take_late()

    def _take(self, ref: Any) -> Iterator[tuple[WorkUnit, Any]]:
        """What a call that has ended gave, if it is the result of a unit."""
        if ref in self._crew.starting:
            if member := self._crew.settle(ref):
                self._join(member)
            return
        if ref not in self.calls:
            return  # its worker was lost meanwhile, as another call of it has told
        member, unit = self.calls.pop(ref)
        worker, now = member.number, monotonic()
        try:
            answer = ray_cluster.answer(ref)
        except StoppedError:
            self._events.of(member).failed(unit, self._call, "stopped")
            self.schedule.give_back(worker, unit.number, now)
        except OutOfRoomError as error:
            self._events.of(member).failed(unit, self._call, "memory")
            self.schedule.cramp(worker, unit.number, now)
            self._check_given_up(error)
        except BrokenDeviceError as error:
            self.calls[ref] = member, unit
            self._leave(member, Loss.BROKEN)
            self._crew.quarantine(member, error)
            self._check_given_up(error)
        except WorkerLostError as lost:
            self.calls[ref] = member, unit
            self._leave(member, lost.why)
            self._crew.lose(member, lost)
            self._check_given_up(lost)
        except ClusterError as error:
            tensor = _first(unit)
            raise ClusterError(
                f"the worker on {member.where} failed at {tensor}.\n{error}", tensor=tensor
            ) from error
        else:
            # A copy that lands later counts too: what is stored is what was written last.
            self._end(member, unit, answer)
            self.schedule.land(worker, unit.number, now)
            yield unit, answer

    def _join(self, member: Member) -> None:
        self.schedule.join(
            member.number,
            member.place.node,
            member.threads,
            takes_bound=member.place.device == self._crew.device,
        )
        self._events.joined(member)

    def _end(self, member: Member, unit: WorkUnit, answer: Any) -> None:
        _, moved, spent = answer
        self._events.of(member).ended(unit, self._call, moved, spent)

    def _leave(self, member: Member, why: Loss) -> None:
        self.schedule.leave(member.number, why)
        mine = [ref for ref, (other, _) in self.calls.items() if other is member]
        units = [self.calls.pop(ref)[1] for ref in mine]
        self._events.left(member, why, self._call, units)

    def _check_given_up(self, error: Exception) -> None:
        """Raise if a unit has failed too often."""
        if not self.schedule.given_up:
            return
        tensor = _first(self._units[self.schedule.given_up[0]])
        raise ClusterError(
            f"at least {MAX_FAILURES} workers died over the unit of {tensor} or had no room for "
            f"it, at last alone with it and in smaller tiles: {error} If it ran out of memory, "
            "lower --memory or --workers.",
            tensor=tensor,
        ) from error

    def _look(self) -> None:
        """See which nodes have come and which are about to go."""
        for worker in self.schedule.drain(self._crew.look()):
            self._crew.members[worker].actor.hand_back.remote()
            self._events.of(self._crew.members[worker]).drained()
        for member in self._crew.started:
            if self.schedule.is_idle_and_going(member.number):
                self._leave(member, Loss.PREEMPTED)
                self._crew.dismiss(member)
        if self.schedule.is_staffed:
            self._deserted_since = None
        elif self._deserted_since is None or self._crew.is_busy:
            self._deserted_since = monotonic()
        elif monotonic() > self._deserted_since + self._crew.wait_s:
            raise self._crew.missing()

    def _take_late(self) -> Iterator[tuple[WorkUnit, Any]]:
        """End whoever still has a copy of what has landed, and take what they bring."""
        if not self.calls:
            return
        for ref in self._crew.stop(self.calls):
            try:
                answer = ray_cluster.answer(ref)
            except RaymergeError:
                continue  # whatever became of it, the unit has landed
            self._end(*self.calls[ref], answer)
            yield self.calls[ref][1], answer


def _first(unit: Unit | SweepUnit) -> str | None:
    """The tensor that a unit is called by, if anything is left of it."""
    return unit.nodes[0].slot.name if unit.nodes else None


def _is_free(unit: Unit | SweepUnit) -> bool:
    """Whether a unit stays on one kind of device: a free method's."""
    return any(map(has_free_step, unit.units if isinstance(unit, SweepUnit) else (unit,)))


def _bears_copies(units_at: str) -> bool:
    """Whether a unit may be written by two workers at once, where units are written.

    In a file both write the same bytes at the same address, and it has its length before. In an
    object store either upload is seen whole, and the later one counts. On the Hub a unit waits on
    the disk of its node under one name.
    """
    return destination(units_at).scheme is not Scheme.HUB
