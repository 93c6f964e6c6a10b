"""The Ray engine on a local cluster of this module, and twice on one of its own."""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from itertools import takewhile
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import ray
import ray.util.metrics
import torch

import raymerge
from raymerge.errors import ClusterError, NonFiniteError, SourceError
from raymerge.plan.build import Plan
from raymerge.plan.graph import Unit
from raymerge.runtime import crew, ray_cluster
from raymerge.runtime.cluster import ClusterEngine
from raymerge.runtime.engine import Engine
from raymerge.runtime.events import (
    Event,
    OnEvent,
    UnitEnded,
    UnitFailed,
    UnitRedone,
    WorkerJoined,
    WorkerLost,
    nobody,
)
from raymerge.runtime.local import LocalEngine
from raymerge.runtime.placement import Hiring
from raymerge.runtime.ray_counters import RayCounters
from raymerge.runtime.remote import versions
from raymerge.runtime.settings import OnProgress, Progress, RunSettings
from raymerge.runtime.survey import surveyed_units
from raymerge.runtime.trace import trace
from raymerge.storage.posix import PosixShard
from raymerge.storage.store import Access
from tests.checkpoints import fine_tune, write_checkpoint
from tests.conftest import Place, shard_hashes
from tests.figures import FolderFigures
from tests.traces import check_trace

# Ray leaves its processes' handles and pipes to the garbage collector.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::ResourceWarning")]

CPUS = 2
GIB = 2**30


@pytest.fixture(scope="module", autouse=True)
def _local_ray() -> Iterator[None]:
    ray_cluster.connect(None, workers=CPUS)
    yield
    ray.shutdown()


@pytest.fixture
def planned(place: Place) -> Plan:
    """Some forty units, one per shard."""
    place.llamas(3, layers=4)
    return plan_of(place)


def plan_of(place: Place, method: str = "ties", **top: Any) -> Plan:
    recipe = place.any_recipe(method, **top)
    return raymerge.plan(recipe, engine="local", device="cpu", workers=2, shard_bytes=700)


def settings_of(plan: Plan, folder: Path) -> RunSettings:
    return RunSettings(
        sources=plan.sources,
        units_at=str(folder),
        access=Access(),
        seed=plan.recipe.seed,
        nan=plan.recipe.nan,
        budget=plan.memory.budget,
        device="cpu",
    )


def ignore(_progress: Progress) -> None:
    pass


def local(plan: Plan, folder: Path, on_progress: OnProgress = ignore) -> LocalEngine:
    return LocalEngine(settings_of(plan, folder), threads=2, on_progress=on_progress)


def clustered(
    plan: Plan,
    folder: Path,
    workers: int = 2,
    *,
    threads: int = 1,
    memory_bytes: int | None = None,
    on_progress: OnProgress = ignore,
    hiring: Hiring | None = None,
    on_event: OnEvent = nobody,
) -> ClusterEngine:
    return ClusterEngine(
        settings_of(plan, folder),
        workers=workers,
        threads=threads,
        address=None,
        memory_bytes=memory_bytes,
        on_progress=on_progress,
        hiring=hiring,
        on_event=on_event,
    )


def prepare(plan: Plan, folder: Path) -> Callable[[Unit], None]:
    """What a driver does before a unit: the shard's header and length."""
    shards = {shard.name: shard for shard in plan.shards}

    def before(unit: Unit) -> None:
        with PosixShard(folder / unit.shard, unit.shard_bytes) as file:
            file.write_at(shards[unit.shard].header, 0)

    return before


def fill(
    plan: Plan, engine: Engine, folder: Path, during: Callable[[], None] = lambda: None
) -> dict[str, str]:
    """Run a plan, `during` after every unit; returns the shards' hashes."""
    folder.mkdir(exist_ok=True)
    with closing(engine):
        units = surveyed_units(plan, engine, FolderFigures(folder)) if plan.surveyed else plan.units
        landed = []
        for unit, receipt in engine.run("merge", units, before=prepare(plan, folder)):
            assert (receipt.unit, receipt.shard) == (unit.number, unit.shard)
            landed.append(unit.number)
            during()
    assert sorted(landed) == [unit.number for unit in plan.units]
    return shard_hashes(folder)


