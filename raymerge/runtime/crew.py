"""The workers of a run: who is hired where, who has started, who was lost."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from raymerge.errors import ClusterError, RaymergeError
from raymerge.plan.memory import LARGEST_TILE
from raymerge.runtime import autoscaler, ray_cluster
from raymerge.runtime.engine import LOOK_S
from raymerge.runtime.losses import WorkerLostError
from raymerge.runtime.placement import (
    Hiring,
    Node,
    Place,
    asked,
    check_room,
    matches,
    one_worker,
    spread,
)
from raymerge.runtime.remote import Report, versions
from raymerge.runtime.schedule import Loss
from raymerge.runtime.settings import RunSettings

_log = logging.getLogger(__name__)

ANNOUNCE_S = 10.0
"""Workers on a free cluster answer in 1 to 3 s; after this long the user is told of the wait, and
nobody waits any longer for others than the first one."""
STOP_S = 3.0
"""Longest wait for workers to end the tile in hand, before they are killed."""
MAX_FALSE_STARTS = 3
"""Workers of a node that may die before they have started: then it is left out."""


@dataclass(eq=False, slots=True)
class Member:
    """A worker as the driver sees it."""

    number: int
    place: Place
    threads: int
    actor: Any
    starting: Any
    report: Report | None = None

    @property
    def where(self) -> str:
        """What messages call it."""
        assert self.report is not None, self.place
        return f"{self.report.host} (process {self.report.pid})"


class Crew:
    """Workers on a cluster that this process is connected to.

    Args:
        settings: What every worker has to know.
        workers: How many are wanted; None takes one per GPU, on CPUs one per node.
        threads: Units in progress at once in each; None takes one per CPU of it.
        memory_bytes: What each reserves; None reserves nothing.
        hiring: What else they have to be like.
    """

    def __init__(
        self,
        settings: RunSettings,
        *,
        workers: int | None,
        threads: int | None,
        memory_bytes: int | None,
        hiring: Hiring,
    ) -> None:
        self.members: dict[int, Member] = {}
        self.lost = 0
        """Workers that were lost at work."""
        self.most = 0
        """Workers that were there at once."""
        self.device = settings.device
        """What merges, but for workers on CPUs beside those on GPUs."""
        self._settings = {"cpu": pickle.dumps(_on_cpus(settings))}
        self._settings[settings.device] = pickle.dumps(settings)
        self._workers = workers
        self._threads = threads
        self._hiring = hiring
        self._one = one_worker(
            settings.device, memory_bytes=memory_bytes, gpus_each=hiring.gpus_each
        )
        beside = one_worker("cpu", memory_bytes=memory_bytes)
        self._beside = replace(beside, num_cpus=threads or 1)
        self._hired = 0
        self._looked = -LOOK_S
        self._quarantined: list[Member] = []
        self._false_starts: Counter[str] = Counter()
        self._grows = False

    @property
    def started(self) -> list[Member]:
        """Those that run units."""
        return [member for member in self.members.values() if member.report]

    @property
    def starting(self) -> dict[Any, Member]:
        """Those that are on their way, by the calls that end when they are there."""
        return {member.starting: member for member in self.members.values() if not member.report}

    def start(self) -> None:
        """Hire, and return once there is a worker, and the others unless they take long.

        Raises:
            ClusterError: There is no room for them and nobody brings more, none has started in
                time, or one runs other code.
            RaymergeError: One does not see what the driver sees.
        """
        self._grows = self._hiring.placement_group is None and autoscaler.can_grow()
        if not self._grows:
            self._check_room()
        else:
            beside = [self._beside] * self._hiring.cpu_workers
            autoscaler.want([self._one] * (self._workers or 1) + beside, self._hiring.labels)
        began, announced = monotonic(), False
        alone_since = began
        self.look()
        while not self.started or (self.starting and monotonic() < began + ANNOUNCE_S):
            for call in ray_cluster.ended(list(self.starting), LOOK_S):
                self.settle(call, strict=True)
            if self.is_due:
                self.look()
            if self._hiring.busy():
                alone_since = monotonic()
            if not self.started and monotonic() > alone_since + self._hiring.wait_s:
                raise self.missing()
            if self.starting and not announced and monotonic() > began + ANNOUNCE_S:
                announced = True
                _log.warning(
                    "waiting for %d Ray workers, %g s at most; free now: %s",
                    len(self.starting),
                    self._hiring.wait_s,
                    ray_cluster.free(),
                )

    @property
    def is_mixed(self) -> bool:
        """Whether there are to be workers on CPUs beside those on GPUs."""
        return self._hiring.cpu_workers > 0

    @property
    def wait_s(self) -> float:
        """How long a run may be without workers."""
        return self._hiring.wait_s

    @property
    def is_busy(self) -> bool:
        """Whether this process itself may hold the room that workers wait for."""
        return self._hiring.busy()

    def missing(self) -> ClusterError:
        """The error of a run without workers."""
        return ClusterError(
            f"there is no Ray worker, and none has started within {self._hiring.wait_s:g} s. Each "
            f"asks for {asked(self._one)}; free on the cluster: {ray_cluster.free()}. "
            "Run the same command again to go on, raise --wait, or lower --workers.",
            retryable=True,
        )

    def settle(self, call: Any, *, strict: bool = False) -> Member | None:
        """Take in a worker that has started; None where it has not.

        Args:
            call: One of `starting`.
            strict: Raise if it cannot be used. Once units run, a late worker is just left out.
        """
        member = self.starting[call]
        try:
            report: Report = ray_cluster.answer(call)
            _check_versions(report)
        except WorkerLostError as lost:
            self._false_start(member, lost)
            return None
        except RaymergeError as error:
            if strict:
                raise
            _log.warning("left out a node that joined: %s", error)
            self._false_starts[member.place.node] += MAX_FALSE_STARTS
            self.dismiss(member)
            return None
        member.report = report
        self.most = max(self.most, len(self.started))
        return member

    def _false_start(self, member: Member, lost: WorkerLostError) -> None:
        self.dismiss(member)
        if lost.why is Loss.PREEMPTED:
            return
        self._false_starts[member.place.node] += 1
        _log.warning("a Ray worker did not start: %s", lost)
        if self._false_starts[member.place.node] >= MAX_FALSE_STARTS and not self.members:
            raise ClusterError(f"no Ray worker could be started: {lost}") from lost

    def look(self) -> frozenset[str]:
        """Hire where there is room; returns nodes that are about to go."""
        self._looked = monotonic()
        going = ray_cluster.draining()
        usable = [node for node in self._nodes() if node.id not in going]
        # Those that are about to go are to be replaced while they still work, and those that are
        # quarantined hold their devices, but do nothing.
        taken, works = (
            [member.place for member in members if member.place.node not in going]
            for members in ([*self.members.values(), *self._quarantined], self.members.values())
        )
        main = [place for place in works if place.device == self.device]
        wanted = None if self._workers is None else max(0, self._workers - len(main))
        new = spread([node.without(taken) for node in usable], self._one, workers=wanted)
        # After them, so that no GPU is without a CPU.
        spare = [node.without([*taken, *new]) for node in usable]
        few = max(0, self._hiring.cpu_workers - (len(works) - len(main)))
        for spot in (*new, *spread(spare, self._beside, workers=few, alone=False)):
            self._hire(spot)
        return going

    @property
    def is_due(self) -> bool:
        """Whether it is time for a look, at nodes that join and those that are about to go.

        A notice comes 30 to 120 s before the end, and a look takes 2 ms.
        """
        return monotonic() >= self._looked + LOOK_S

    def _nodes(self) -> list[Node]:
        """Where workers may go."""
        found = ray_cluster.bundles(self._hiring.placement_group)
        return [
            node
            for node in (ray_cluster.nodes() if found is None else found)
            if self._false_starts[node.id] < MAX_FALSE_STARTS
            and matches(node.labels, self._hiring.labels)
        ]

    def _check_room(self) -> None:
        nodes, free = self._nodes(), ray_cluster.free()
        check_room(nodes, self._one, workers=self._workers, free=free)
        if self.is_mixed:
            main = spread(nodes, self._one, workers=self._workers)
            left = [node.without(main) for node in nodes]
            check_room(left, self._beside, workers=self._hiring.cpu_workers, free=free)

    def _hire(self, spot: Place) -> None:
        threads = self._threads or spot.num_cpus
        actor = ray_cluster.hire(spot, threads, group=self._hiring.placement_group)
        starting = actor.start.remote(versions(), self._settings[spot.device])
        self._hired += 1
        self.members[self._hired] = Member(self._hired, spot, threads, actor, starting)

    def lose(self, member: Member, lost: WorkerLostError) -> None:
        """Let a lost worker go. The next look, which is due now, hires another."""
        self.lost += 1
        self._looked = -LOOK_S
        _log.warning("lost the Ray worker on %s: %s", member.where, lost)
        self.dismiss(member)

    def quarantine(self, member: Member, why: RaymergeError) -> None:
        """Give a worker nothing more, and keep its GPU from whoever would be hired next."""
        self.lost += 1
        _log.warning(
            "the device of the Ray worker on %s is not used any more: %s", member.where, why
        )
        del self.members[member.number]
        self._quarantined.append(member)

    def dismiss(self, member: Member) -> None:
        """End a worker that is not needed, or that is only out of reach: it would keep its GPU."""
        del self.members[member.number]
        ray_cluster.end(member.actor)

    def stop(self, calls: Iterable[Any]) -> list[Any]:
        """End everybody: after the tile in hand, or else at once.

        Args:
            calls: What is under way.

        Returns:
            Those of them that have ended.
        """
        everybody = [*self.members.values(), *self._quarantined]
        self.members, self._quarantined = {}, []
        if not ray_cluster.is_connected():
            return []
        for member in everybody:
            member.actor.stop.remote()
        done = ray_cluster.ended(list(calls), STOP_S, every=True)
        for member in everybody:
            ray_cluster.end(member.actor)
        return done

    def close(self) -> None:
        """End everybody, and have the autoscaler forget what was wanted."""
        self.stop([])
        if self._grows and ray_cluster.is_connected():
            autoscaler.want([], {})


def _on_cpus(settings: RunSettings) -> RunSettings:
    """The settings of a worker on CPUs, whatever the others merge on. Tiles change no byte."""
    tile = min(settings.budget.tile_elements, LARGEST_TILE)
    budget = replace(settings.budget, tile_elements=tile, depth=1)
    return replace(settings, device="cpu", budget=budget)


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
