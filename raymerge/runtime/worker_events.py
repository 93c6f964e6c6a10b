"""What happens to one worker and to the units that it has, told as events."""

from __future__ import annotations

from time import time

from raymerge.plan.graph import Unit
from raymerge.plan.sweep_unit import SweepUnit
from raymerge.runtime.engine import Call
from raymerge.runtime.events import (
    OnEvent,
    Spent,
    UnitBegun,
    UnitEnded,
    UnitFailed,
    UnitRedone,
    WorkerDrained,
    WorkerJoined,
    WorkerLost,
    spent_within,
)
from raymerge.runtime.settings import Progress


class WorkerEvents:
    """Tells of a worker.

    Args:
        on_event: Whom.
        worker: Its host and process.
        node: Where it is.
    """

    def __init__(self, on_event: OnEvent, worker: str, node: str) -> None:
        self._tell = on_event
        self._worker, self._node = worker, node
        self._given_s: dict[tuple[int, Call], float] = {}

    def joined(self, threads: int) -> None:
        """It gets units from now on."""
        self._tell(WorkerJoined(worker=self._worker, node=self._node, threads=threads))

    def drained(self) -> None:
        """Its node is about to go."""
        self._tell(WorkerDrained(worker=self._worker, node=self._node))

    def lost(self, why: str) -> None:
        """It is no more."""
        self._tell(WorkerLost(worker=self._worker, node=self._node, why=why))

    def given(self, unit: Unit | SweepUnit, call: Call, *, again: bool = False) -> None:
        """It was given a unit."""
        now_s = time()
        self._given_s[unit.number, call] = now_s
        if again:
            self._tell(
                UnitRedone(
                    time_s=now_s, worker=self._worker, node=self._node, unit=unit.number, call=call
                )
            )
        self._tell(
            UnitBegun(
                time_s=now_s,
                worker=self._worker,
                node=self._node,
                unit=unit.number,
                call=call,
                tensor=unit.nodes[0].slot.name if unit.nodes else "",
                shard=unit.shard if unit.nodes else "",
                nbytes=unit.nbytes,
            )
        )

    def ended(self, unit: Unit | SweepUnit, call: Call, moved: Progress, spent: Spent) -> None:
        """A unit's result has come."""
        now_s = time()
        given_s = self._given_s.pop((unit.number, call), now_s - spent.seconds)
        spent = spent_within(spent, given_s, now_s)
        self._tell(
            UnitEnded(
                time_s=now_s,
                worker=self._worker,
                node=self._node,
                unit=unit.number,
                call=call,
                began_s=spent.began_s,
                seconds=round(spent.seconds, 6),
                bytes_read=moved.read_bytes,
                bytes_written=moved.written_bytes,
                retries=moved.retries,
            )
        )

    def failed(self, unit: Unit | SweepUnit, call: Call, why: str) -> None:
        """It has not done a unit."""
        self._given_s.pop((unit.number, call), None)
        self._tell(
            UnitFailed(worker=self._worker, node=self._node, unit=unit.number, call=call, why=why)
        )
