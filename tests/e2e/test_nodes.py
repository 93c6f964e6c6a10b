"""Merges on a cluster of several nodes, to which things happen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import raymerge
from raymerge.errors import ClusterError
from raymerge.plan.build import Plan
from raymerge.runtime import ray_cluster
from raymerge.runtime.cluster import ClusterEngine
from raymerge.runtime.destination import Destination
from raymerge.runtime.driver import MergeResult, execute
from raymerge.runtime.engine import Engine
from raymerge.runtime.local import LocalEngine
from raymerge.runtime.placement import Hiring, one_worker, spread
from raymerge.runtime.preflight import leave_nonce
from raymerge.runtime.settings import OnProgress, Progress, run_settings
from raymerge.storage.store import Access
from tests.clusters import Far, Nodes, nodes
from tests.conftest import Place
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


def ignore(_progress: Progress) -> None:
    pass


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
