"""Units in tiles that the device has room for: halved, and from then on so, when one had not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from threading import Event, Lock
from typing import Any

from raymerge.kernels.constants import LANES
from raymerge.plan.graph import CopyStep, Unit
from raymerge.plan.memory import SMALLEST_TILE, with_inner
from raymerge.plan.sweep_unit import SweepUnit
from raymerge.runtime.device import Desks
from raymerge.runtime.engine import Call
from raymerge.runtime.losses import OutOfRoomError, device_failure
from raymerge.runtime.settings import OnProgress, RunSettings
from raymerge.runtime.unit import Worker

_log = logging.getLogger(__name__)


class FittingWorker:
    """A `Worker`, and smaller ones in its place once its device had no room for a tile.

    How much there is no plan can know that leaves it to the device, or shares it with others. A
    unit that failed so is done again from its start: what kernels carry from tile to tile is lost.
    Tiles change no byte.

    Args:
        settings: Of the run.
        stop: Ends units after the tile in hand.
        on_progress: Told of what is read and written.
        desks: Shared with others, of which no more than one runs a unit on a thread.
    """

    def __init__(
        self,
        settings: RunSettings,
        *,
        stop: Event,
        on_progress: OnProgress,
        desks: Desks | None = None,
    ) -> None:
        self._settings = settings
        self._stop = stop
        self._on_progress = on_progress
        self._desks = desks or Desks(settings.device, settings.budget.depth)
        self._lock = Lock()
        self._workers: list[Worker] = []
        self._add(settings.budget.tile_elements)

    @property
    def name(self) -> str:
        """See `Worker.name`."""
        return self._workers[0].name

    def run(self, call: Call, unit: Unit | SweepUnit, args: Sequence[Any] = ()) -> Any:
        """The worker's answer to a call of this name.

        Raises:
            OutOfRoomError: The device has no room for the smallest tiles either.
            BrokenDeviceError: It fails, whatever it is given.
        """
        while True:
            worker = self._workers[-1]
            try:
                return getattr(worker, call)(unit, *args)
            except RuntimeError as error:
                failure = device_failure(error)
                if failure is error:
                    raise
                if not isinstance(failure, OutOfRoomError):
                    raise failure from error
                why = str(error)
            # Not where it is handled: the error has the frames that hold the device's memory.
            self._halve(worker, unit, why)

    def will_need(self, unit: Unit | SweepUnit) -> None:
        """See `Worker.will_need`."""
        self._workers[-1].will_need(unit)

    def check_sources(self) -> None:
        """See `Worker.check_sources`."""
        for worker in self._workers:
            worker.check_sources()

    def close(self) -> None:
        """See `Worker.close`."""
        for worker in self._workers:
            worker.close()

    def _halve(self, worker: Worker, unit: Unit | SweepUnit, why: str) -> None:
        """Have tiles of half the length from now on, unless another thread has seen to it."""
        with self._lock:
            self._desks.release()
            if self._workers[-1] is not worker:
                return
            longest = min(self.tile_elements, _longest(unit))
            half = longest // 2 // LANES * LANES
            device = self._settings.device
            if half < SMALLEST_TILE:
                raise OutOfRoomError(
                    f"{device} has no room for tiles of {longest:,} elements: {why}\nTiles do not "
                    "get smaller. Lower --workers, so that fewer share the device, or see what "
                    "else takes its memory.",
                    tensor=unit.nodes[0].slot.name,
                )
            _log.warning(
                "%s has no room for tiles of %s elements: from here on they have %s. %s",
                device,
                f"{longest:,}",
                f"{half:,}",
                why,
            )
            self._add(half)

    def _add(self, tile_elements: int) -> None:
        self.tile_elements = tile_elements
        """Of units that are begun now."""
        budget = replace(self._settings.budget, tile_elements=tile_elements)
        self._workers.append(
            Worker(
                replace(self._settings, budget=budget),
                stop=self._stop,
                on_progress=self._on_progress,
                desks=self._desks,
            )
        )


def _longest(unit: Unit | SweepUnit) -> int:
    """Elements of the longest tensor that is merged for a unit."""
    merged = (node for node in with_inner(unit.nodes) if not isinstance(node.step, CopyStep))
    return max((node.inputs[0].num_elements for node in merged), default=0)
