"""Who runs which unit, and what becomes of it when a worker is lost. Pure: events in, orders out.

    left -----> a worker: `threads` units run, one more waits its turn -----> landed
     ^            |
     '-- redone --'  lost worker, node about to go, too little memory

Every worker takes the next unit when it has room for one, so slow ones get fewer, and whoever joins
late gets some. It knows no clock: whoever calls says what time it is, in seconds from any start.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf
from statistics import median

MAX_FAILURES = 3
"""Times that a unit may not fit, or that a worker may die with nothing but it at work. Deaths
without it speak for it, one by one: on a bad day the only worker there is dies over anything."""
MAX_SHARED = 2
"""Deaths beside others after which a unit runs alone, to be found guilty or not."""
MAX_DEATHS = 10
"""Deaths that are too many whatever else dies."""
STRAGGLING = 2.0
"""A unit that has taken so many times what its bytes take elsewhere is given to another as well."""
STRAGGLING_S = 10.0
"""But not before this long: a machine that is busy for a moment is no straggler."""
PREFETCH_UNITS = 2
"""Units left for each worker above which one waits its turn in it: below that it could be the last
of all, and wait there while others have nothing to do. Counted in bytes, of which the next unit has
as many as any behind it: in a dense model of 405 G parameters 1 % of the bytes are half the units,
and two of eight nodes ended 9 % late over what had waited in them."""


class Loss(Enum):
    """Why a worker is no more."""

    PREEMPTED = auto()
    """Its node was taken away, which says nothing of its units."""
    DIED = auto()
    MEMORY = auto()
    """It was ended because memory ran out on its node."""
    BROKEN = auto()
    """Its device fails."""


@dataclass(frozen=True, slots=True)
class Order:
    """A unit for a worker."""

    worker: int
    unit: int
    shrink: int = 0
    """How many times it did not fit: it is to be tried in tiles so many times smaller."""
    again: bool = field(default=False, compare=False)
    """Whether it was begun before, and lost or late."""


@dataclass(slots=True)
class _Seat:
    """A worker, and the units it has."""

    node: str
    threads: int
    takes_bound: bool = True
    """Whether it may have units that are bound to one kind of device."""
    holds: dict[int, float] = field(default_factory=dict)
    """In the order they were given: when each began, or `inf` while it waits its turn."""

    @property
    def idle(self) -> int:
        """Threads with nothing to do; below 0 is what waits for one."""
        return self.threads - len(self.holds)

    @property
    def running(self) -> list[int]:
        """Units that have begun."""
        return [unit for unit, began in self.holds.items() if began < inf]

    def take(self, unit: int, now: float) -> None:
        """Give it one more."""
        self.holds[unit] = now if self.idle > 0 else inf

    def drop(self, unit: int, now: float) -> float:
        """Take a unit away, by which another begins; returns when it began."""
        began = self.holds.pop(unit)
        waiting = [other for other, since in self.holds.items() if since == inf]
        if began < inf and waiting:
            self.holds[waiting[0]] = now
        return began


class Schedule:
    """Hands units to workers until each has landed once.

    Args:
        sizes: Bytes of each unit by its number, in the order to begin them: large ones first, for
            nobody is to wait at the end for whoever began the largest last.
        copies: Whether a unit may run on two workers at once, near the end.
        bound: Units that only some workers may have, as `join` says.
    """

    def __init__(
        self, sizes: Mapping[int, int], *, copies: bool, bound: Collection[int] = frozenset()
    ) -> None:
        self._sizes = sizes
        self._copies = copies
        self._bound = frozenset(bound)
        self._left = deque(sizes)
        self._left_bytes = sum(sizes.values())
        self._apart: deque[int] = deque()
        """Suspects: each runs on a worker that has nothing else, so that none is blamed for another
        and memory is its own."""
        self._seats: dict[int, _Seat] = {}
        self._holders: dict[int, list[int]] = {unit: [] for unit in sizes}
        self._draining: frozenset[str] = frozenset()
        self._lost = 0
        """Workers that died at work."""
        self._deaths: Counter[int] = Counter()
        """How many of them while a unit ran there."""
        self._alone_deaths: Counter[int] = Counter()
        """How many while nothing else did."""
        self._shrink: Counter[int] = Counter()
        """Times that a unit did not fit."""
        self._rates: list[float] = []
        self.redone = 0
        """How often a unit was given out that had been begun: lost ones, and stragglers."""
        self._begun: set[int] = set()
        """Units that were begun and lost, or have taken too long."""
        self.given_up: list[int] = []
        """Units that failed too often."""

    @property
    def done(self) -> bool:
        """Whether every unit has landed."""
        return not self._holders

    def holds(self, worker: int) -> tuple[int, ...]:
        """Units that a worker has, those that landed elsewhere included."""
        return tuple(self._seats[worker].holds)

    def is_idle_and_going(self, worker: int) -> bool:
        """Whether nobody needs a worker any more: its node is about to go, and it has nothing."""
        seat = self._seats[worker]
        return seat.node in self._draining and not seat.holds

    @property
    def is_staffed(self) -> bool:
        """Whether for every unit that has not landed there is a worker that may have it."""
        if any(seat.takes_bound for seat in self._seats.values()):
            return True
        return bool(self._seats) and self._bound.isdisjoint(self._holders)

    def join(self, worker: int, node: str, threads: int, *, takes_bound: bool = True) -> None:
        """Take in a worker that runs `threads` units at once."""
        self._seats[worker] = _Seat(node, threads, takes_bound)

    def drain(self, nodes: Collection[str]) -> list[int]:
        """Give nothing more to these nodes, which are going to go.

        Returns:
            Workers there that did not know yet.
        """
        news = frozenset(nodes) - self._draining
        self._draining = frozenset(nodes)
        return [worker for worker, seat in self._seats.items() if seat.node in news]

    def orders(self, now: float) -> list[Order]:
        """Give out what can be."""
        given = list(self._give_suspects(now))
        given += self._give_next(now)
        if self._copies and not self._left and not self._apart:
            given += self._give_copies(now)
        return given

    def land(self, worker: int, unit: int, now: float) -> bool:
        """Take in a unit's result; returns whether it is the first."""
        began = self._seats[worker].drop(unit, now)
        if unit not in self._holders:
            return False
        del self._holders[unit]
        if began < inf:
            self._rates.append((now - began) / max(1, self._sizes[unit]))
        return True

    def give_back(self, worker: int, unit: int, now: float) -> None:
        """Take back a unit that a worker did not do, which is nobody's fault."""
        self._seats[worker].drop(unit, now)
        self._put_back([unit], worker)

    def cramp(self, worker: int, unit: int, now: float) -> None:
        """Take back a unit for which memory did not suffice."""
        self._seats[worker].drop(unit, now)
        self._begun.add(unit)
        self._shrink[unit] += 1
        self.given_up += filter(self._is_hopeless, self._put_back([unit], worker))

    def leave(self, worker: int, why: Loss) -> None:
        """Let a lost worker go; what it had and nobody else has is given out again."""
        seat = self._seats.pop(worker)
        running = seat.running
        self._begun.update(running)
        waiting = [unit for unit in seat.holds if unit not in running]
        if why is Loss.PREEMPTED or seat.node in self._draining:
            self._put_back([*running, *waiting], worker)
            return
        if why is Loss.MEMORY:
            self._shrink.update(running)
        elif running:
            self._lost += 1
            self._deaths.update(running)
            if len(running) == 1:
                self._alone_deaths.update(running)
        self.given_up += filter(self._is_hopeless, self._put_back(seat.holds, worker))

    def _put_back(self, units: Collection[int], worker: int) -> list[int]:
        """Queue units again, suspects by themselves; returns those."""
        suspects = [unit for unit in units if self._is_suspect(unit)]
        self._redo([unit for unit in units if unit not in suspects], worker, self._left)
        return self._redo(suspects, worker, self._apart)

    def _redo(self, units: Iterable[int], worker: int, queue: deque[int]) -> list[int]:
        """Queue units that a worker had and nobody else has, before all others."""
        again = []
        for unit in units:
            holders = self._holders.get(unit)
            if holders is None:
                continue  # it has landed
            holders.remove(worker)
            if not holders:
                again.append(unit)
        queue.extendleft(reversed(again))
        if queue is self._left:
            self._left_bytes += sum(map(self._sizes.__getitem__, again))
        return again

    def _open(self) -> dict[int, _Seat]:
        return {w: seat for w, seat in self._seats.items() if seat.node not in self._draining}

    def _alone(self, seat: _Seat) -> bool:
        """Whether a worker has a suspect, beside which nothing runs."""
        return any(map(self._is_suspect, seat.holds))

    def _is_suspect(self, unit: int) -> bool:
        """Whether a unit runs alone: it did not fit, or workers have died while it ran.

        Whoever dies with it then does not die for its neighbour's sake.
        """
        return bool(self._shrink[unit]) or self._deaths[unit] >= MAX_SHARED

    def _is_hopeless(self, unit: int) -> bool:
        deaths, without = self._deaths[unit], self._lost - self._deaths[unit]
        guilty = self._alone_deaths[unit] - without >= MAX_FAILURES
        return guilty or deaths >= MAX_DEATHS or self._shrink[unit] >= MAX_FAILURES

    def _give(self, worker: int, unit: int, now: float) -> Order:
        again = unit in self._begun
        self.redone += again
        self._seats[worker].take(unit, now)
        self._holders[unit].append(worker)
        return Order(worker, unit, self._shrink[unit], again)

    def _may(self, seat: _Seat, unit: int) -> bool:
        return seat.takes_bound or unit not in self._bound

    def _first(self, queue: deque[int], seat: _Seat) -> int | None:
        """The first unit of a queue that a worker may have."""
        return next((unit for unit in queue if self._may(seat, unit)), None)

    def _give_suspects(self, now: float) -> Iterable[Order]:
        for worker, seat in self._open().items():
            unit = None if seat.holds else self._first(self._apart, seat)
            if unit is not None:
                self._apart.remove(unit)
                yield self._give(worker, unit, now)

    def _give_next(self, now: float) -> Iterable[Order]:
        """Give the units left to whoever has most room."""
        seats = {w: seat for w, seat in self._open().items() if not self._alone(seat)}
        # As many as there are suspects left run empty, so that each finds a place.
        emptiest = sorted(seats, key=lambda worker: len(seats[worker].holds))
        for suspect in self._apart:
            able = [w for w in emptiest if w in seats and self._may(seats[w], suspect)]
            for worker in able[:1]:
                del seats[worker]
        loads = self._loads() if self._left else Counter()
        while self._left and seats:
            # Of workers with as much room, one on a node whose line has least to carry.
            worker = max(seats, key=lambda w: (seats[w].idle, -loads[seats[w].node]))
            unit = self._first(self._left, seats[worker])
            if unit is None:
                del seats[worker]  # what is left is not for it
                continue
            nbytes = self._sizes[unit]
            ahead = 1 if self._left_bytes >= PREFETCH_UNITS * len(seats) * nbytes else 0
            if seats[worker].idle + ahead <= 0:
                return
            loads[seats[worker].node] += nbytes
            self._left_bytes -= nbytes
            self._left.remove(unit)
            yield self._give(worker, unit, now)

    def _loads(self) -> Counter[str]:
        """Bytes of the units that each node has."""
        loads: Counter[str] = Counter()
        for seat in self._seats.values():
            loads[seat.node] += sum(map(self._sizes.__getitem__, seat.holds))
        return loads

    def _give_copies(self, now: float) -> Iterable[Order]:
        """Give stragglers to workers with nothing to do: unbegun ones first, then the worst."""
        idle = [w for w, s in self._open().items() if s.idle > 0 and not self._alone(s)]
        late = self._late(now) if idle else []
        for *_, unit in sorted(late):
            (holder,) = self._holders[unit]
            able = [w for w in idle if w != holder and self._may(self._seats[w], unit)]
            away = [w for w in able if self._seats[w].node != self._seats[holder].node]
            # Rather on another node: what slows one worker often slows its neighbours.
            for worker in (away or able)[:1]:
                idle.remove(worker)
                self._begun.add(unit)
                yield self._give(worker, unit, now)

    def _late(self, now: float) -> list[tuple[bool, float, int]]:
        """Units that one worker has and that should have landed: whether begun, and how late."""
        if not self._rates:
            return []
        rate = median(self._rates)
        found: list[tuple[bool, float, int]] = []
        for unit, holders in self._holders.items():
            if len(holders) != 1 or self._is_suspect(unit):
                continue
            held = self._seats[holders[0]].holds
            # One that waits is as late as what it waits for.
            taken = now - (held[unit] if held[unit] < inf else min(held.values()))
            usual = max(rate * self._sizes[unit], STRAGGLING_S / STRAGGLING)
            if taken > STRAGGLING * usual:
                found.append((held[unit] < inf, -taken / usual, unit))
        return found
