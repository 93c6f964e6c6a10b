"""What was measured, held against what is promised: a table for people, JSON for scripts."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.measure import Run
    from bench.tools import Method

MEMORY_LIMIT_BYTES = 2 << 30
"""What `--memory 2GiB` allows."""
MISSING = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number and the limit it is held to."""

    value: float | None
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None

    @property
    def missed(self) -> bool:
        """Whether there is a number, and a promise that it breaks."""
        if self.value is None:
            return False
        return (self.at_most is not None and self.value > self.at_most) or (
            self.at_least is not None and self.value < self.at_least
        )

    def __str__(self) -> str:
        if self.value is None:
            return MISSING
        limit = f" (<= {self.at_most:g})" if self.at_most is not None else ""
        limit = f" (>= {self.at_least:g})" if self.at_least is not None else limit
        return f"{self.value:.2f}{self.unit}{limit}{' MISSED' if self.missed else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRow:
    """One method on the big model: repeats of ours and of the floor in turn, mergekit once."""

    method: Method
    ours: tuple[Run, ...]
    peer: Run | None
    floors_s: tuple[float, ...]
    held: bool
    """Whether the promises apply: they were made for the full-size model."""

    @property
    def ours_s(self) -> float | None:
        """Median of our repeats; None if there are none or one failed."""
        return median_s(self.ours)

    @property
    def peer_s(self) -> float | None:
        """Seconds of mergekit; None if it was not run or failed."""
        return self.peer.wall_s if self.peer and self.peer.ok else None

    def speedup(self) -> Figure:
        """How often ours fits into the time of mergekit."""
        limit = self.method.min_speedup if self.held else None
        return Figure(value=quotient(self.peer_s, self.ours_s), unit="x", at_least=limit)

    def over_floor(self) -> Figure:
        """Our time over the floor's."""
        limit = self.method.max_over_floor if self.held else None
        floor_s = median(self.floors_s)
        return Figure(value=quotient(self.ours_s, floor_s), unit="x", at_most=limit)

    def peak(self) -> Figure:
        """Our peak anonymous memory, GiB."""
        value = peak_gib(self.ours) if self.ours_s is not None else None
        return Figure(value=value, at_most=MEMORY_LIMIT_BYTES / 2**30)

    def cells(self) -> list[str]:
        """The row of the table."""
        return [
            self.method.name,
            _seconds(self.ours),
            _seconds([self.peer] if self.peer else []),
            str(self.speedup()),
            _with_spread(self.floors_s),
            str(self.over_floor()),
            str(self.peak()),
            f"{peak_gib([self.peer]):.2f}" if self.peer and self.peer.ok else MISSING,
        ]

    def as_json(self) -> dict[str, Any]:
        """Everything, for the file of results."""
        return {
            "method": self.method.name,
            "raymerge": [asdict(run) for run in self.ours],
            "mergekit": asdict(self.peer) if self.peer else None,
            "floors_s": self.floors_s,
            "speedup": asdict(self.speedup()),
            "over_floor": asdict(self.over_floor()),
            "peak_anon_gib": asdict(self.peak()),
        }


METHOD_HEADINGS = (
    "method",
    "raymerge s",
    "mergekit s",
    "ratio",
    "floor s",
    "over floor",
    "raymerge GiB",
    "mergekit GiB",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One figure that is no method's: a start-up time, a plan, a cold cache."""

    name: str
    figure: Figure
    note: str = ""

    def cells(self) -> list[str]:
        """The row of the table."""
        return [self.name, str(self.figure), self.note]

    def as_json(self) -> dict[str, Any]:
        """Everything, for the file of results."""
        return asdict(self)


CHECK_HEADINGS = ("what", "measured", "note")


def median_s(runs: Sequence[Run]) -> float | None:
    """Median wall seconds; None if there are no runs or one failed."""
    return median(run.wall_s for run in runs) if runs and all(run.ok for run in runs) else None


def peak_gib(runs: Iterable[Run]) -> float:
    """The largest peak of anonymous memory, GiB."""
    return max(run.anon_bytes for run in runs) / 2**30


def quotient(above: float | None, below: float | None) -> float | None:
    """A ratio, if both sides are there."""
    return None if above is None or below is None else above / below


def _seconds(runs: Sequence[Run]) -> str:
    """Median and spread, or how the first failure ended."""
    failed = [run.exit_code for run in runs if not run.ok]
    if failed:
        return f"failed with {failed[0]}"
    return _with_spread([run.wall_s for run in runs]) if runs else MISSING


def _with_spread(seconds: Sequence[float]) -> str:
    spread = f" ({min(seconds):.2f}-{max(seconds):.2f})" if len(seconds) > 1 else ""
    return f"{median(seconds):.2f}{spread}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (headings, *rows)
    ]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
