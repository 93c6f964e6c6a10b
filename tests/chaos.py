"""A merge of some sixty units on a cluster to which things happen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import raymerge
from raymerge.plan.build import Plan
from raymerge.runtime.cluster import ClusterEngine
from raymerge.runtime.destination import Destination
from raymerge.runtime.driver import MergeResult, execute
from raymerge.runtime.engine import Engine
from raymerge.runtime.local import LocalEngine
from raymerge.runtime.placement import Hiring
from raymerge.runtime.preflight import leave_nonce
from raymerge.runtime.settings import OnProgress, Progress, run_settings
from raymerge.storage.store import Access
from tests.clusters import Far, Killer, Nodes
from tests.conftest import Place
from tests.distant import remotely

LATENCY_S = 0.25


def sixty_units(place: Place) -> Plan:
    """Of sources that are to be read from afar: half a second each, at `LATENCY_S`."""
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
    workers: int | None = None,
    latency_s: float = LATENCY_S,
    on_progress: OnProgress = lambda _: None,
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
            workers=workers,
            threads=2,
            address=None,
            memory_bytes=None,
            on_progress=report,
            hiring=hiring,
        )
        watch(engine)
        return engine

    return execute(plan, str(out), start, overwrite=True, on_progress=on_progress, access=Access())


def chaos(
    cluster: Nodes, plan: Plan, out: Path, seed: int, *, patient: bool = False
) -> tuple[MergeResult, list[str]]:
    """A merge to the end while its cluster is harmed; see `Killer`."""
    killers: list[Killer] = []

    def watch(engine: ClusterEngine) -> None:
        killers.append(Killer(cluster, engine, seed=seed, patient=patient))
        killers[0].start()

    def on_progress(moved: Progress) -> None:
        if moved.written_bytes:
            killers[0].recovered.set()

    try:
        result = run(plan, out, watch, on_progress=on_progress)
    finally:
        killers[0].stop()
    return result, killers[0].done
