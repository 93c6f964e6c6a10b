"""Merges on a cluster of several nodes, to which things happen."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread

import pyarrow.parquet as pq
import pytest

import raymerge
from raymerge.errors import ClusterError
from raymerge.plan.build import Plan
from raymerge.runtime import ray_cluster
from raymerge.runtime.cluster import ClusterEngine
from raymerge.runtime.destination import Destination
from raymerge.runtime.driver import MergeResult, execute
from raymerge.runtime.engine import LOOK_S, Engine
from raymerge.runtime.local import LocalEngine
from raymerge.runtime.placement import Hiring, one_worker, spread
from raymerge.runtime.preflight import leave_nonce
from raymerge.runtime.settings import OnProgress, run_settings
from raymerge.storage.store import Access
from tests.clusters import Far, Killer, Nodes, nodes
from tests.conftest import Place, shard_hashes
from tests.distant import remotely

# Ray leaves its processes' handles and pipes to the garbage collector.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::ResourceWarning")]

LATENCY_S = 0.25


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes(3, num_cpus=2, num_gpus=2, labels={"market": "spot"}) as started:
        yield started


@pytest.fixture
def plan(place: Place) -> Plan:
    """Some sixty units of far sources, half a second each."""
    place.llamas(2, layers=7)
    recipe = place.any_recipe("ties")
    planned = raymerge.plan(recipe, engine="local", device="cpu", workers=2, shard_bytes=700)
    assert 55 <= len(planned.units) <= 70
    return remotely(planned)


def run(
    plan: Plan,
    out: Path,
    watch: Callable[[ClusterEngine], None] | None = None,
    *,
    hiring: Hiring | None = None,
    latency_s: float = LATENCY_S,
) -> MergeResult:
    """Merge on the cluster that this process is part of, or here if nobody watches."""

    def start(destination: Destination, report: OnProgress) -> Engine:
        settings = run_settings(
            plan,
            destination.units_at,
            "cpu",
            open_source=Far(latency_s if watch else 0),
            nonce=leave_nonce(destination),
        )
        if watch is None:
            return LocalEngine(settings, threads=2, on_progress=report)
        engine = ClusterEngine(
            settings,
            workers=None,
            threads=2,
            address=None,
            memory_bytes=None,
            on_progress=report,
            hiring=hiring,
        )
        watch(engine)
        return engine

    return execute(
        plan, str(out), start, overwrite=True, on_progress=lambda _: None, access=Access()
    )


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
    cluster.kill(cluster.there[-1])
    threads = [Thread(target=cluster.join)]
    result = run(plan, place / "out", lambda _engine: threads[0].start())
    threads[0].join()

    assert (result.lost_workers, result.redone_units) == (0, 0)
    assert result.workers == len(cluster.there)
    units = pq.read_table(place / "out" / "raymerge-units.parquet").to_pylist()
    assert len({unit["worker"] for unit in units}) == len(cluster.there)


def chaos(cluster: Nodes, plan: Plan, out: Path, seed: int) -> tuple[MergeResult, list[str]]:
    """A merge to the end while its cluster is harmed."""
    killers: list[Killer] = []

    def watch(engine: ClusterEngine) -> None:
        killers.append(Killer(cluster, engine, seed=seed))
        killers[0].start()

    try:
        result = run(plan, out, watch)
    finally:
        killers[0].stop()
    return result, killers[0].done


RUNS = int(os.environ.get("CHAOS_RUNS", "2"))
FIRST_SEED = int(os.environ.get("CHAOS_SEED", "0"))


@pytest.mark.timeout(120 + 60 * RUNS)
def test_nothing_is_lost_while_workers_and_nodes_come_and_go(
    cluster: Nodes, plan: Plan, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """`make soak` has it 50 times."""
    expected = run(plan, place / "local").shards
    redone = lost = events = 0
    for seed in range(FIRST_SEED, FIRST_SEED + RUNS):
        result, done = chaos(cluster, plan, place / "out", seed)
        assert result.shards == expected
        assert shard_hashes(place / "out") == {shard.name: shard.sha256 for shard in expected}
        redone, lost = redone + result.redone_units, lost + result.lost_workers
        events += len(done)
        with capsys.disabled():
            sys.stderr.write(
                f"{seed}: {result.seconds:.1f} s, {result.lost_workers} workers lost, "
                f"{result.redone_units} units redone: {', '.join(done)}\n"
            )
    assert events >= RUNS
    assert redone <= 0.15 * RUNS * len(plan.units), (redone, lost, events)
