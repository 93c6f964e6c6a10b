"""The clock of a simulation: what the Ray engine does with workers, done with demands."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from raymerge.runtime.engine import LOOK_S
from raymerge.runtime.schedule import Schedule
from raymerge.runtime.simulation.demands import Round, Work
from raymerge.runtime.simulation.fleet import Fleet
from raymerge.runtime.simulation.node import Site


@dataclass(eq=False, slots=True)
class Seat:
    """A worker: what it does, and what it has done."""

    number: int
    node: str
    site: Site
    is_beside: bool
    """Whether it is one on CPUs beside those on GPUs."""
    waiting: deque[int] = field(default_factory=deque)
    """Units that wait their turn."""
    running: int = 0
    busy_s: float = 0.0
    """Time with a unit in progress."""
    began_s: float = 0.0
    """When it began to be busy, where it is."""
    ended_s: float = 0.0
    """When it was busy last."""


class Play:
    """A fleet at work, round by round.

    Args:
        fleet: What it is like.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.now = 0.0
        """Seconds since the first unit began."""
        self.idle_tail_s = 0.0
        """Time of workers that had nothing more to do while others ended a round, added up."""
        self.redone_units = 0
        """Units that were begun a second time, since they took long."""
        self._threads = fleet.threads
        self.sites: dict[str, Site] = {}
        """The nodes."""
        self.seats: list[Seat] = []
        """The workers."""
        for number, place in enumerate(fleet.places()):
            site = self.sites.setdefault(place.node, Site(fleet))
            site.cores[number] = fleet.cores_of(place.device)
            is_beside = place.device != fleet.device
            self.seats.append(Seat(number, place.node, site, is_beside))

    def run(self, one: Round) -> None:
        """Do a round to its end."""
        works = {work.number: work for work in one.works}
        schedule = Schedule(
            {number: work.nbytes for number, work in works.items()},
            copies=one.call == "merge",
            bound=[work.number for work in one.works if work.bound],
        )
        for seat in self.seats:
            seat.ended_s = self.now
            takes_bound = not seat.is_beside
            schedule.join(seat.number, seat.node, self._threads, takes_bound=takes_bound)
        look_s = self.now
        while not schedule.done:
            changed = self._give(schedule, works)
            for site in changed:
                site.share()
            if self.now >= look_s:
                look_s = self.now + LOOK_S
            self._pass(look_s, schedule, works)
        self._stop()
        self.redone_units += schedule.redone
        self.idle_tail_s += sum(self.now - seat.ended_s for seat in self.seats)

    def _stop(self) -> None:
        """Drop copies of what has landed elsewhere."""
        for seat in self.seats:
            if seat.running:
                seat.busy_s += self.now - seat.began_s
                seat.running, seat.ended_s = 0, self.now
            seat.waiting.clear()
        for site in self.sites.values():
            site.move(self.now)
            site.stop()

    def _give(self, schedule: Schedule, works: dict[int, Work]) -> Iterable[Site]:
        """Hand out units; returns the nodes that have begun some."""
        changed: dict[str, Site] = {}
        for order in schedule.orders(self.now):
            seat = self.seats[order.worker]
            seat.waiting.append(order.unit)
            if self._begin(seat, works):
                changed[seat.node] = seat.site
        return changed.values()

    def _begin(self, seat: Seat, works: dict[int, Work]) -> bool:
        """Begin the unit that waits, if there is one and room for it."""
        if not seat.waiting or seat.running >= self._threads:
            return False
        seat.site.move(self.now)
        work = works[seat.waiting.popleft()]
        demands = work.beside if seat.is_beside else work.demands
        seat.site.begin(seat.number, work.number, demands)
        if not seat.running:
            seat.began_s = self.now
        seat.running += 1
        return True

    def _pass(self, until_s: float, schedule: Schedule, works: dict[int, Work]) -> None:
        """Let time pass until something ends, or until then."""
        self.now = min(until_s, *(site.next_s for site in self.sites.values()))
        for site in self.sites.values():
            if site.next_s > self.now:
                continue
            site.move(self.now)
            for one in site.take_ended():
                seat = self.seats[one.worker]
                schedule.land(seat.number, one.unit, self.now)
                self._end(seat, works)
            site.share()

    def _end(self, seat: Seat, works: dict[int, Work]) -> None:
        seat.running -= 1
        seat.ended_s = self.now
        if not self._begin(seat, works) and not seat.running:
            seat.busy_s += self.now - seat.began_s
