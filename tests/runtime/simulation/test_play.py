"""Runs whose times are known by hand, and what holds of any."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.runtime.simulation.demands import Demand, Round, Work, total
from raymerge.runtime.simulation.fleet import CORE_GBPS, GB, Fleet
from raymerge.runtime.simulation.play import Play


def fleet(nodes: int = 1, gpus: int = 1, threads: int = 2, cpu_workers: int = 0) -> Fleet:
    """Lines of 1 GB/s in and out."""
    return Fleet(
        nodes=nodes,
        gpus_per_node=gpus,
        cpus_per_node=8,
        threads=threads,
        read_gbps=1,
        write_gbps=1,
        merge_gbps=CORE_GBPS,
        cpu_workers=cpu_workers,
    )


def merge(units: Sequence[Sequence[Demand]]) -> Round:
    """A unit for each sequence of demands."""
    works = (Work(number, 1, tuple(demands)) for number, demands in enumerate(units))
    return Round("merge", tuple(works))


def read(gigabytes: float) -> Demand:
    return Demand(gigabytes * GB, 0, 0)


def kernels(seconds: float) -> Demand:
    return Demand(0, seconds, 0)


def played(one: Round, on: Fleet) -> Play:
    play = Play(on)
    play.run(one)
    return play


def test_one_unit_reads_and_then_merges() -> None:
    play = played(merge([[read(2), kernels(3)]]), fleet())
    assert play.now == pytest.approx(5)
    assert [seat.busy_s for seat in play.seats] == pytest.approx([5])


def test_one_unit_reads_beside_another_s_kernels() -> None:
    """Two of six units run at once: while one reads for 1 s the other merges for 1 s."""
    play = played(merge([[read(1), kernels(1)]] * 6), fleet())
    alternating, in_step = 7, 12 + 1e-6
    assert alternating <= play.now <= in_step
    assert played(merge([[read(1), kernels(1)]] * 6), fleet(threads=1)).now == pytest.approx(12)


def test_workers_of_a_node_share_its_line_and_nodes_do_not() -> None:
    eight = merge([[read(1)]] * 8)
    assert played(eight, fleet(nodes=1, gpus=4)).now == pytest.approx(8)
    assert played(eight, fleet(nodes=4, gpus=1)).now == pytest.approx(2)


def test_a_unit_that_lasts_makes_an_idle_tail() -> None:
    play = played(merge([[kernels(4)], [kernels(1)]]), fleet(nodes=2, threads=1))
    assert play.now == pytest.approx(4)
    assert play.idle_tail_s == pytest.approx(3)
    assert [seat.busy_s for seat in play.seats] == pytest.approx([4, 1])


def test_a_straggler_is_copied_as_in_a_real_run() -> None:
    """Unit 0 takes 100 s where its bytes take others 1 s; its copy takes as long, and loses."""
    play = played(merge([[kernels(100)], *[[kernels(1)]] * 6]), fleet(nodes=2, threads=1))
    assert play.redone_units >= 1
    assert play.now == pytest.approx(100)


def test_rounds_follow_each_other() -> None:
    play = Play(fleet())
    play.run(Round("count_high", merge([[read(1)]]).works))
    play.run(merge([[read(2)]]))
    assert play.now == pytest.approx(3)
    (site,) = play.sites.values()
    assert site.read_bytes == pytest.approx(3 * GB)


def beside_a_gpu(number: int, *, bound: bool) -> Round:
    """Units that take a GPU 1 s of its kernels, and a thread 3 s."""
    both = ((kernels(1),), (kernels(3),))
    return Round("merge", tuple(Work(unit, 1, *both, bound=bound) for unit in range(number)))


def test_workers_on_cpus_take_units_beside_those_on_gpus() -> None:
    """Two in 2 s go through the GPU, and two in 3 s through the two threads beside it."""
    play = played(beside_a_gpu(8, bound=False), fleet(cpu_workers=1))
    assert [seat.busy_s for seat in play.seats] == pytest.approx([4, 6])
    assert (play.now, play.idle_tail_s) == pytest.approx((6, 2))
    (site,) = play.sites.values()
    assert site.merge_s == pytest.approx({0: 4, 1: 12})


def test_units_that_are_bound_to_gpus_stay_there() -> None:
    play = played(beside_a_gpu(4, bound=True), fleet(cpu_workers=1))
    assert [seat.busy_s for seat in play.seats] == pytest.approx([4, 0])
    assert (play.now, play.idle_tail_s) == pytest.approx((4, 4))


stretches = st.builds(Demand, st.floats(0, 5e9), st.floats(0, 5), st.floats(0, 5e9)).filter(
    lambda one: max(one.read_bytes / GB, one.merge_s, one.write_bytes / GB) > 1e-3
)
units = st.lists(st.lists(stretches, min_size=1, max_size=3), min_size=1, max_size=20)


@given(units=units, nodes=st.integers(1, 3), gpus=st.integers(1, 3))
def test_all_is_done_and_no_faster_than_it_can_be(
    units: list[list[Demand]], nodes: int, gpus: int
) -> None:
    play = played(merge(units), fleet(nodes, gpus))
    demands = list(chain.from_iterable(units))
    wanted = total(demands)
    sites = play.sites.values()
    moved = [
        sum(site.read_bytes for site in sites),
        sum(sum(site.merge_s.values()) for site in sites),
        sum(site.write_bytes for site in sites),
    ]
    if not play.redone_units:
        assert moved == pytest.approx(wanted, rel=1e-6, abs=10)
    lines_s = max(wanted.read_bytes, wanted.write_bytes) / GB / nodes
    least_s = max(lines_s, wanted.merge_s / (nodes * gpus))
    alone_s = sum(max(d.read_bytes / GB, d.merge_s, d.write_bytes / GB) for d in demands)
    # Rounding adds up from one event to the next.
    slack_s = 1e-5 * len(demands)
    # A unit that is late is begun once more elsewhere, on lines that both then share.
    most_s = alone_s * (2 if play.redone_units else 1)
    assert least_s - slack_s <= play.now <= most_s + slack_s
    assert all(seat.busy_s <= play.now + slack_s for seat in play.seats)
