"""What runs in an actor, without one."""

from __future__ import annotations

import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event, Lock
from typing import Any

import numpy as np
import pytest

import raymerge
from raymerge.errors import SourceError, StorageError
from raymerge.plan.build import Plan
from raymerge.runtime.losses import BrokenDeviceError, OutOfRoomError
from raymerge.runtime.preflight import Nonce
from raymerge.runtime.remote import RemoteWorker, versions
from raymerge.runtime.settings import Progress
from raymerge.runtime.stopping import StoppedError
from raymerge.storage.posix import PosixShard
from tests.conftest import Place, run_settings


@pytest.fixture
def planned(place: Place) -> Plan:
    """Some forty units, one per shard."""
    place.llamas(2, layers=4)
    recipe = place.any_recipe("della")
    return raymerge.plan(recipe, engine="local", device="cpu", workers=2, shard_bytes=700)


class Slow:
    """Stands for a worker: counts the calls that run at once."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.running = self.most = self.advised = 0

    def will_need(self, _unit: object) -> None:
        with self.lock:
            self.advised += 1

    def run(self, call: str, unit: object, args: tuple[Any, ...]) -> Any:
        return getattr(self, call)(unit, *args)

    def merge(self, _unit: object) -> int:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.05)
        with self.lock:
            self.running -= 1
        return 7


def test_no_more_units_run_at_once_than_the_plan_has_memory_for(planned: Plan) -> None:
    remote = RemoteWorker(2)
    slow: Any = Slow()
    remote._workers[0] = slow  # noqa: SLF001

    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(remote.run, "merge", unit, ()) for unit in planned.units[:6]]
        assert [call.result()[:2] for call in calls] == [(7, Progress())] * 6

    assert slow.most == 2
    assert slow.advised >= 1


def test_what_waits_its_turn_is_given_back_when_the_node_is_about_to_go(planned: Plan) -> None:
    remote = RemoteWorker(1)
    begun, end = Event(), Event()

    class Held(Slow):
        def merge(self, _unit: object) -> int:
            begun.set()
            end.wait(10)
            return 7

    held: Any = Held()
    remote._workers[0] = held  # noqa: SLF001
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(remote.run, "merge", planned.units[0], ())
        assert begun.wait(10)
        waiting = pool.submit(remote.run, "merge", planned.units[1], ())
        remote.hand_back()
        with pytest.raises(StoppedError):
            waiting.result(10)
        assert not running.done()
        end.set()
        assert running.result(10)[:2] == (7, Progress())


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (MemoryError(), OutOfRoomError),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), OutOfRoomError),
        (type("AcceleratorError", (RuntimeError,), {})("CUDA error: ..."), BrokenDeviceError),
        (RuntimeError("CUDA error: an illegal memory access"), BrokenDeviceError),
        (RuntimeError("anything else"), RuntimeError),
    ],
)
def test_faults_of_the_device_are_told_from_those_of_the_unit(
    planned: Plan, raised: Exception, expected: type[Exception]
) -> None:
    class Faulty(Slow):
        def merge(self, _unit: object) -> int:
            raise raised

    remote = RemoteWorker(1)
    faulty: Any = Faulty()
    remote._workers[0] = faulty  # noqa: SLF001
    with pytest.raises(expected) as caught:
        remote.run("merge", planned.units[0], ())
    assert type(caught.value) is expected


def test_numpy_that_finds_no_memory_is_told_too(planned: Plan) -> None:
    class Large(Slow):
        def merge(self, _unit: object) -> int:
            return np.zeros(2**60, np.uint8).nbytes

    remote = RemoteWorker(1)
    large: Any = Large()
    remote._workers[0] = large  # noqa: SLF001
    with pytest.raises(OutOfRoomError):
        remote.run("merge", planned.units[0], ())


def test_smaller_tiles_change_no_byte(place: Place, planned: Plan) -> None:
    settings = run_settings(planned, place.path)
    remote = RemoteWorker(1)
    remote.start(versions(), pickle.dumps(settings))
    shards = {shard.name: shard for shard in planned.shards}
    for unit in planned.units:
        with PosixShard(place / unit.shard, unit.shard_bytes) as file:
            file.write_at(shards[unit.shard].header, 0)
        receipts = [remote.run("merge", unit, (), shrink)[0] for shrink in (0, 2)]
        hashes = [[tensor.sha256 for tensor in receipt.tensors] for receipt in receipts]
        assert hashes[0] == hashes[1]
    large, small = (remote._workers[n].tile_elements for n in (0, 2))  # noqa: SLF001
    assert small * 16 == large


def test_a_worker_that_does_not_see_the_nonce_names_its_node(place: Place, planned: Plan) -> None:
    settings = run_settings(planned, place.path)
    here = str(place / "nonce")
    start = RemoteWorker(1).start

    there = pickle.dumps(replace(settings, nonce=Nonce(here, b"abc")))
    with pytest.raises(StorageError, match=r"^node .*wrote to the destination cannot be read"):
        start(versions(), there)
    (place / "nonce").write_bytes(b"of another disk")
    with pytest.raises(StorageError, match=r"^node .*holds something else here .* share"):
        start(versions(), there)
    (place / "nonce").write_bytes(b"abc")
    assert start(versions(), there).versions == versions()


def test_a_worker_that_does_not_see_a_source_names_its_node(place: Place, planned: Plan) -> None:
    settings = pickle.dumps(run_settings(planned, place.path))
    file = min((place / "b").glob("*.safetensors"))
    file.write_bytes(file.read_bytes())
    # The kernel's clock ticks more seldom than memory is written.
    os.utime(file, ns=(0, 0))
    with pytest.raises(SourceError, match=r"^node .*b: .* is here another file than on the driver"):
        RemoteWorker(1).start(versions(), settings)
    (place / "b").rename(place / "elsewhere")
    with pytest.raises(SourceError, match=r"^node .*does not exist.*all nodes share"):
        RemoteWorker(1).start(versions(), settings)
