"""The Ray engine: one long-lived actor per GPU or slice of CPUs, scheduled by the driver.

    driver   queue of units --unit--> actor   `threads` units run; one more waits its turn
                   ^                          while the disk fetches its inputs
                   |   <--receipt, figures--
                   '-- units of a lost actor, for whichever is free

Ray itself restarts and retries nothing: its retry of a call waits for that very actor, for good if
the place is gone. Units are pure, so a unit run twice writes the same bytes at the same address.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from threading import current_thread, main_thread
from time import monotonic
from typing import Any

import ray
from ray import exceptions as failures
from ray._private import worker as ray_driver
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raymerge.errors import ClusterError, RaymergeError
from raymerge.plan.graph import Unit
from raymerge.runtime.engine import LOOK_S, Call
from raymerge.runtime.placement import Node, Place, asked, place
from raymerge.runtime.record import raymerge_version
from raymerge.runtime.remote import RemoteWorker, Report, versions
from raymerge.runtime.settings import OnProgress, RunSettings
from raymerge.storage.posix import PosixFolder, PosixReader
from raymerge.storage.urls import Scheme
from raymerge.storage.urls import source as find_source
from raymerge.units import format_bytes

_log = logging.getLogger(__name__)

ANNOUNCE_S = 10
"""Workers on a free cluster answer in 1 to 3 s; after this long the user is told of the wait."""
START_S = 120
"""Longest wait for a worker to start: Ray itself waits for free CPUs for ever, in silence."""
STOP_S = 3
"""Longest wait for workers to end the tile in hand, before they are killed."""
CONNECT_S = 5
"""Longest wait for a cluster's port. Ray would try for 122 s and then end the process."""
MAX_DEATHS = 3
"""Workers a unit may take with it before it is the suspect. Preempted nodes do not count."""
OBJECT_STORE_BYTES = 100_000_000
"""Near Ray's least: units and histograms pass through it, never tensors."""

_LOST = (
    failures.RayActorError,  # dead or unreachable
    failures.WorkerCrashedError,
    failures.NodeDiedError,
    failures.OutOfMemoryError,
    failures.ObjectLostError,  # its node died between the end of the call and our look at it
)


