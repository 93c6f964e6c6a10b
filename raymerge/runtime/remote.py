"""What runs in an actor of the Ray engine; knows no Ray itself."""

from __future__ import annotations

import os
import pickle
import platform
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Condition, Event, Lock
from time import perf_counter, time
from typing import Any

import numba
import numpy as np

from raymerge.errors import RaymergeError
from raymerge.kernels.identity import kernel_hash
from raymerge.plan.graph import Unit
from raymerge.plan.memory import SMALLEST_TILE
from raymerge.plan.sweep_unit import SweepUnit
from raymerge.runtime.device import Desks
from raymerge.runtime.engine import Call
from raymerge.runtime.events import Spent
from raymerge.runtime.fitting import FittingWorker
from raymerge.runtime.losses import device_failure
from raymerge.runtime.preflight import preflight
from raymerge.runtime.record import raymerge_version
from raymerge.runtime.settings import Progress, RunSettings, Tally
from raymerge.runtime.stopping import StoppedError

SHRINK = 4
"""How much smaller the tiles are each time that a unit did not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A worker's answer once it has started."""

    host: str
    pid: int
    versions: Mapping[str, str]
    devices: str
    """What Ray lets it see, in CUDA's words."""


class RemoteWorker:
    """A `Worker` in a process of Ray's, `threads` units at once."""

    def __init__(self, threads: int) -> None:
        self._stop = Event()
        self._threads = threads
        self._running = 0
        self._leaving = False
        self._turn = Condition()
        self._lock = Lock()
        self._moved = Tally()
        self._workers: dict[int, FittingWorker] = {}

    def start(self, expected: Mapping[str, str], settings: bytes) -> Report:
        """Get ready if this node runs the driver's code; the report says whether it does.

        Raises:
            RaymergeError: It does not see what the driver sees.
        """
        report = Report(
            host=socket.gethostname(),
            pid=os.getpid(),
            versions=versions(),
            devices=os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        )
        if report.versions == expected:
            # Pickled by hand: other code may not be able to read it, and has to say so itself.
            self._settings: RunSettings = pickle.loads(settings)  # noqa: S301 - from our own driver
            self._desks = Desks(self._settings.device, self._settings.budget.depth)
            try:
                preflight(self._settings)
                self._worker(0)
            except RaymergeError as error:
                error.message = f"node {report.host}: {error.message}"
                raise
        return report

    def run(
        self, call: Call, unit: Unit | SweepUnit, args: tuple[Any, ...], shrink: int = 0
    ) -> tuple[Any, Progress, Spent]:
        """Run a unit; with its result come the bytes moved since the last report, and its time.

        Raises:
            StoppedError: It was not begun, or not finished.
            OutOfRoomError: It needs more memory than there is.
            BrokenDeviceError: It is not the unit's fault.
        """
        worker = self._worker(shrink)
        with self._in_turn(worker, unit):
            began_s, clock = time(), perf_counter()
            try:
                result = worker.run(call, unit, args)
            except (MemoryError, RuntimeError) as error:
                if (failure := device_failure(error)) is error:
                    raise
                raise failure from error
            seconds = round(perf_counter() - clock, 6)
        return result, self._moved.take(), Spent(began_s, seconds)

    def hand_back(self) -> None:
        """Begin no more units; those that wait their turn are given back."""
        with self._turn:
            self._leaving = True
            self._turn.notify_all()

    def stop(self) -> None:
        """End every unit after the tile in hand."""
        self._stop.set()
        self.hand_back()

    @contextmanager
    def _in_turn(self, worker: FittingWorker, unit: Unit | SweepUnit) -> Iterator[None]:
        """While no more units run than there is memory for."""
        with self._turn:
            if self._running == self._threads:
                worker.will_need(unit)
            self._turn.wait_for(lambda: self._leaving or self._running < self._threads)
            if self._leaving:
                raise StoppedError("not begun: the worker is about to go")
            self._running += 1
        try:
            yield
        finally:
            with self._turn:
                self._running -= 1
                self._turn.notify()

    def _worker(self, shrink: int) -> FittingWorker:
        """What runs units, in tiles so many times smaller. Tiles change no byte."""
        with self._lock:
            if shrink not in self._workers:
                budget = self._settings.budget
                tile = max(SMALLEST_TILE, budget.tile_elements // SHRINK**shrink)
                if shrink:
                    budget = replace(
                        budget, tile_elements=min(tile, budget.tile_elements), hold=False
                    )
                self._workers[shrink] = FittingWorker(
                    replace(self._settings, budget=budget),
                    stop=self._stop,
                    on_progress=self._moved.add,
                    desks=self._desks,
                )
            return self._workers[shrink]


def versions() -> dict[str, str]:
    """What has to be equal in driver and workers for bytes to be equal and units to be read."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "raymerge": raymerge_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "kernels": kernel_hash(),
    }
