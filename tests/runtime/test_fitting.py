"""A device without room for a tile gets smaller ones, and the bytes are the same."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor

import raymerge
from raymerge.errors import RaymergeError
from raymerge.kernels.tile import Tile
from raymerge.kernels.torch_kernels import TorchKernels
from raymerge.plan.build import Plan
from raymerge.runtime.device import Desks
from raymerge.runtime.fitting import FittingWorker
from raymerge.runtime.losses import BrokenDeviceError, OutOfRoomError
from raymerge.runtime.remote import RemoteWorker, versions
from tests.conftest import Place, run_settings, shard_hashes
from tests.rings import GPU, SHARD_BYTES, hashes, ring_models, ring_plan, through_ring

TILE = 2**17
ROOM = 2**15
TOLD = "CUDA out of memory. Tried to allocate 2.00 GiB."


class Device:
    """Stands for one whose memory ends at tiles of so many elements."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        room: int,
        error: Callable[[str], Exception] = torch.OutOfMemoryError,
        told: str = TOLD,
    ) -> None:
        self.refused: list[int] = []
        self.held: list[weakref.ref[Any]] = []
        """What kernels had allocated before they failed."""
        self.found: list[bool] = []
        """Whether any of that was still there when a smaller tile came."""
        widen = TorchKernels._widen  # noqa: SLF001

        def cramped(kernels: TorchKernels, tile: Tile) -> list[Tensor]:
            inputs = widen(kernels, tile)
            if tile.count > room:
                self.refused.append(tile.count)
                self.held += map(weakref.ref, inputs)
                raise error(told)
            self.found.append(any(one() is not None for one in self.held))
            return inputs

        monkeypatch.setattr(TorchKernels, "_widen", cramped)


@pytest.fixture
def models(place: Place) -> Place:
    ring_models(place)
    return place


def expected(place: Place, recipe: Any) -> dict[str, str]:
    raymerge.merge(
        recipe, place / "cpu", engine="local", device="cpu", workers=2, shard_bytes=SHARD_BYTES
    )
    return shard_hashes(place / "cpu")


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "dare_ties", "sce"])
def test_tiles_are_halved_until_they_fit_and_no_byte_changes(  # noqa: PLR0917 - all combinations
    models: Place,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
    depth: int,
    threads: int,
) -> None:
    recipe = models.any_recipe(method)
    found = expected(models, recipe)
    device = Device(monkeypatch, ROOM)

    result = through_ring(ring_plan(recipe, TILE), models / "out", depth=depth, threads=threads)

    assert hashes(result) == found
    assert {TILE, TILE // 2} <= set(device.refused)
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2, "once each, however many units run at once"
    assert warned[0].startswith(
        f"{GPU} has no room for tiles of 131,072 elements: from here on they have 65,536. {TOLD}"
    )
    assert "of 65,536 elements: from here on they have 32,768" in warned[1]


def test_what_a_survey_counts_is_counted_anew(
    models: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = models.any_recipe("ties", trim="model")
    found = expected(models, recipe)
    Device(monkeypatch, ROOM)

    assert hashes(through_ring(ring_plan(recipe, TILE), models / "out", depth=3)) == found


def test_a_tile_is_not_halved_to_what_is_longer_than_any_tensor(
    models: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = models.any_recipe("linear")
    found = expected(models, recipe)
    device = Device(monkeypatch, 2**17)

    plan = ring_plan(recipe, 2**24)
    assert hashes(through_ring(plan, models / "out", depth=3, threads=1)) == found
    longest = max(node.inputs[0].num_elements for node in plan.nodes)
    assert device.refused[0] <= longest < 2**19
    assert len(caplog.records) <= 3


def test_the_smallest_tile_that_does_not_fit_ends_the_run(
    models: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    Device(monkeypatch, 100)
    plan = ring_plan(models.any_recipe("linear"), TILE)

    with pytest.raises(OutOfRoomError, match=r"(?s)has no room for tiles.*get smaller") as caught:
        through_ring(plan, models / "out", depth=3)
    assert TOLD in str(caught.value)
    assert isinstance(caught.value, RaymergeError)


def test_a_device_that_fails_otherwise_is_not_asked_again(
    models: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(monkeypatch, 100, RuntimeError, "CUDA error: an illegal memory access")
    plan = ring_plan(models.any_recipe("linear"), TILE)

    with pytest.raises(BrokenDeviceError, match="illegal memory access"):
        through_ring(plan, models / "out", depth=3, threads=1)
    assert len(device.refused) <= 3


def test_any_other_error_is_as_it_was(models: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    Device(monkeypatch, 100, RuntimeError, "a kernel is wrong")
    with pytest.raises(RuntimeError, match=r"^a kernel is wrong$"):
        through_ring(ring_plan(models.any_recipe("linear"), TILE), models / "out", depth=3)


def settings_of(plan: Plan, place: Place) -> Any:
    settings = replace(run_settings(plan, place / "shards"), device=GPU)
    return replace(settings, budget=replace(settings.budget, depth=3))


def test_what_a_kernel_had_allocated_is_given_back_first(
    models: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a collection: the next tile needs the room at once."""
    released: list[int] = []
    monkeypatch.setattr(Desks, "release", lambda _: released.append(1))
    device = Device(monkeypatch, ROOM)
    plan = ring_plan(models.any_recipe("linear"), TILE)
    worker = FittingWorker(settings_of(plan, models), stop=Event(), on_progress=lambda _: None)
    unit = max(plan.units, key=lambda unit: unit.nodes[0].slot.nbytes)
    gc.collect()
    gc.disable()
    try:
        worker.run("merge", unit)
    finally:
        gc.enable()
    assert len(device.refused) >= 2
    assert device.found
    assert not device.found[0]
    assert len(released) == 2


def test_a_worker_of_a_cluster_halves_its_tiles_by_itself(
    models: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    Device(monkeypatch, ROOM)
    plan = ring_plan(models.any_recipe("linear"), TILE)
    remote = RemoteWorker(1)
    remote.start(versions(), pickle.dumps(settings_of(plan, models)))
    here = FittingWorker(
        replace(settings_of(plan, models), device="cpu"), stop=Event(), on_progress=lambda _: None
    )
    for unit in plan.units:
        found, _, _ = remote.run("merge", unit, ())
        assert found.tensors == here.run("merge", unit).tensors
    worker = remote._workers[0]  # noqa: SLF001
    assert worker.tile_elements == ROOM
    worker.check_sources()
    worker.close()


def test_no_more_desks_are_made_than_units_run_at_once() -> None:
    desks = Desks("cpu", 1)
    with desks.seated():
        first = desks.mine
    with desks.seated():
        assert desks.mine is first


def seat_of(desks: Desks) -> Callable[[], object]:
    def seat() -> object:
        with desks.seated():
            return desks.mine

    return seat


def test_a_thread_gets_the_desk_that_it_had() -> None:
    desks = Desks("cpu", 1)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(3):
            with desks.seated():
                mine = desks.mine
                other = pool.submit(seat_of(desks)).result()
            assert other is not mine
            assert seat_of(desks)() is mine
            assert pool.submit(seat_of(desks)).result() is other