@dataclass(eq=False, slots=True)
class _Member:
    """A worker as the driver sees it."""

    place: Place
    threads: int
    actor: Any
    starting: Any
    report: Report | None = None
    running: dict[Any, Unit] = field(default_factory=dict)


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

    Raises:
        ClusterError: No cluster, no room on it, or a node with other code than this one.
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
    ) -> None:
        self.retries = 0
        self._settings = settings
        self._threads = threads
        self._on_progress = on_progress
        self._deaths: Counter[int] = Counter()
        self._members: list[_Member] = []
        self._connected = not ray.is_initialized()
        if self._connected:
            connect(address, workers=workers)
        try:
            ours = self._connected and address is None
            reserved = None if ours else memory_bytes
            places = place(_nodes(), settings.device, workers=workers, memory_bytes=reserved)
            self.workers = len(places)
            self._members = [self._hire(spot) for spot in places]
            self._await_start()
        except BaseException:
            self.close()
            raise

    def run(
        self,
        call: Call,
        units: Sequence[Unit],
        *args: Any,
        before: Callable[[Unit], None],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[Unit, Any]]:
        """See `Engine.run`."""
        left = deque(units)
        begun: set[int] = set()

        def begin(unit: Unit) -> None:
            if unit.number not in begun:
                begun.add(unit.number)
                before(unit)

        try:
            while left or any(member.running for member in self._members):
                self._hand_out(call, left, args, begin)
                landed = self._land(self._next(meanwhile), left)
                if landed is not None:
                    yield landed
        except BaseException:
            self._stop()
            raise
        self._check_sources()

    def close(self) -> None:
        """Stop the workers, and Ray if this engine started or joined it."""
        self._stop()
        if self._connected and ray.is_initialized():
            ray.shutdown()
            ray_driver._worker_logs_enabled = True  # noqa: SLF001 - see `connect`

    def _hire(self, spot: Place) -> _Member:
        """Have Ray start a worker; `starting` answers once it has."""
        threads = self._threads or spot.num_cpus
        actor = (
            ray.remote(RemoteWorker)
            .options(
                num_cpus=spot.num_cpus,
                num_gpus=spot.num_gpus,
                memory=spot.memory_bytes,
                max_restarts=0,
                max_task_retries=0,
                # The unit that waits its turn, and `stop`, need threads of their own.
                max_concurrency=threads + 2,
                # Soft: where its node is gone, a replacement may go anywhere.
                scheduling_strategy=NodeAffinitySchedulingStrategy(spot.node, soft=True),
            )
            .remote(threads)
        )
        starting = actor.start.remote(versions(), pickle.dumps(self._settings))
        return _Member(spot, threads, actor, starting)

    def _await_start(self) -> None:
        starting = [member.starting for member in self._members]
        _, pending = ray.wait(starting, num_returns=self.workers, timeout=ANNOUNCE_S)
        if pending:
            free = _free()
            text = "waiting for %d of %d Ray workers, %g s at most; free now: %s"
            _log.warning(text, len(pending), self.workers, START_S, free)
            _, pending = ray.wait(starting, num_returns=self.workers, timeout=START_S)
        if pending:
            raise ClusterError(
                f"{len(pending)} of {self.workers} Ray workers did not start within "
                f"{ANNOUNCE_S + START_S} s. Each asks for {asked(self._members[0].place)}, free "
                f"on the cluster: {_free()}. Wait for it, or lower --workers.",
                retryable=True,
            )
        for ref in starting:
            self._land(ref, deque())
        self.workers = len(self._members)

    def _hand_out(
        self,
        call: Call,
        left: deque[Unit],
        args: tuple[Any, ...],
        begin: Callable[[Unit], None],
    ) -> None:
        """Give units to the least busy until each has one more than it may run at once."""
        started = [member for member in self._members if member.report]
        while left and started:
            member = min(started, key=lambda member: len(member.running))
            if len(member.running) > member.threads:
                return
            begin(left[0])
            unit = left.popleft()
            member.running[member.actor.run.remote(call, unit, args)] = unit

    def _next(self, meanwhile: Callable[[], None]) -> Any:
        """The next call to end, of those that run and of workers that start."""
        refs = [ref for member in self._members for ref in member.running]
        refs += [member.starting for member in self._members if not member.report]
        give_up = monotonic() + START_S
        while True:
            ready, _ = ray.wait(refs, timeout=LOOK_S)
            if ready:
                return ready[0]
            meanwhile()
            started = any(member.report for member in self._members)
            if not started and monotonic() > give_up:
                raise ClusterError(
                    f"every Ray worker was lost and none came back within {START_S} s; free on the "
                    f"cluster: {_free()}. Run the same command again to go on.",
                    retryable=True,
                )

    def _land(self, ref: Any, left: deque[Unit]) -> tuple[Unit, Any] | None:
        """A unit's result; None where `ref` told of a worker that has started or was lost."""
        member = next(m for m in self._members if ref == m.starting or ref in m.running)
        unit = member.running.get(ref)
        try:
            answer = ray.get(ref)
        except failures.RayTaskError as failure:
            raise _translated(failure, member, unit) from failure
        except _LOST as failure:
            left.extendleft(reversed(self._replace(member, failure)))
            return None
        if unit is None:
            _check_versions(answer)
            member.report = answer
            return None
        del member.running[ref]
        result, moved = answer
        self._on_progress(moved)
        return unit, result

    def _replace(self, member: _Member, failure: Exception) -> list[Unit]:
        """Let a lost worker go and hire another; returns the units to run again."""
        self._members.remove(member)
        # One that is only out of reach would keep its GPU.
        ray.kill(member.actor)
        if member.report is None:
            if not self._members:
                raise ClusterError(f"no Ray worker could be started: {_line(failure)}")
            _log.warning("a Ray worker did not start: %s", _line(failure))
            return []
        where = f"{member.report.host} (process {member.report.pid})"
        _log.warning("lost the Ray worker on %s: %s", where, _line(failure))
        units = list(member.running.values())
        if not getattr(failure, "preempted", False):
            self._deaths.update(unit.number for unit in units)
        for unit in units:
            if self._deaths[unit.number] >= MAX_DEATHS:
                tensor = unit.nodes[0].slot.name
                raise ClusterError(
                    f"{MAX_DEATHS} workers died over the unit of {tensor}, the last one on {where}:"
                    f" {_line(failure)} If it ran out of memory, lower --memory or --workers.",
                    tensor=tensor,
                )
        self.retries += len(units)
        self._members.append(self._hire(member.place))
        return units

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

    def _stop(self) -> None:
        """End what is under way: after the tile in hand, or else at once."""
        members, self._members = self._members, []
        if not ray.is_initialized():
            return
        with suppress(failures.RayError):
            for member in members:
                member.actor.stop.remote()
            refs = [ref for member in members for ref in member.running]
            if refs:
                ray.wait(refs, num_returns=len(refs), timeout=STOP_S)
            for member in members:
                ray.kill(member.actor)


