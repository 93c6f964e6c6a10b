"""Faults of devices and of memory on real workers, which the way to a source stands for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from raymerge.plan.build import Plan
from raymerge.plan.graph import PlannedSource
from raymerge.runtime import ray_cluster
from raymerge.runtime.cluster import ClusterEngine
from raymerge.runtime.destination import Destination
from raymerge.runtime.driver import MergeResult, execute
from raymerge.runtime.settings import OnProgress, run_settings
from raymerge.storage.store import Access
from tests.chaos import run, sixty_units
from tests.conftest import Place
from tests.distant import Asked, DistantFolder

# Ray leaves its processes' handles and pipes to the garbage collector.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module", autouse=True)
def _local_ray() -> Iterator[None]:
    ray_cluster.connect(None, workers=2)
    yield
    ray.shutdown()


@pytest.fixture
def plan(place: Place) -> Plan:
    return sixty_units(place)


@dataclass(frozen=True, slots=True)
class Broken:
    """One process's reads fail as a GPU does, from the fourth on."""

    victim: Path
    """Its process id, as what a link points to: whoever makes it first."""

    def __call__(self, source: PlannedSource, _access: Access) -> DistantFolder:
        folder = DistantFolder(Path(source.location), latency_s=0.02)
        own = str(os.getpid())

        def fail(_asked: Asked) -> None:
            if len(folder.asked) <= 3:
                return
            with suppress(FileExistsError):
                self.victim.symlink_to(own)
            if str(self.victim.readlink()) == own:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

        folder.on_fetch = fail
        return folder


@dataclass(frozen=True, slots=True)
class Cramped:
    """The first read of each of some tensors finds no memory."""

    notes: Path

    def __call__(self, source: PlannedSource, _access: Access) -> DistantFolder:
        folder = DistantFolder(Path(source.location))

        def fail(asked: Asked) -> None:
            _, start, stop = asked
            note = self.notes / f"{source.label}-{start}"
            # Of one source: a unit may fail three times at most.
            if source.label == "a" and stop - start > 1000 and not note.exists():
                note.touch()
                raise MemoryError

        folder.on_fetch = fail
        return folder


def merge(plan: Plan, out: Path, open_source: Broken | Cramped) -> MergeResult:
    def start(destination: Destination, report: OnProgress) -> ClusterEngine:
        settings = run_settings(plan, destination.units_at, "cpu", open_source=open_source)
        return ClusterEngine(
            settings, workers=2, threads=1, address=None, memory_bytes=None, on_progress=report
        )

    return execute(
        plan, str(out), start, overwrite=True, on_progress=lambda _: None, access=Access()
    )


def test_a_worker_whose_device_fails_gets_no_more_and_keeps_its_device(
    place: Place, plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run(plan, place / "local").shards
    result = merge(plan, place / "out", Broken(place / "victim"))
    assert result.shards == expected
    assert result.lost_workers == 1
    assert 1 <= result.redone_units <= 2
    assert "is not used any more: CUDA error: an illegal memory access" in caplog.text


def test_units_that_find_no_memory_are_done_alone_in_smaller_tiles(
    place: Place, plan: Plan
) -> None:
    expected = run(plan, place / "local").shards
    (place / "notes").mkdir()
    result = merge(plan, place / "out", Cramped(place / "notes"))
    assert result.shards == expected
    assert result.lost_workers == 0
    assert result.redone_units > 0
