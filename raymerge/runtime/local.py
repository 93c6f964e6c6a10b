"""The local engine: threads in this process, no Ray. Kernels and reads release the GIL."""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Event, Thread
from time import monotonic, perf_counter, time
from typing import Any

from raymerge.plan.graph import Unit
from raymerge.plan.sweep_unit import SweepUnit
from raymerge.runtime.engine import LOOK_S, Call, WorkUnit
from raymerge.runtime.events import OnEvent, Spent, nobody
from raymerge.runtime.fitting import FittingWorker
from raymerge.runtime.settings import OnProgress, Progress, RunSettings, Tally
from raymerge.runtime.stopping import StoppedError
from raymerge.runtime.worker_events import WorkerEvents

_log = logging.getLogger(__name__)

STOP_S = 5
"""Longest wait for threads to end the tile in hand: one may be sending to a server that is silent.
"""


class LocalEngine:
    """Runs units on `threads` threads that share one worker."""

    name = "local"
    lost_workers = redone_units = 0

    def __init__(
        self,
        settings: RunSettings,
        *,
        threads: int,
        on_progress: OnProgress,
        on_event: OnEvent = nobody,
    ) -> None:
        self.workers = threads
        self._stop = Event()
        self._moved = Tally()

        def count(progress: Progress) -> None:
            self._moved.add(progress)
            on_progress(progress)

        self._worker = FittingWorker(settings, stop=self._stop, on_progress=count)
        self._running: list[Thread] = []
        self._events = WorkerEvents(on_event, self._worker.name, socket.gethostname())
        self._events.joined(threads)

    def run(
        self,
        call: Call,
        units: Sequence[WorkUnit],
        *args: Any,
        before: Callable[[WorkUnit], WorkUnit | None],
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[WorkUnit, Any]]:
        """See `Engine.run`."""
        queue = deque(units)
        results: SimpleQueue[tuple[WorkUnit, Any]] = SimpleQueue()

        def work() -> None:
            while not self._stop.is_set():
                try:
                    unit = queue.popleft()
                except IndexError:
                    return
                try:
                    unit = before(unit) or unit
                    self._worker.will_need(unit)
                    with suppress(IndexError):  # the last one is begun
                        self._worker.will_need(queue[0])
                    results.put((unit, self._told(call, unit, args)))
                except BaseException as error:  # noqa: BLE001 - raised again in the main thread
                    results.put((unit, error))
                    return

        self._running = [Thread(target=work, daemon=True) for _ in range(self.workers)]
        for thread in self._running:
            thread.start()
        for _ in units:
            unit, result = _next(results, meanwhile)
            if isinstance(result, BaseException):
                raise result
            yield unit, result
        for thread in self._running:
            thread.join()
        self._worker.check_sources()

    def _told(self, call: Call, unit: Unit | SweepUnit, args: tuple[Any, ...]) -> Any:
        """Run a unit, and tell when it begins and ends."""
        self._events.given(unit, call)
        began_s, clock = time(), perf_counter()
        try:
            result = self._worker.run(call, unit, args)
        except BaseException as error:
            why = "stopped" if isinstance(error, StoppedError) else type(error).__name__
            self._events.failed(unit, call, why)
            raise
        spent = Spent(began_s, perf_counter() - clock)
        self._events.ended(unit, call, self._moved.take(), spent)
        return result

    def close(self) -> None:
        """Stop after the tile in hand and close the sources."""
        self._stop.set()
        give_up = monotonic() + STOP_S
        for thread in self._running:
            thread.join(max(0.0, give_up - monotonic()))
        if any(thread.is_alive() for thread in self._running):
            # What such a thread sends is never completed: it looks before every further tile.
            _log.warning("left a request to storage that had no answer for %g s", STOP_S)
        else:
            self._worker.close()


def _next(
    results: SimpleQueue[tuple[WorkUnit, Any]], meanwhile: Callable[[], None]
) -> tuple[WorkUnit, Any]:
    while True:
        try:
            return results.get(timeout=LOOK_S)
        except Empty:
            meanwhile()
