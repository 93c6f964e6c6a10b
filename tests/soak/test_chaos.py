"""Fifty merges while workers and nodes come and go."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.chaos import chaos, run, sixty_units
from tests.clusters import Nodes, nodes
from tests.conftest import Place, shard_hashes

# Ray leaves its processes' handles and pipes to the garbage collector.
pytestmark = [
    pytest.mark.soak,
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
RUNS = os.environ.get("RAYMERGE_CHAOS", "0:50")
"""Which ones, `first:end`."""
MOST_REDONE = 0.15
"""Of a merge's units, on average."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes(3, num_cpus=2) as started:
        yield started


@pytest.mark.timeout(3600)
def test_every_merge_is_whole_and_equal_and_little_is_done_twice(
    cluster: Nodes, place: Place
) -> None:
    plan = sixty_units(place)
    expected = run(plan, place / "local").shards
    numbers = range(*map(int, RUNS.split(":")))
    redone = lost = events = 0
    for number in numbers:
        result, done = chaos(cluster, plan, place / "out", number)
        print(  # noqa: T201 - what is going on
            f"{number}: {result.seconds:.1f} s, {result.lost_workers} workers lost, "
            f"{result.redone_units} units redone: {', '.join(done)}"
        )
        assert result.shards == expected
        assert shard_hashes(place / "out") == {shard.name: shard.sha256 for shard in expected}
        redone, lost = redone + result.redone_units, lost + result.lost_workers
        events += len(done)
    share = redone / (len(numbers) * len(plan.units))
    print(  # noqa: T201 - the figures
        f"{len(numbers)} merges of {len(plan.units)} units, {events} events, {lost} workers lost, "
        f"{redone} units redone: {share:.1%}"
    )
    assert events >= len(numbers)
    assert share <= MOST_REDONE
