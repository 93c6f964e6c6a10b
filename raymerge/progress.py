"""Show a run while it runs: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic
from typing import TYPE_CHECKING

from raymerge.units import format_bytes

if TYPE_CHECKING:
    from raymerge.plan.build import Plan
    from raymerge.runtime.settings import Progress

LINE_EVERY_S = 5.0
BAR_EVERY_S = 0.2


class Display:
    """Bytes read and written of a plan, drawn on stderr until the run ends."""

    def __init__(self) -> None:
        self._read_bytes = 0
        self._written_bytes = 0
        self._total_bytes = 0
        self._began = monotonic()

    def begin(self, plan: Plan) -> None:
        """Know what there is to do."""
        self._total_bytes = sum(unit.nbytes for unit in plan.units)
        self._began = monotonic()

    def add(self, progress: Progress) -> None:
        """Count what was done. A figure lost between two threads is drawn a moment later."""
        self._read_bytes += progress.read_bytes
        self._written_bytes += progress.written_bytes

    def line(self) -> str:
        """Where the run stands, in one line."""
        elapsed_s = monotonic() - self._began
        speed = self._read_bytes / elapsed_s if elapsed_s else 0.0
        left_bytes = self._total_bytes - self._written_bytes
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
                print(self.line(), file=sys.stderr, flush=True)  # noqa: T201 - this is the display

    def _draw_bar(self, done: Event) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = BarColumn(), TextColumn("{task.description}")
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("planning", total=None)
            while not done.wait(BAR_EVERY_S):
                if self._total_bytes:
                    bar.update(
                        task,
                        description=self.line(),
                        completed=self._written_bytes,
                        total=self._total_bytes,
                    )
