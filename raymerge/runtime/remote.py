"""What runs in an actor of the Ray engine; knows no Ray itself."""

from __future__ import annotations

import os
import pickle
import platform
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Event, Lock, Semaphore
from typing import Any

import numba
import numpy as np

from raymerge.kernels.identity import kernel_hash
from raymerge.plan.graph import Unit
from raymerge.runtime.engine import Call
from raymerge.runtime.record import raymerge_version
from raymerge.runtime.settings import Progress, RunSettings
from raymerge.runtime.stopping import StoppedError
from raymerge.runtime.unit import Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A worker's answer once it has started."""

    host: str
    pid: int
    versions: Mapping[str, str]


class RemoteWorker:
    """A `Worker` in a process of Ray's, `threads` units at once."""

    def __init__(self, threads: int) -> None:
        self._stop = Event()
        self._turns = Semaphore(threads)
        self._lock = Lock()
        self._moved = Progress()

    def start(self, expected: Mapping[str, str], settings: bytes) -> Report:
        """Get ready if this node runs the driver's code; the report says whether it does."""
        report = Report(host=socket.gethostname(), pid=os.getpid(), versions=versions())
        if report.versions == expected:
            # Pickled by hand: other code may not be able to read it, and has to say so itself.
            run: RunSettings = pickle.loads(settings)  # noqa: S301 - from our own driver
            self._worker = Worker(run, stop=self._stop, on_progress=self._add)
        return report

    def run(self, call: Call, unit: Unit, args: tuple[Any, ...]) -> tuple[Any, Progress]:
        """Run a unit; the bytes moved since the last report come with its result."""
        if not self._turns.acquire(blocking=False):
            self._worker.will_need(unit)
            self._turns.acquire()
        try:
            if self._stop.is_set():
                raise StoppedError("stopped")
            result = getattr(self._worker, call)(unit, *args)
        finally:
            self._turns.release()
        with self._lock:
            moved, self._moved = self._moved, Progress()
        return result, moved

    def stop(self) -> None:
        """End every unit after the tile in hand."""
        self._stop.set()

    def _add(self, more: Progress) -> None:
        with self._lock:
            self._moved += more


def versions() -> dict[str, str]:
    """What has to be equal in driver and workers for bytes to be equal and units to be read."""
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "raymerge": raymerge_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "kernels": kernel_hash(),
    }
