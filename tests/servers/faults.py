"""What a proxy may do to a request, and when."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import parse_qs, urlsplit


class Kind(StrEnum):
    """What goes wrong."""

    REFUSE = "refuse"
    """503 SlowDown; the server never hears of it."""
    EXPIRE = "expire"
    """400 ExpiredToken, for good; the server never hears of it."""
    LOSE = "lose"
    """Reset in the middle of what the client sends; the server never hears of it."""
    RESET = "reset"
    """The server does it; its answer ends in a reset, in mid-body."""
    TRUNCATE = "truncate"
    """The server does it; its answer ends early, in mid-body, in good order."""
    STALL = "stall"
    """The server does it; its answer stops in mid-body, for `seconds`, and then ends."""
    DELAY = "delay"
    """All goes well, `seconds` later."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong."""

    kind: Kind
    seconds: float = 0.0


@dataclass(slots=True)
class Exchange:
    """A request, and what became of it so far."""

    method: str
    target: str
    byte_range: str
    """The Range header; empty if there is none."""
    fault: Fault | None = None
    status: int = 0
    """What the client was told; 0 if nothing."""
    bytes_up: int = 0
    """Of the body that came from the client."""
    bytes_down: int = 0
    """Of the body that went to the client."""

    @property
    def path(self) -> str:
        """Bucket and key."""
        return urlsplit(self.target).path.lstrip("/")

    @property
    def query(self) -> dict[str, str]:
        """Its parameters."""
        parsed = parse_qs(urlsplit(self.target).query, keep_blank_values=True)
        return {name: values[0] for name, values in parsed.items()}


Choice = Callable[[Exchange], Fault | None]
"""Called once a request, in the order they come, with what is known of it before its body."""


def never(_: Exchange) -> Fault | None:
    """Nothing goes wrong."""
    return None


@dataclass(slots=True)
class InTurn:
    """These faults, one for each request that `concerns` accepts, and then none."""

    faults: deque[Fault]
    concerns: Callable[[Exchange], bool]

    def __call__(self, exchange: Exchange) -> Fault | None:
        if self.faults and self.concerns(exchange):
            return self.faults.popleft()
        return None


def in_turn(*faults: Fault, concerns: Callable[[Exchange], bool] = lambda _: True) -> InTurn:
    """These faults for the next requests, or for the next that `concerns` accepts."""
    return InTurn(deque(faults), concerns)


@dataclass(slots=True)
class AtRandom:
    """A fault for a share of the requests, the same for the same seed whatever their order.

    What is drawn depends on the seed, the method, the object, the range, the part's number, and on
    how often the same was asked before. So a retry has luck of its own.
    """

    seed: int
    rate: float
    faults: Sequence[Fault]
    concerns: Callable[[Exchange], bool] = lambda _: True
    _asked: Counter[str] = field(default_factory=Counter)

    def __call__(self, exchange: Exchange) -> Fault | None:
        if not self.concerns(exchange):
            return None
        part = exchange.query.get("partNumber", "")
        asked = f"{exchange.method} {exchange.path} {exchange.byte_range} {part}"
        self._asked[asked] += 1
        draw = random.Random(f"{self.seed} {asked} {self._asked[asked]}")
        return draw.choice(self.faults) if draw.random() < self.rate else None
