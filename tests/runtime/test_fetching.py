"""Remote sources: the bytes of local ones, by requests that were foreseen, within a window."""

from __future__ import annotations

import itertools
import time
import weakref
from collections import Counter
from threading import Event, Lock, Timer

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import raymerge
from raymerge.errors import SourceError
from raymerge.plan import units as unit_sizes
from raymerge.plan.ranges import Need, ranges
from raymerge.runtime.fetching import Prefetch
from raymerge.runtime.stopping import StoppedError
from tests.conftest import METHOD_KNOBS, Place, shard_hashes
from tests.distant import Asked, Distance, planned, remotely, requests, run

KIB = 2**10
WINDOWS = (4 * KIB, 64 * KIB, 2**26)
TILES = (256, 1024, None)
WITH_STATS = [f"{name}, stats" for name in ("linear", "slerp", "nuslerp", "ties", "sce")]


@pytest.mark.parametrize("method", [*METHOD_KNOBS, "ties, trim: model", *WITH_STATS])
def test_bytes_and_requests_are_those_foreseen(
    place: Place, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit_sizes, "MAX_UNIT_TENSORS", 9)
    place.llamas()
    name, _, trim = method.removesuffix(", stats").partition(", trim: ")
    recipe = place.any_recipe(name, **({"trim": trim} if trim else {}))
    raymerge.merge(recipe, place / "near", engine="local", device="cpu", workers=2)

    for window_bytes, tile in itertools.product(WINDOWS, TILES):
        plan = remotely(planned(recipe, tile, stats=method.endswith("stats")), window_bytes)
        distance = Distance()
        result = run(plan, place / "far", distance)

        assert shard_hashes(place / "far") == shard_hashes(place / "near")
        assert Counter(distance.asked) == requests(plan)
        assert result.bytes_read == distance.fetched_bytes <= plan.bytes_read


# --- what is read how often ----------------------------------------------------------------------


@pytest.fixture
def large(place: Place) -> Place:
    """Tensors of 2**19 elements: more than a sample, and than what is held in any case."""
    generator = np.random.default_rng(0)
    for name in ("base", "a", "b"):
        place.model(
            name,
            {
                f"w{i}": torch.from_numpy(generator.normal(size=(512, 1024)) * 0.02).bfloat16()
                for i in range(3)
            },
        )
    return place


@pytest.mark.parametrize("method", ["ties", "sce", "arcee_fusion", "model_stock", "linear"])
def test_what_fits_is_fetched_once(large: Place, method: str) -> None:
    plan = remotely(planned(large.any_recipe(method)))
    result = run(plan, large / "out", distance := Distance())

    once = sum(node.input_bytes for node in plan.nodes)
    assert distance.fetched_bytes == result.bytes_read == plan.bytes_read == once


@pytest.mark.parametrize(
    "method", ["ties", "breadcrumbs", "sce", "arcee_fusion", "karcher", "model_stock"]
)
def test_what_does_not_fit_is_fetched_for_every_sweep(large: Place, method: str) -> None:
    recipe = large.any_recipe(method)
    raymerge.merge(recipe, large / "near", engine="local", device="cpu", workers=2)
    plan = remotely(planned(recipe), 2**20, hold=False)
    result = run(plan, large / "far", distance := Distance())

    once = sum(node.input_bytes for node in plan.nodes)
    assert plan.bytes_read >= 2 * once
    assert distance.fetched_bytes == result.bytes_read == plan.bytes_read
    assert Counter(distance.asked) == requests(plan)
    assert shard_hashes(large / "far") == shard_hashes(large / "near")


def test_a_shard_of_small_tensors_is_a_few_requests(place: Place) -> None:
    for name in ("a", "b"):
        place.model(name, {f"model.layers.{i}.w": torch.ones(4096) * i for i in range(400)})
    plan = remotely(planned(place.recipe("linear", parameters={"weight": 1})))
    run(plan, place / "out", distance := Distance())

    assert len(plan.nodes) == 400
    assert len(distance.asked) <= 2 * len(plan.units)


# --- the window ----------------------------------------------------------------------------------


class Storage:
    """One file of known bytes, and what of it has been fetched and not been let go."""

    def __init__(self, nbytes: int, *, latency_s: float = 0.0) -> None:
        self.content = np.random.default_rng(1).integers(0, 256, nbytes, np.uint8)
        self.held = self.most_held = self.fetched = 0
        self._latency_s = latency_s
        self._lock = Lock()

    def fetch(self, _source: int, _file: str, start: int, stop: int) -> memoryview:
        self._count(stop - start)
        time.sleep(self._latency_s)
        came = self.content[start:stop].copy()
        weakref.finalize(came, self._count, start - stop)
        return came.data

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self.held += nbytes
            self.most_held = max(self.most_held, self.held)
            self.fetched += max(0, nbytes)


def prefetch(storage: Storage, needs: list[Need], window_bytes: int, stop: Event) -> Prefetch:
    return Prefetch(
        ranges(needs, window_bytes),
        storage.fetch,
        window_bytes=window_bytes,
        stop=stop,
        on_read=lambda _: None,
    )


