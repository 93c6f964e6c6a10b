"""Merges on a cluster of several nodes, to which things happen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from threading import Thread

import pyarrow.parquet as pq
import pytest
import ray

from raymerge.errors import ClusterError
from raymerge.plan.build import Plan
from raymerge.runtime import ray_cluster
from raymerge.runtime.cluster import ClusterEngine
from raymerge.runtime.engine import LOOK_S
from raymerge.runtime.placement import Hiring, one_worker, spread
from tests.chaos import LATENCY_S, chaos, run, sixty_units
from tests.clusters import Nodes, nodes
from tests.conftest import Place, shard_hashes

# Ray leaves its processes' handles and pipes to the garbage collector.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes(3, num_cpus=2, num_gpus=2, labels={"market": "spot"}) as started:
        yield started


@pytest.fixture
def plan(place: Place) -> Plan:
    return sixty_units(place)


def test_each_gpu_has_a_worker_of_its_own(cluster: Nodes) -> None:
    """Six of them on three nodes, though only Ray believes in them."""
    one = one_worker("cuda", memory_bytes=None)
    places = spread(ray_cluster.nodes(), one, workers=None)
    actors = [ray_cluster.hire(spot, 1, group=None) for spot in places]
    reports = [ray_cluster.answer(actor.start.remote({}, b"")) for actor in actors]
    for actor in actors:
        ray_cluster.end(actor)

    seen = [(spot.node, report.devices) for spot, report in zip(places, reports, strict=True)]
    assert sorted(seen) == [
        (node, device)
        for node in sorted(node.node_id for node in cluster.there)
        for device in ("0", "1")
    ]


def test_only_nodes_with_the_label_are_used(cluster: Nodes, plan: Plan, place: Place) -> None:
    used: set[str] = set()

    def watch(engine: ClusterEngine) -> None:
        used.update(member.place.node for member in engine.crew.members.values())

    run(plan, place / "out", watch, hiring=Hiring(labels={"market": "in(spot)"}), latency_s=0)
    assert used == {node.node_id for node in cluster.there}
    with pytest.raises(ClusterError, match="no node is such as was asked for"):
        run(plan, place / "other", watch, hiring=Hiring(labels={"market": "on-demand"}))


def test_an_autoscaler_is_told_what_is_wanted_and_to_forget_it(
    cluster: Nodes, plan: Plan, place: Place
) -> None:
    """What it would bring is not waited for; without one as many workers are refused at once."""
    number = 2 * len(cluster.there) + 1
    told: list[int] = []

    def watch(engine: ClusterEngine) -> None:
        told.append(len(cluster.wanted()))
        assert len(engine.crew.members) == number - 1

    with pytest.raises(ClusterError, match=rf"{number} workers of 1 CPU each do not fit"):
        run(plan, place / "out", watch, workers=number, latency_s=0)
    with cluster.autoscaled():
        result = run(plan, place / "out", watch, workers=number, latency_s=0)
    assert result.workers <= number - 1
    assert told == [number]
    assert cluster.wanted() == []


@pytest.mark.usefixtures("cluster")
def test_workers_stay_in_a_placement_group(plan: Plan, place: Place) -> None:
    group = ray.util.placement_group([{"CPU": 1}] * 2, strategy="SPREAD", name="merge")
    assert group.wait(30)
    used: list[tuple[int, int | None]] = []

    def watch(engine: ClusterEngine) -> None:
        used.extend((m.place.num_cpus, m.place.bundle) for m in engine.crew.members.values())

    run(plan, place / "out", watch, hiring=Hiring(placement_group="merge"), latency_s=0)
    ray.util.remove_placement_group(group)
    assert sorted(used) == [(1, 0), (1, 1)]
    with pytest.raises(ClusterError, match="no placement group 'other'"):
        run(plan, place / "more", watch, hiring=Hiring(placement_group="other"))


def test_a_node_with_a_notice_finishes_what_runs_and_gets_no_more(
    cluster: Nodes, plan: Plan, place: Place
) -> None:
    expected = run(plan, place / "local").shards
    doomed = cluster.there[-1]
    going: set[str] = set()
    noticed_s: list[float] = []

    def preempt(engine: ClusterEngine) -> None:
        for member in engine.crew.started:
            if member.place.node == doomed.node_id and member.report:
                going.add(f"{member.report.host}:{member.report.pid}")
        time.sleep(1.5)
        cluster.drain(doomed, 4)
        noticed_s.append(time.time())
        time.sleep(4)
        cluster.kill(doomed)

    threads: list[Thread] = []

    def watch(engine: ClusterEngine) -> None:
        threads.append(Thread(target=preempt, args=[engine]))
        threads[0].start()

    result = run(plan, place / "out", watch)
    threads[0].join()
    cluster.join()

    assert result.shards == expected
    assert (result.lost_workers, result.redone_units, result.retries) == (0, 0, 0)
    units = pq.read_table(place / "out" / "raymerge-units.parquet").to_pylist()
    began_s = [unit["began"].timestamp() for unit in units if unit["worker"] in going]
    assert min(began_s) < noticed_s[0]
    assert max(began_s) < noticed_s[0] + 2 * LOOK_S


def test_a_node_that_joins_gets_work(cluster: Nodes, plan: Plan, place: Place) -> None:
    cluster.kill(gone := cluster.there[-1])
    cluster.await_missed(gone)
    threads = [Thread(target=cluster.join)]
    # Long enough for a node to start, and a worker on it, while others are at work.
    result = run(plan, place / "out", lambda _engine: threads[0].start(), latency_s=3 * LATENCY_S)
    threads[0].join()

    assert (result.lost_workers, result.redone_units) == (0, 0)
    assert result.workers == len(cluster.there)
    units = pq.read_table(place / "out" / "raymerge-units.parquet").to_pylist()
    assert len({unit["worker"] for unit in units}) == len(cluster.there)


@pytest.mark.timeout(240)
def test_nothing_is_lost_while_workers_and_nodes_come_and_go(
    cluster: Nodes, plan: Plan, place: Place
) -> None:
    """Twice here; `make soak` does it fifty times."""
    expected = run(plan, place / "local").shards
    for seed in range(2):
        result, done = chaos(cluster, plan, place / "out", seed, patient=True)
        assert done
        assert result.shards == expected
        assert shard_hashes(place / "out") == {shard.name: shard.sha256 for shard in expected}
