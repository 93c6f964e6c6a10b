"""The scheduler by tables, and by clusters that do whatever Hypothesis thinks of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.runtime.schedule import MAX_DEATHS, MAX_FAILURES, MAX_SHARED, Loss, Order, Schedule


def schedule(
    sizes: Sequence[int], workers: Sequence[int] = (), *, copies: bool = False
) -> Schedule:
    """Units of these sizes, and workers of so many threads on nodes of their own: a, b, c."""
    made = Schedule(dict(enumerate(sizes)), copies=copies)
    for worker, threads in enumerate(workers):
        made.join(worker, "abcdefgh"[worker], threads)
    return made


def given_to(orders: Sequence[Order]) -> dict[int, list[int]]:
    """Units by the worker that they were given to."""
    found: dict[int, list[int]] = {}
    for order in orders:
        found.setdefault(order.worker, []).append(order.unit)
    return found


@pytest.mark.parametrize(
    ("num_units", "workers", "expected"),
    [
        (9, [1, 1], {0: [0, 2], 1: [1, 3]}),  # one runs, one waits
        # Whoever has most room first, then whose node has least to carry.
        (9, [2, 1], {0: [0, 2, 4], 1: [1, 3]}),
        (6, [1, 1], {0: [0, 2], 1: [1]}),  # fewer than two left for each: none waits any more
        (3, [1, 1], {0: [0], 1: [1]}),
        (1, [2, 2], {0: [0]}),
        (0, [1], {}),
        (4, [], {}),
    ],
)
def test_units_are_given_in_order_to_whoever_has_room(
    num_units: int, workers: list[int], expected: dict[int, list[int]]
) -> None:
    assert given_to(schedule([1] * num_units, workers).orders(0)) == expected


def test_workers_of_one_node_do_not_get_everything_first() -> None:
    play = schedule([1] * 2)
    for worker, node in enumerate("aabb"):
        play.join(worker, node, 2)
    assert given_to(play.orders(0)) == {0: [0], 2: [1]}


def test_many_small_units_do_not_make_large_ones_wait_their_turn() -> None:
    sizes = [100] * 4 + [1] * 50
    assert given_to(schedule(sizes, [1, 1]).orders(0)) == {0: [0], 1: [1]}


def test_a_slow_worker_gets_less_and_nobody_waits_for_long() -> None:
    """Two workers, one five times as slow, on 60 units of 1 s: 10 and 50, ended within 5 s."""
    play = schedule([1] * 60, [1, 1])
    pace_s = {0: 1.0, 1: 5.0}
    landed: Counter[int] = Counter()
    ends: dict[int, float] = {}
    now = 0.0
    while not play.done:
        play.orders(now)
        for worker, unit_s in pace_s.items():
            if play.holds(worker) and worker not in ends:
                ends[worker] = now + unit_s
        worker = min(ends, key=lambda worker: ends[worker])
        now = ends.pop(worker)
        play.land(worker, play.holds(worker)[0], now)
        landed[worker] += 1
    assert landed[1] in range(9, 12)
    assert now <= 60 / 1.2 + 5


def test_whoever_joins_late_gets_work() -> None:
    play = schedule([1] * 9, [1])
    assert given_to(play.orders(0)) == {0: [0, 1]}
    play.join(7, "late", 2)
    assert given_to(play.orders(1)) == {7: [2, 3, 4]}


def test_a_node_that_is_about_to_go_gets_no_more_and_its_units_are_not_blamed() -> None:
    play = schedule([1] * 9, [1, 1])
    play.orders(0)
    assert play.drain({"a"}) == [0]
    assert play.drain({"a"}) == []
    play.give_back(0, 2, 1)  # it waited its turn
    assert play.land(0, 0, 1)  # it ran to its end
    assert play.holds(0) == ()
    assert given_to(play.orders(1)) == {}
    assert play.land(1, 1, 2)
    assert given_to(play.orders(2)) == {1: [2]}
    play.leave(0, Loss.DIED)
    assert (play.redone, play.given_up) == (0, [])


@pytest.mark.parametrize("why", [Loss.DIED, Loss.BROKEN])
def test_a_unit_that_takes_three_workers_with_it_is_given_up(why: Loss) -> None:
    play = schedule([1] * 9)
    for worker in range(MAX_FAILURES):
        play.join(worker, "a", 1)
        given = given_to(play.orders(0))[worker]
        # Its last try is made alone, and what waited behind it is not to blame.
        assert given == ([0] if worker == MAX_FAILURES - 1 else [0, 1])
        assert play.given_up == []
        play.leave(worker, why)
    assert play.given_up == [0]


def test_a_unit_is_not_judged_by_deaths_beside_others() -> None:
    play = schedule([1] * 3)
    for worker in range(5):
        assert play.given_up == []
        play.join(worker, "a", 3)
        given = given_to(play.orders(0))[worker]
        assert given == ([0, 1, 2] if worker < MAX_SHARED else [0])
        play.leave(worker, Loss.DIED)
    assert play.given_up == [0]


def test_deaths_without_a_unit_speak_for_it() -> None:
    """Workers die every other moment whatever they do; at last only one unit is left."""
    play = schedule([1] * 4)
    for worker in range(MAX_DEATHS):
        play.join(worker, "a", 1)
        play.join(100 + worker, "b", 1)
        assert play.given_up == []
        play.orders(0)
        assert play.holds(worker)[0] == 0
        play.leave(100 + worker, Loss.DIED)
        play.leave(worker, Loss.DIED)
    assert sorted(play.given_up) == [0, 1]


def test_preemption_is_never_blamed_on_a_unit() -> None:
    play = schedule([1])
    for worker in range(50):
        play.join(worker, "a", 1)
        assert play.orders(0) == [Order(worker, 0)]
        play.leave(worker, Loss.PREEMPTED)
    assert (play.redone, play.given_up) == (49, [])


def test_a_suspect_stays_one_where_its_worker_is_preempted() -> None:
    play = schedule([1] * 4)
    play.join(0, "a", 1)
    play.orders(0)
    play.cramp(0, 0, 0)
    play.leave(0, Loss.PREEMPTED)
    play.join(1, "b", 1)
    assert play.orders(1) == [Order(1, 0, shrink=1)]


def test_bound_units_go_to_those_who_may_have_them() -> None:
    play = Schedule(dict.fromkeys(range(6), 1), copies=True, bound={0, 1, 5})
    play.join(0, "a", 1, takes_bound=False)
    assert not play.is_staffed
    assert given_to(play.orders(0)) == {0: [2, 3]}
    play.join(1, "b", 1)
    assert play.is_staffed
    for now, unit in ((1, 0), (2, 1), (3, 4)):
        assert given_to(play.orders(now)) == {1: [unit]}
        assert unit == 4 or play.land(1, unit, now)
    assert play.land(0, 2, 4)
    assert play.land(0, 3, 5)
    assert play.orders(5) == []  # what is left is not for worker 0, which has nothing to do
    assert play.land(1, 4, 6)
    assert given_to(play.orders(6)) == {1: [5]}
    assert play.orders(999) == []  # nor is a copy of it
    play.leave(1, Loss.DIED)
    assert not play.is_staffed


def test_units_of_a_worker_that_ran_out_of_memory_run_alone_in_smaller_tiles() -> None:
    play = schedule([1] * 9, [2])
    assert given_to(play.orders(0)) == {0: [0, 1, 2]}
    play.leave(0, Loss.MEMORY)
    play.join(1, "a", 2)
    assert play.orders(1) == [Order(1, 0, shrink=1)]
    assert play.land(1, 0, 2)
    assert play.orders(2) == [Order(1, 1, shrink=1)]
    assert play.land(1, 1, 3)
    assert [order.unit for order in play.orders(3)] == [2, 3, 4]


def test_a_unit_that_does_not_fit_is_tried_smaller_and_smaller() -> None:
    play = schedule([1] * 2, [1, 1])
    for shrink in range(MAX_FAILURES):
        order = next(order for order in play.orders(0) if order.unit == 0)
        assert order.shrink == shrink
        assert not play.given_up
        play.cramp(order.worker, 0, 0)
    assert play.given_up == [0]


def test_a_suspect_is_not_put_off_while_others_keep_every_worker_busy() -> None:
    play = schedule([1] * 99, [2, 2])
    play.orders(0)
    play.cramp(0, 0, 0)
    for worker in (0, 1, 0):
        for unit in play.holds(worker):
            play.land(worker, unit, 1)
        if any(order.shrink for order in play.orders(1)):
            return
    pytest.fail("the suspect has not been given out")


def test_a_straggler_is_copied_to_another_node_once_there_is_nothing_else() -> None:
    play = schedule([100] * 3, [1, 1], copies=True)
    assert given_to(play.orders(0)) == {0: [0], 1: [1]}
    assert play.land(1, 1, 2)
    assert given_to(play.orders(2)) == {1: [2]}
    assert play.land(1, 2, 4)
    assert play.orders(9.9) == []  # 2 s are usual, but a moment's work is no straggler yet
    assert play.orders(10.1) == [Order(1, 0)]
    assert play.orders(99) == []
    assert play.land(1, 0, 100)
    assert play.done
    assert play.holds(0) == (0,)
    assert not play.land(0, 0, 101)
    assert play.redone == 1


def test_what_waits_behind_a_straggler_is_copied_before_it() -> None:
    play = schedule([100] * 7, [1, 1], copies=True)
    assert given_to(play.orders(0)) == {0: [0, 2], 1: [1, 3]}
    for now, unit in ((6, 1), (12, 3), (18, 4), (24, 5), (30, 6)):
        assert play.land(1, unit, now)
        play.orders(now)
    assert play.holds(1) == (2,)
    assert play.land(1, 2, 36)
    assert play.orders(36) == [Order(1, 0)]


def test_a_unit_goes_on_where_its_copy_was_lost() -> None:
    play = schedule([100] * 2, [1, 1], copies=True)
    play.orders(0)
    play.land(1, 1, 2)
    assert play.orders(60) == [Order(1, 0)]
    play.leave(1, Loss.DIED)
    assert play.orders(61) == []
    assert play.land(0, 0, 62)
    assert play.done


class Storm:
    """A cluster to which things happen, and what must hold whatever does."""

    def __init__(self, sizes: Sequence[int], *, copies: bool) -> None:
        self.sizes = sizes
        self.copies = copies
        self.play = schedule(sizes, copies=copies)
        self.now = 0.0
        self.crew: dict[int, tuple[str, int]] = {}
        self.draining: set[str] = set()
        self.landed: Counter[int] = Counter()
        self.blamed: Counter[int] = Counter()
        self.hired = 0

    def join(self, node: str, threads: int) -> None:
        self.hired += 1
        self.crew[self.hired] = node, threads
        self.play.join(self.hired, node, threads)

    def orders(self) -> None:
        held = {unit for worker in self.crew for unit in self.play.holds(worker)}
        for order in self.play.orders(self.now):
            node, threads = self.crew[order.worker]
            assert node not in self.draining
            assert not self.landed[order.unit]
            assert self.copies or order.unit not in held
            holds = self.play.holds(order.worker)
            assert len(set(holds)) == len(holds) <= threads + 1
            if order.shrink:
                assert holds == (order.unit,)
            held.add(order.unit)

    def land(self, worker: int, unit: int) -> None:
        self.landed[unit] += self.play.land(worker, unit, self.now)

    def lose(self, worker: int, why: Loss) -> None:
        node, threads = self.crew.pop(worker)
        if why is not Loss.PREEMPTED and node not in self.draining:
            self.blamed.update(self.play.holds(worker)[:threads])
        self.play.leave(worker, why)

    def happen(self, what: int) -> None:
        """One thing, chosen by a number: most often a unit lands."""
        self.now += what % 7
        kind, pick = what % 16, what // 16
        busy = [w for w in self.crew if self.play.holds(w)]
        if kind == 0:
            self.join("abcdef"[pick % 6], 1 + pick % 3)
        elif kind == 1 and self.crew:
            reasons = list(Loss)
            self.lose(list(self.crew)[pick % len(self.crew)], reasons[pick % len(reasons)])
        elif kind == 2:
            self.draining = {"abcdef"[pick % 6]} if pick % 2 else set()
            self.play.drain(self.draining)
        elif busy:
            worker = busy[pick % len(busy)]
            holds = self.play.holds(worker)
            if kind == 3:
                self.blamed[holds[0]] += 1
                self.play.cramp(worker, holds[0], self.now)
            elif kind == 4:
                self.play.give_back(worker, holds[-1], self.now)
            else:
                self.land(worker, holds[pick % min(len(holds), self.crew[worker][1])])
        self.orders()

    def clear_up(self) -> None:
        """Bring in someone new, and let everything land that can."""
        self.join("new", 1)
        for _ in range(3 * len(self.sizes) + 10):
            self.now += 1
            self.orders()
            for worker in self.crew:
                for unit in self.play.holds(worker)[:1]:
                    self.land(worker, unit)


@given(
    sizes=st.lists(st.integers(1, 10**9), max_size=25),
    events=st.lists(st.integers(0, 10**6), max_size=120),
    copies=st.booleans(),
)
def test_every_unit_lands_once_whatever_happens(
    sizes: list[int], events: list[int], *, copies: bool
) -> None:
    storm = Storm(sizes, copies=copies)
    for event in events:
        storm.happen(event)
        given_up = set(storm.play.given_up)
        assert all(storm.blamed[unit] >= MAX_FAILURES for unit in given_up)
        if given_up:
            return  # here a run ends with an error
    storm.clear_up()
    assert storm.play.done
    assert storm.landed == Counter(range(len(sizes)))


@given(
    sizes=st.lists(st.integers(1, 10**9), min_size=1, max_size=25),
    events=st.lists(st.integers(0, 10**6), max_size=60),
)
def test_what_is_redone_was_lost(sizes: list[int], events: list[int]) -> None:
    """Without losses no unit is ever given out twice."""
    storm = Storm(sizes, copies=False)
    storm.join("a", 2)
    for event in events:
        if event % 16 not in {1, 3, 4}:
            storm.happen(event)
    assert storm.play.redone == 0
    assert storm.play.given_up == []
    assert max(storm.landed.values(), default=0) <= 1
