"""What travels to a worker once, and what it sends back. Small, frozen, picklable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from raymerge.plan.graph import PlannedSource
from raymerge.plan.memory import Budget


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What every worker of a run has to know besides its units."""

    sources: tuple[PlannedSource, ...]
    folder: str
    """Where shards are filled."""
    seed: int
    nan: Literal["error", "pass"]
    budget: Budget
    device: Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Proof that a unit was written: its range of the shard and the sha256 of those bytes."""

    unit: int
    shard: str
    start: int
    stop: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Bytes moved since the last report."""

    read_bytes: int = 0
    written_bytes: int = 0


OnProgress = Callable[[Progress], None]
