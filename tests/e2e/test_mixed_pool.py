"""Workers on CPUs beside workers on GPUs, which only Ray believes in.

What merges there is torch on `cpu:0`: the kernels of a CUDA device on tensors that any machine has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import raymerge
from raymerge.errors import ClusterError, PlanError
from raymerge.plan.build import Plan
from raymerge.plan.graph import FreeStep
from raymerge.runtime import ray_cluster
from raymerge.runtime.cluster import ClusterEngine
from raymerge.runtime.destination import Destination
from raymerge.runtime.driver import execute
from raymerge.runtime.engine import LOOK_S, Engine
from raymerge.runtime.local import LocalEngine
from raymerge.runtime.placement import Hiring
from raymerge.runtime.settings import OnProgress, RunSettings, run_settings
from raymerge.storage.store import Access
from tests.clusters import nodes
from tests.conftest import Place

# Ray leaves its processes' handles and pipes to the garbage collector.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::ResourceWarning")]

GPU: Any = "cpu:0"


@pytest.fixture(scope="module", autouse=True)
def _two_nodes() -> Iterator[None]:
    with nodes(2, num_cpus=2, num_gpus=1):
        yield


def planned(place: Place, method: str, **top: Any) -> Plan:
    place.llamas(2, layers=6)
    recipe = place.any_recipe(method, **top)
    return raymerge.plan(recipe, engine="local", device="cpu", workers=1, shard_bytes=700)


def pool(settings: RunSettings, report: OnProgress, cpu_workers: int) -> ClusterEngine:
    return ClusterEngine(
        settings,
        workers=2,
        threads=1,
        address=None,
        memory_bytes=None,
        on_progress=report,
        hiring=Hiring(cpu_workers=cpu_workers),
    )


def merged(plan: Plan, out: Path, *, cpu_workers: int | None) -> tuple[dict[str, str], set[str]]:
    """Hashes of the shards, and what merged the tensors of free methods; None merges here."""
    where: dict[int, str] = {}
    devices: dict[str, str] = {}

    def start(destination: Destination, report: OnProgress) -> Engine:
        settings = replace(run_settings(plan, destination.units_at, "cpu"), device=GPU)
        if cpu_workers is None:
            return LocalEngine(settings, threads=2, on_progress=report)
        engine = pool(settings, report, cpu_workers)
        # A run begins without those that take their time.
        while engine.crew.starting:
            for call in ray_cluster.ended(list(engine.crew.starting), LOOK_S):
                engine.crew.settle(call, strict=True)
        for member in engine.crew.started:
            assert member.report
            devices[f"{member.report.host}:{member.report.pid}"] = member.place.device
        inner = engine.run

        def run(*args: Any, **more: Any) -> Iterator[Any]:
            for unit, receipt in inner(*args, **more):
                where[unit.number] = devices[receipt.worker]
                yield unit, receipt

        engine.run = run  # type: ignore[method-assign]
        return engine

    result = execute(
        plan, str(out), start, overwrite=True, on_progress=lambda _: None, access=Access()
    )
    free = {u.number for u in plan.units if any(isinstance(n.step, FreeStep) for n in u.nodes)}
    if cpu_workers:
        assert sorted(devices.values()) == ["cpu"] * cpu_workers + [GPU] * 2
        assert set(where.values()) == {"cpu", GPU}
    return {s.name: s.sha256 for s in result.shards}, {where[n] for n in free & where.keys()}


def test_units_of_free_methods_stay_on_one_kind_of_device(place: Place) -> None:
    plan = planned(place, "sce", keep=["*embed*", "*norm*", "*q_proj*", "*k_proj*"])
    expected, _ = merged(plan, place / "local", cpu_workers=None)
    assert merged(plan, place / "ray", cpu_workers=2) == (expected, {GPU})


def test_units_of_other_methods_go_anywhere(place: Place) -> None:
    plan = planned(place, "ties")
    expected, _ = merged(plan, place / "local", cpu_workers=None)
    assert merged(plan, place / "ray", cpu_workers=2) == (expected, set())


def test_more_of_them_than_there_is_room_for_are_refused(place: Place) -> None:
    settings = replace(run_settings(planned(place, "ties"), str(place.path), "cpu"), device=GPU)
    with (
        pytest.raises(ClusterError, match="3 workers of 1 CPU each do not fit"),
        closing(pool(settings, lambda _: None, 3)),
    ):
        pass


def test_they_are_for_runs_on_gpus(place: Place) -> None:
    place.llamas()
    recipe = place.any_recipe("ties")
    with pytest.raises(PlanError, match=r"the engine is local and the device cpu.*--workers"):
        raymerge.plan(recipe, engine="local", device="cpu", cpu_workers=1)
    done = place.merge(recipe, "out", "--cpu-workers", 1)
    assert (done.rc, done.out) == (2, "")
    assert not (place / "out").exists()