def pids(engine: ClusterEngine) -> list[int]:
    return [member.report.pid for member in engine.crew.started if member.report]


def ended(pid: int, timeout_s: float = 10) -> bool:
    """Whether a process is gone, or is within the time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_are_those_of_the_local_engine(place: Place, planned: Plan, workers: int) -> None:
    expected = fill(planned, local(planned, place / "local"), place / "local")

    with closing(clustered(planned, place / "ray", workers, threads=2)) as engine:
        # It goes on with the first if the others take long to start.
        while engine.crew.starting:
            for call in ray_cluster.ended(list(engine.crew.starting), 1):
                engine.crew.settle(call)
        assert (engine.name, engine.workers) == ("ray", workers)
        assert fill(planned, engine, place / "ray") == expected
        assert engine.redone_units == 0


def test_a_survey_gives_the_same_figures_and_bytes(place: Place) -> None:
    place.llamas(3)
    plan = plan_of(place, trim="model")
    assert plan.surveyed

    expected = fill(plan, local(plan, place / "local"), place / "local")
    assert fill(plan, clustered(plan, place / "ray"), place / "ray") == expected
    figures = [json.loads((place / name / "survey.json").read_text()) for name in ("local", "ray")]
    assert figures[0] == figures[1]


def test_progress_adds_up_to_what_the_local_engine_reports(place: Place, planned: Plan) -> None:
    totals = {}
    for name, start in (("local", local), ("ray", clustered)):
        moved: list[Progress] = []
        fill(planned, start(planned, place / name, on_progress=moved.append), place / name)
        read_bytes = sum(progress.read_bytes for progress in moved)
        totals[name] = read_bytes, sum(progress.written_bytes for progress in moved)

    assert len(moved) == len(planned.units)
    assert totals["ray"] == totals["local"]


def test_units_of_a_killed_worker_land_elsewhere(
    place: Place, planned: Plan, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = fill(planned, local(planned, place / "local"), place / "local")
    engine = clustered(planned, place / "ray")
    doomed = pids(engine)[0]

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.kill(doomed, signal.SIGKILL)

    assert fill(planned, engine, place / "ray", during=kill) == expected
    assert 1 <= engine.redone_units <= 2
    time.sleep(1)  # Ray's own account of the death comes late
    assert capfd.readouterr().out == ""


class Poison:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def test_a_unit_that_kills_every_worker_is_given_up(place: Place, planned: Plan) -> None:
    with closing(clustered(planned, place / "ray")) as engine:
        results = engine.run("count_low", planned.units[:1], Poison(), before=lambda _: None)
        with pytest.raises(ClusterError, match="3 workers died over the unit of") as caught:
            list(results)

    assert caught.value.tensor == planned.units[0].nodes[0].slot.name
    assert engine.redone_units == 2


def test_a_unit_is_prepared_once_however_often_it_runs(place: Place, planned: Plan) -> None:
    begun: list[int] = []
    with closing(clustered(planned, place / "ray", workers=1)) as engine:
        for pid in pids(engine):
            os.kill(pid, signal.SIGKILL)
        results = engine.run(
            "count_high", planned.units[:3], before=lambda unit: begun.append(unit.number)
        )
        assert len(list(results)) == 3

    assert begun == [unit.number for unit in planned.units[:3]]
    assert engine.redone_units > 0


def test_a_worker_s_own_errors_come_out_as_raised(place: Place) -> None:
    base = place.llamas(3)
    broken = fine_tune(base, 1)
    broken["model.norm.weight"][3] = torch.nan
    write_checkpoint(place / "a", broken, max_shard_bytes=12_000)
    plan = plan_of(place)
    engine = clustered(plan, place / "ray")
    members = pids(engine)

    with pytest.raises(NonFiniteError, match="element 3") as caught:
        fill(plan, engine, place / "ray")

    assert type(caught.value) is NonFiniteError
    assert (caught.value.exit_code, caught.value.source) == (1, "a")
    assert caught.value.tensor == "model.norm.weight"
    assert all(map(ended, members))


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_source_that_changed_is_an_error_of_exit_code_3(
    place: Place, planned: Plan, when: str
) -> None:
    changed = next((place / "b").glob("*.safetensors"))
    engine = clustered(planned, place / "ray")
    if when == "before":
        changed.touch()
    with pytest.raises(SourceError, match="changed since it was planned") as caught:
        fill(planned, engine, place / "ray", during=changed.touch)

    assert type(caught.value) is SourceError
    assert caught.value.exit_code == 3
    assert (caught.value.source, caught.value.file) == ("b", changed.name)


def test_an_unforeseen_error_keeps_its_traceback(place: Place, planned: Plan) -> None:
    with closing(clustered(planned, place / "ray")) as engine:
        results = engine.run("count_low", planned.units, "too", "many", before=lambda _: None)
        with pytest.raises(ClusterError, match=r"(?s)failed at .*TypeError.*count_low") as caught:
            list(results)

    assert caught.value.tensor in {unit.nodes[0].slot.name for unit in planned.units}


def test_only_small_things_travel(place: Place, planned: Plan) -> None:
    total = ray.cluster_resources()["object_store_memory"]
    (place / "ray").mkdir()
    with closing(clustered(planned, place / "ray")) as engine:
        before = prepare(planned, place / "ray")
        for unit, receipt in engine.run("merge", planned.units, before=before):
            assert len(pickle.dumps(unit)) <= 100_000
            assert len(pickle.dumps(receipt)) <= 1000
            assert ray.available_resources()["object_store_memory"] == total


def test_a_node_with_other_code_is_refused(
    place: Place, planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {**versions(), "numba": "0.1"}
    there = versions()["numba"]
    monkeypatch.setattr(crew, "versions", lambda: here)

    with pytest.raises(
        ClusterError, match=f"node {os.uname().nodename} .*numba {there} there, 0.1"
    ):
        clustered(planned, place / "ray")


def test_more_than_the_cluster_has_is_refused_at_once(
    place: Place, planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a cluster of its own a run has all memory to itself, and reserves none.
    monkeypatch.setattr(ray_cluster, "is_own", lambda: False)
    with pytest.raises(ClusterError, match=f"99 workers of 1 CPU each .* has 0 GPU, {CPUS} CPU"):
        clustered(planned, place / "ray", workers=99)
    with pytest.raises(ClusterError, match=r"1 workers of 1 CPU, 1.0 TiB each"):
        clustered(planned, place / "ray", workers=1, memory_bytes=1024 * GIB)


def test_a_busy_cluster_is_waited_for_aloud_but_not_for_ever(
    place: Place,
    planned: Plan,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with closing(clustered(planned, place / "ray")):
        monkeypatch.setattr(crew, "ANNOUNCE_S", 0.3)
        monkeypatch.setattr(crew, "LOOK_S", 0.1)
        with (
            caplog.at_level(logging.WARNING),
            pytest.raises(ClusterError, match=r"none has started within 1 s\. Each asks") as caught,
        ):
            clustered(planned, place / "ray", workers=1, hiring=Hiring(wait_s=1))

    assert caught.value.retryable
    assert "free on the cluster: 0 GPU, 0 CPU, " in caught.value.message
    assert "(held: 0 GPU, 2 CPU, " in caught.value.message
    assert "waiting for 1 Ray workers, 1 s at most; free now: 0 GPU, 0 CPU" in caplog.text


@pytest.mark.parametrize("address", ["127.0.0.1:1", "here", "ray://127.0.0.1:10001", "a:b"])
def test_an_address_without_a_cluster_is_refused_within_seconds(address: str) -> None:
    began = time.monotonic()

    with pytest.raises(ClusterError, match=f"cannot join the Ray cluster at {address}: "):
        ray_cluster.connect(address, workers=None)

    assert time.monotonic() - began < 10


class HandledError(BaseException):
    """What a handler of signals raises."""


def test_what_a_handler_raises_while_ray_waits_comes_out_as_it_is() -> None:
    def handle(*_: object) -> None:
        raise HandledError

    endless = ray.remote(lambda: time.sleep(60)).remote()
    previous = signal.signal(signal.SIGTERM, handle)
    try:
        Timer(0.3, os.kill, [os.getpid(), signal.SIGTERM]).start()
        with pytest.raises(HandledError):
            ray_cluster.ended([endless], 1)
        assert signal.getsignal(signal.SIGTERM) is handle
    finally:
        signal.signal(signal.SIGTERM, previous)
        ray.cancel(endless, force=True)


SCRIPT = """
import os, pickle, signal, sys, time
from raymerge.runtime.cluster import ClusterEngine
settings, units, wait = pickle.loads(sys.stdin.buffer.read())
def handler(*_): raise SystemExit(143)
signal.signal(signal.SIGTERM, handler)
engine = ClusterEngine(
    settings, workers=3, threads=1, address=None, memory_bytes=2**60, on_progress=lambda _: None
)
assert signal.getsignal(signal.SIGTERM) is handler
def children(pid):
    found = [int(child) for task in os.listdir(f"/proc/{pid}/task")
             for child in open(f"/proc/{pid}/task/{task}/children").read().split()]
    return [pid for child in found for pid in (child, *children(child))]
