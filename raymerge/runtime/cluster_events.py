"""The events of each worker of a cluster."""

from __future__ import annotations

from collections.abc import Iterable

from raymerge.plan.graph import Unit
from raymerge.plan.sweep_unit import SweepUnit
from raymerge.runtime.crew import Member
from raymerge.runtime.engine import Call
from raymerge.runtime.events import OnEvent
from raymerge.runtime.schedule import Loss
from raymerge.runtime.worker_events import WorkerEvents


class ClusterEvents:
    """Tells of the workers of one engine.

    Args:
        on_event: Whom.
    """

    def __init__(self, on_event: OnEvent) -> None:
        self._tell = on_event
        self._workers: dict[int, WorkerEvents] = {}

    def of(self, member: Member) -> WorkerEvents:
        """Those of a worker that has joined."""
        return self._workers[member.number]

    def joined(self, member: Member) -> None:
        """A worker gets units from now on; of one that is known already nothing is said."""
        if member.number in self._workers:
            return
        assert member.report is not None, member.place
        name = f"{member.report.host}:{member.report.pid}"
        self._workers[member.number] = WorkerEvents(self._tell, name, member.place.node)
        self.of(member).joined(member.threads)

    def left(
        self, member: Member, why: Loss, call: Call, units: Iterable[Unit | SweepUnit]
    ) -> None:
        """A worker is no more, and has not done these units."""
        self.of(member).lost(why.name.lower())
        for unit in units:
            self.of(member).failed(unit, call, why.name.lower())
