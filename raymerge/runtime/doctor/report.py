"""What the doctor found. Nothing here is a secret."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

from raymerge.storage.redaction import redact

TRIAL_BYTES = 2**20
"""What is read from a source, and written to a destination."""
LATENCY_REQUESTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Bytes that went one way in one request."""

    bytes: int
    seconds: float
    """Latency included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """One place, tried."""

    url: str
    role: Literal["source", "destination"]
    facts: dict[str, str]
    """Endpoint, identity and the like, in the order in which they are shown."""
    latency_s: float | None
    """Of a small request, the middle one of a few."""
    read: Transfer | None
    written: Transfer | None
    notes: tuple[str, ...]
    """What is good to know."""
    problems: tuple[str, ...]
    """What is wrong, each with what to do."""
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All places, tried one after another."""

    places: tuple[Checkup, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong anywhere."""
        return all(place.ok for place in self.places)

    def as_json(self) -> dict[str, Any]:
        """The document of `raymerge doctor --json`."""
        return {
            "ok": self.ok,
            "places": [{**asdict(place), "ok": place.ok} for place in self.places],
        }


@dataclass(slots=True)
class Visit:
    """A place that is being tried: what is known of it so far."""

    url: str
    role: Literal["source", "destination"]
    facts: dict[str, str] = field(default_factory=dict)
    latency_s: float | None = None
    read: Transfer | None = None
    written: Transfer | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    litter: str | None = None
    """What lies there of ours until it is removed."""
    began: float = field(default_factory=time.perf_counter)

    def note(self, text: str) -> None:
        """Something good to know."""
        self.notes.append(text)

    def problem(self, text: str) -> None:
        """Something wrong, with what to do."""
        self.problems.append(text)

    def measure_latency(self, request: Callable[[], object]) -> None:
        """The middle one of a few small requests; the first one connects."""
        self.latency_s = median(_timed(request) for _ in range(LATENCY_REQUESTS))

    def measure_reading(self, nbytes: int, request: Callable[[], object]) -> None:
        """A request that reads so many bytes."""
        self.read = Transfer(bytes=nbytes, seconds=_timed(request))

    def measure_writing(self, nbytes: int, request: Callable[[], object]) -> None:
        """A request that writes so many bytes."""
        self.written = Transfer(bytes=nbytes, seconds=_timed(request))

    def report(self) -> Checkup:
        """What is known now; whatever comes later is not in it."""
        return Checkup(
            url=self.url,
            role=self.role,
            facts={name: redact(text) for name, text in tuple(self.facts.items())},
            latency_s=self.latency_s,
            read=self.read,
            written=self.written,
            notes=tuple(map(redact, tuple(self.notes))),
            problems=tuple(map(redact, tuple(self.problems))),
            seconds=round(time.perf_counter() - self.began, 3),
        )


def _timed(request: Callable[[], object]) -> float:
    began = time.perf_counter()
    request()
    return round(time.perf_counter() - began, 6)
