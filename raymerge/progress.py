"""Show a run while it runs: a bar on a terminal, a line every few seconds elsewhere.

Below it stands what the workers do: on a terminal a line for each, elsewhere one for each node, and
none where there is one worker.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Lock, Thread
from time import monotonic, time
from typing import TYPE_CHECKING

from raymerge.units import format_bytes

if TYPE_CHECKING:
    from raymerge.plan.build import Plan
    from raymerge.runtime import events
    from raymerge.runtime.settings import Progress

LINE_EVERY_S = 5.0
BAR_EVERY_S = 0.2
MOST_WORKERS = 16
"""Lines for workers on a terminal; of more there is a line for each node."""


@dataclass(slots=True)
class _Seat:
    """A worker as its events tell."""

    node: str
    began_s: float
    units: dict[int, str] = field(default_factory=dict)
    """First tensor of each that it has."""
    moved_bytes: int = 0
    """Read and written."""
    is_draining: bool = False


class Roster:
    """Workers, and what each is at, from the events of a run."""

    def __init__(self) -> None:
        self._seats: dict[str, _Seat] = {}
        self._lock = Lock()

    def hear(self, event: events.Event) -> None:
        """Take in an event, from any thread."""
        from raymerge.runtime import events

        if not isinstance(event, events.WorkerEvent):
            return
        with self._lock:
            if isinstance(event, events.WorkerJoined):
                self._seats[event.worker] = _Seat(event.node, event.time_s)
                return
            seat = self._seats.get(event.worker)
            if seat is None:
                return
            if isinstance(event, events.WorkerLost):
                del self._seats[event.worker]
            elif isinstance(event, events.WorkerDrained):
                seat.is_draining = True
            elif isinstance(event, events.UnitBegun):
                seat.units[event.unit] = event.tensor
            elif isinstance(event, events.UnitEnded | events.UnitFailed):
                seat.units.pop(event.unit, None)
            if isinstance(event, events.UnitEnded):
                seat.moved_bytes += event.bytes_read + event.bytes_written

    def by_worker(self, now_s: float) -> list[str]:
        """A line for each worker; by node where there are many.

        Args:
            now_s: Seconds since 1970.
        """
        with self._lock:
            seats = dict(self._seats)
            if len(seats) > MOST_WORKERS:
                return self._by_node(now_s)
            return [
                f"{worker}{_draining([seat])}  {_speed([seat], now_s)}  {_units(seat)}"
                for worker, seat in sorted(seats.items())
            ]

    def by_node(self, now_s: float) -> list[str]:
        """A line for each node; none where there is one worker alone.

        Args:
            now_s: Seconds since 1970.
        """
        with self._lock:
            return self._by_node(now_s) if len(self._seats) > 1 else []

    def _by_node(self, now_s: float) -> list[str]:
        nodes: dict[str, list[_Seat]] = {}
        names: dict[str, str] = {}
        for worker, seat in sorted(self._seats.items()):
            nodes.setdefault(seat.node, []).append(seat)
            names[seat.node] = worker.rpartition(":")[0]
        return [
            f"{_node_name(node, names[node])}{_draining(seats)}  {len(seats)} workers, "
            f"{sum(len(seat.units) for seat in seats)} units at work, {_speed(seats, now_s)}"
            for node, seats in nodes.items()
        ]


def _node_name(node: str, host: str) -> str:
    return host if node == host else f"{host} ({node[:8]})"


def _draining(seats: list[_Seat]) -> str:
    return " (draining)" if any(seat.is_draining for seat in seats) else ""


def _speed(seats: list[_Seat], now_s: float) -> str:
    """Mean since each has joined."""
    bytes_per_s = sum(seat.moved_bytes / max(1.0, now_s - seat.began_s) for seat in seats)
    return f"{format_bytes(int(bytes_per_s))}/s"


def _units(seat: _Seat) -> str:
    first = next(iter(seat.units.values()), "idle")
    more = len(seat.units) - 1
    return f"{first} and {more} more" if more > 0 else first


class Display:
    """Bytes read and written of a plan, drawn on stderr until the run ends."""

    def __init__(self) -> None:
        self._read_bytes = 0
        self._written_bytes = 0
        self._total_bytes = 0
        self._began = monotonic()
        self._lock = Lock()
        self._roster = Roster()

    def begin(self, plan: Plan) -> None:
        """Know what there is to do."""
        self._total_bytes = sum(unit.nbytes for unit in plan.units)
        self._began = monotonic()

    def hear(self, event: events.Event) -> None:
        """Take in an event of the run, from any thread."""
        from raymerge.runtime import events

        if isinstance(event, events.UnitsResumed):
            self._total_bytes -= event.nbytes
        self._roster.hear(event)

    def add(self, progress: Progress) -> None:
        """Count what was done, from any thread."""
        with self._lock:
            self._read_bytes += progress.read_bytes
            self._written_bytes += progress.written_bytes

    def line(self) -> str:
        """Where the run stands, in one line."""
        elapsed_s = monotonic() - self._began
        speed = self._read_bytes / elapsed_s if elapsed_s else 0.0
        # What a lost worker had begun is written twice.
        left_bytes = max(0, self._total_bytes - self._written_bytes)
        eta = (
            f"{elapsed_s * left_bytes / self._written_bytes:.0f} s" if self._written_bytes else "?"
        )
        return (
            f"read {format_bytes(self._read_bytes)} ({format_bytes(int(speed))}/s), written "
            f"{format_bytes(self._written_bytes)} of {format_bytes(self._total_bytes)}, {eta} left"
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw until the block ends."""
        done = Event()
        draw = self._draw_bar if sys.stderr.isatty() else self._draw_lines
        thread = Thread(target=draw, args=(done,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _draw_lines(self, done: Event) -> None:
        while not done.wait(LINE_EVERY_S):
            if self._total_bytes:
                lines = [self.line(), *self._roster.by_node(time())]
                print(*lines, sep="\n", file=sys.stderr, flush=True)  # noqa: T201 - the display

    def _draw_bar(self, done: Event) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.text import Text

        bar = Progress(BarColumn(), TextColumn("{task.description}"))
        task = bar.add_task("planning", total=None)
        with Live(bar, console=Console(stderr=True), transient=True, auto_refresh=False) as live:
            while not done.wait(BAR_EVERY_S):
                if self._total_bytes:
                    bar.update(
                        task,
                        description=self.line(),
                        completed=self._written_bytes,
                        total=self._total_bytes,
                    )
                rows = [Text(f"  {row}", no_wrap=True) for row in self._roster.by_worker(time())]
                live.update(Group(bar, *rows), refresh=True)