def connect(address: str | None, *, workers: int | None) -> None:
    """Start a small, silent Ray here, or join the cluster at `address`.

    Raises:
        ClusterError: There is no cluster, or it cannot be used from here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Else Ray hides the GPUs from workers that ask for none, and warns that it will stop doing so.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A stopped run drops calls unread; Ray would print the error of each.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # Ray prints lost workers to stdout, which is for data; the engine logs them itself.
    ray_driver._worker_logs_enabled = False  # noqa: SLF001 - no public switch in Ray 2.60
    previous = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            # More workers than CPUs are the user's choice here: both are counts of Ray's alone.
            num_cpus = max(len(os.sched_getaffinity(0)), workers or 0)
            ray.init(
                "local",
                num_cpus=num_cpus,
                include_dashboard=False,
                dashboard_host="127.0.0.1",
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            _knock(address)
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    # SystemExit: Ray gives up on a port that is no cluster's by a SIGTERM to its own process.
    except (OSError, RuntimeError, ValueError, failures.RayError, SystemExit) as error:
        what = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
        raise ClusterError(
            f"cannot {what}: {_line(error)} Check --address and `ray status` there, and that this "
            "machine is a node of it; `--engine local` needs no Ray.",
            retryable=True,
        ) from error
    finally:
        # Ray's handler would exit with a code of its own in place of the caller's.
        if callable(previous) and current_thread() is main_thread():
            signal.signal(signal.SIGTERM, previous)


def _knock(address: str) -> None:
    """Raise OSError or ValueError where no cluster can be, long before Ray would."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise ValueError(f"{address!r} is neither `auto` nor host:port.")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


def _check_versions(report: Report) -> None:
    skewed = [
        f"{name} {report.versions.get(name)} there, {version} here"
        for name, version in versions().items()
        if report.versions.get(name) != version
    ]
    if skewed:
        raise ClusterError(
            f"node {report.host} does not run this driver's code: {'; '.join(skewed)}. Install the "
            "same versions on every node."
        )


def _translated(failure: Any, member: _Member, unit: Unit | None) -> RaymergeError:
    """What a worker raised, as it raised it; anything unforeseen with its traceback."""
    if isinstance(failure.cause, RaymergeError):
        return failure.cause
    if unit is None:
        return ClusterError(
            f"a Ray worker could not start; raymerge {raymerge_version()} has to be installed on "
            f"every node.\n{failure}"
        )
    tensor = unit.nodes[0].slot.name
    host = member.report.host if member.report else "a node"
    return ClusterError(f"the worker on {host} failed at {tensor}.\n{failure}", tensor=tensor)


def _nodes() -> list[Node]:
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [
        Node(
            id=node["NodeID"],
            host=node["NodeManagerHostname"],
            num_cpus=int(node["Resources"].get("CPU", 0)),
            num_gpus=int(node["Resources"].get("GPU", 0)),
            memory_bytes=int(node["Resources"].get("memory", 0)),
        )
        for node in alive
    ]


def _free() -> str:
    free = ray.available_resources()
    memory = format_bytes(int(free.get("memory", 0)))
    return f"{free.get('GPU', 0):g} GPU, {free.get('CPU', 0):g} CPU, {memory}"


def _line(error: BaseException) -> str:
    """The gist of what Ray says over several lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line.split(" Some common causes")[0] for line in lines) or repr(error)