reads = st.lists(
    st.tuples(st.integers(0, 900), st.integers(1, 100), st.integers(0, 3)), max_size=40
)


@given(reads, st.sampled_from([64, 256, 4096]), st.data())
def test_any_reads_give_the_bytes_and_never_more_is_held(
    reads: list[tuple[int, int, int]], window_bytes: int, data: st.DataObject
) -> None:
    """Also where what is read is not what was foreseen, or not in that order."""
    foreseen = data.draw(st.permutations(reads)) if data.draw(st.booleans()) else reads
    needs = [Need(node, 0, "f", at, at + n) for at, n, node in foreseen]
    storage = Storage(1000)
    with prefetch(storage, needs, window_bytes, Event()) as ahead:
        for at, nbytes, node in reads:
            if data.draw(st.booleans()):
                ahead.reach(node)
            buffer = np.zeros(nbytes, np.uint8)
            ahead.read_into(buffer, 0, "f", at)
            assert np.array_equal(buffer, storage.content[at : at + nbytes])

    assert storage.most_held <= window_bytes


@given(st.integers(1, 2000), st.integers(1, 300), st.sampled_from([64, 256, 1000]))
def test_sweeps_over_one_file_use_up_every_range(
    nbytes: int, piece: int, window_bytes: int
) -> None:
    """A range of one sweep may begin inside one of the sweep before it."""
    needs = [
        Need(0, 0, "f", at, min(at + piece, nbytes))
        for _ in range(3)
        for at in range(0, nbytes, piece)
    ]
    storage = Storage(2000)
    with prefetch(storage, needs, window_bytes, Event()) as ahead:
        for one in needs:
            ahead.read_into(np.empty(one.stop - one.start, np.uint8), 0, "f", one.start)
        assert storage.held == 0
        assert storage.fetched == sum(one.nbytes for one in ranges(needs, window_bytes))


def test_requests_are_under_way_while_others_are_used() -> None:
    storage = Storage(2**20, latency_s=0.05)
    needs = [Need(i, 0, "f", i * 2**15, (i + 1) * 2**15) for i in range(32)]
    began = time.perf_counter()
    with prefetch(storage, needs, 2**19, Event()) as ahead:
        for one in needs:
            ahead.read_into(np.empty(2**15, np.uint8), 0, "f", one.start)

    # One after another they take 32 * 0.05 s * (2**15 / 2**16 bytes a range).
    assert time.perf_counter() - began < 0.4
    assert storage.fetched == 2**20
    assert storage.most_held <= 2**19


def test_what_was_not_used_makes_room_for_the_next_tensor() -> None:
    storage = Storage(1000)
    needs = [Need(node, 0, "f", node * 100, node * 100 + 100) for node in range(10)]
    with prefetch(storage, needs, 200, Event()) as ahead:
        ahead.reach(9)
        buffer = np.empty(100, np.uint8)
        ahead.read_into(buffer, 0, "f", 900)
        assert np.array_equal(buffer, storage.content[900:])

    assert storage.fetched < 500


# --- when it does not go well --------------------------------------------------------------------


def test_a_range_that_cannot_be_fetched_ends_the_run_with_its_message(place: Place) -> None:
    place.llamas()
    plan = remotely(planned(place.any_recipe("ties")))
    distance = Distance()

    def refuse(asked: Asked) -> None:
        if asked[0].startswith("model-00002"):
            raise SourceError(f"distant: {asked[0]} is gone", source="a", retryable=False)

    distance.on_fetch = refuse
    with pytest.raises(SourceError, match=r"distant: model-00002.* is gone"):
        run(plan, place / "out", distance)
    assert not list((place / "out").glob("*.index.json"))


def test_a_source_that_is_replaced_meanwhile_is_an_error(place: Place) -> None:
    place.llamas()
    plan = remotely(planned(place.any_recipe("ties")), 4 * KIB)
    file = max((place / "a").glob("*.safetensors"))
    file.write_bytes(file.read_bytes())

    with pytest.raises(SourceError, match="changed since it was planned"):
        run(plan, place / "out", Distance())


def test_a_stop_ends_a_wait() -> None:
    storage, stop = Storage(1000, latency_s=1.0), Event()
    began = time.perf_counter()
    with prefetch(storage, [Need(0, 0, "f", 0, 1000)], 2**20, stop) as ahead:
        Timer(0.1, stop.set).start()
        with pytest.raises(StoppedError):
            ahead.read_into(np.empty(1000, np.uint8), 0, "f", 0)
    assert time.perf_counter() - began < 0.5


def test_requests_made_again_are_counted(place: Place) -> None:
    place.llamas()
    plan = remotely(planned(place.any_recipe("ties")), 4 * KIB)
    distance = Distance()
    distance.retries_each = 2
    result = run(plan, place / "out", distance)

    assert result.retries == 2 * len(distance.asked)