print("child", *children(os.getpid()), "\\nready", sep=" ", file=sys.stderr, flush=True)
try:
    while True:
        for _ in engine.run("count_high", units, before=lambda _: None):
            pass
        if not wait:
            break
finally:
    engine.close()
"""


@pytest.mark.parametrize("how", ["close", "SIGTERM"])
def test_nothing_is_left_of_a_cluster_of_our_own(place: Place, planned: Plan, how: str) -> None:
    wait = how != "close"
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(raymerge.__file__).parent.parent)},
    )
    assert child.stdin
    assert child.stderr
    child.stdin.write(pickle.dumps((settings_of(planned, place.path), planned.units, wait)))
    child.stdin.close()
    child.stdin = None
    said = list(takewhile(lambda line: line != b"ready\n", child.stderr))
    assert child.poll() is None, said
    started = [int(pid) for line in said if line.startswith(b"child ") for pid in line.split()[1:]]
    began = time.monotonic()
    if wait:
        time.sleep(0.5)
        child.terminate()
    out, err = child.communicate(timeout=60)

    assert time.monotonic() - began < 15
    assert out == b""
    assert child.returncode == (143 if wait else 0), err
    assert len(started) >= 8, err
    assert all(map(ended, started))


def test_events_tell_of_workers_and_units_and_are_counted(
    place: Place, planned: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Event] = []
    counted: Counter[str] = Counter()
    counters = RayCounters()

    def record(counter: ray.util.metrics.Counter, value: int, tags: dict[str, str]) -> None:
        assert tags.keys() == {"node", "worker"}
        counted[counter.info["name"]] += value

    monkeypatch.setattr(ray.util.metrics.Counter, "inc", record)

    def hear(event: Event) -> None:
        heard.append(event)
        counters(event)

    engine = clustered(planned, place / "ray", on_event=hear)
    doomed = pids(engine)[0]

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.kill(doomed, signal.SIGKILL)

    fill(planned, engine, place / "ray", during=kill)

    check_trace(trace(heard))
    lost = [event for event in heard if isinstance(event, WorkerLost)]
    assert [(event.worker.rpartition(":")[2], event.why) for event in lost] == [
        (str(doomed), "died")
    ]
    joined = [event.worker for event in heard if isinstance(event, WorkerJoined)]
    assert len(joined) == len(set(joined)) >= 2
    ended = [event for event in heard if isinstance(event, UnitEnded)]
    assert {event.unit for event in ended} == {unit.number for unit in planned.units}
    redone = [event for event in heard if isinstance(event, UnitRedone)]
    assert len(redone) == engine.redone_units == counted["raymerge_redone_units"]
    failed = {event.unit for event in heard if isinstance(event, UnitFailed)}
    assert {event.unit for event in redone} <= failed
    assert counted["raymerge_lost_workers"] == 1
    assert counted["raymerge_units"] == len(ended)
    assert counted["raymerge_bytes_written"] == sum(event.bytes_written for event in ended)
