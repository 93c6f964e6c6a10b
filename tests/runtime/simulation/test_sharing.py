"""Units that share the lines and devices of a node, by tables and by whatever Hypothesis draws."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymerge.runtime.simulation.demands import Demand
from raymerge.runtime.simulation.fleet import CORE_GBPS, GB, Fleet
from raymerge.runtime.simulation.sharing import speeds


def fleet(connection_gbps: float | None = None) -> Fleet:
    """Nodes that read 10 GB/s and write 5."""
    return Fleet(
        nodes=1,
        gpus_per_node=0,
        cpus_per_node=1,
        threads=1,
        read_gbps=10,
        write_gbps=5,
        connection_gbps=connection_gbps,
        merge_gbps=CORE_GBPS,
    )


CORES = {0: 1, 1: 1, 2: 2}


def demand(read: float = 0, merge_s: float = 0, write: float = 0) -> Demand:
    return Demand(read * GB, merge_s, write * GB)


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        ([(0, demand(read=10))], [1]),
        ([(0, demand(read=10))] * 2, [0.5, 0.5]),
        ([(0, demand(read=10)), (1, demand(read=20))], [0.5, 0.25]),  # the same bytes
        ([(0, demand(write=5)), (1, demand(read=10))], [1, 1]),
        ([(0, demand(merge_s=2)), (1, demand(merge_s=2))], [0.5, 0.5]),
        ([(0, demand(merge_s=2)), (0, demand(merge_s=2))], [0.25, 0.25]),
        ([(2, demand(merge_s=2)), (2, demand(merge_s=2))], [0.5, 0.5]),  # a thread for each
        ([(0, demand(10, 1, 5))], [1]),  # all at once
        # Both are slowed alike, also the one that its device held up already.
        ([(0, demand(read=10)), (1, demand(read=10, merge_s=4))], [0.8, 0.2]),
        # But not by what they do not use.
        ([(0, demand(read=10)), (0, demand(read=10)), (1, demand(merge_s=4))], [0.5, 0.5, 0.25]),
        ([], []),
    ],
)
def test_units_share_what_they_use(
    running: Sequence[tuple[int, Demand]], expected: Sequence[float]
) -> None:
    assert speeds(running, fleet(), CORES) == pytest.approx(expected)


def test_a_unit_has_no_more_than_its_connections_carry() -> None:
    slow = fleet(0.1)
    assert speeds([(0, demand(read=0.8))], slow, CORES) == pytest.approx([1])  # 8 ranges at once
    assert speeds([(0, demand(write=0.4))], slow, CORES) == pytest.approx([1])  # 4 parts at once


amounts = st.floats(1e-3, 100) | st.just(0.0)
demands = st.builds(demand, amounts, amounts, amounts).filter(any)


@given(
    running=st.lists(st.tuples(st.integers(0, 2), demands), max_size=12),
    cores=st.fixed_dictionaries(dict.fromkeys(range(3), st.integers(1, 3))),
)
def test_nothing_is_overused_and_nobody_could_be_faster(
    running: list[tuple[int, Demand]], cores: dict[int, int]
) -> None:
    found = speeds(running, fleet(), cores)
    used = dict.fromkeys(["read", "write", 0, 1, 2], 0.0)
    for (device, asked), speed in zip(running, found, strict=True):
        used["read"] += speed * asked.read_bytes / (10 * GB)
        used["write"] += speed * asked.write_bytes / (5 * GB)
        used[device] += speed * asked.merge_s / cores[device]
        assert speed > 0
    assert all(share <= 1 + 1e-6 for share in used.values())
    for (device, asked), speed in zip(running, found, strict=True):
        mine = {"read": asked.read_bytes, "write": asked.write_bytes, device: asked.merge_s}
        alone = max(asked.read_bytes / (10 * GB), asked.merge_s, asked.write_bytes / (5 * GB))
        full = any(amount and used[what] > 1 - 1e-6 for what, amount in mine.items())
        assert full or speed * alone == pytest.approx(1)
