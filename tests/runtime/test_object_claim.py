"""Claims in an object store: who has a destination, and how it changes hands."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest

from raymerge.errors import ConflictError
from raymerge.runtime.object_claim import CLAIM_NAME, ObjectClaim
from raymerge.storage.objects import ObjectStore
from raymerge.storage.store import Access
from raymerge.storage.urls import destination

BEAT_S = 0.05
_places = count()


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore(destination(f"memory://claims-{next(_places)}/out"), Access())


@contextmanager
def claimed(
    store: ObjectStore, digest: str = "d1", *, overwrite: bool = False, beat_s: float = BEAT_S
) -> Iterator[ObjectClaim]:
    claim = ObjectClaim(store, digest=digest, overwrite=overwrite, beat_s=beat_s)
    try:
        yield claim
    finally:
        claim.release()


def content(store: ObjectStore) -> dict[str, Any]:
    found = store.read(CLAIM_NAME)
    assert found is not None
    return dict(json.loads(found[0]))


def leave(store: ObjectStore, **changes: Any) -> None:
    """A claim as another driver would have left it."""
    with claimed(store):
        claim = content(store)
    store.put(CLAIM_NAME, json.dumps({**claim, "state": "running", **changes}).encode())


def test_a_driver_keeps_showing_that_it_lives(store: ObjectStore) -> None:
    with claimed(store) as claim:
        first = content(store)["beats"]
        time.sleep(4 * BEAT_S)
        assert content(store)["beats"] > first
        claim.check()
    assert content(store)["state"] == "left"


def test_one_of_many_drivers_wins(store: ObjectStore) -> None:
    def race(_: int) -> ObjectClaim | ConflictError:
        try:
            return ObjectClaim(store, digest="d1", overwrite=False, beat_s=5.0)
        except ConflictError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(race, range(8)))
    winners = [one for one in found if isinstance(one, ObjectClaim)]
    assert len(winners) == 1
    losers = [str(one) for one in found if isinstance(one, ConflictError)]
    assert all("is being written by process" in message for message in losers)
    winners[0].release()


def test_another_recipe_is_refused_with_both_digests(store: ObjectStore) -> None:
    leave(store)
    with pytest.raises(ConflictError, match=r"plan d1, this is d2.*--overwrite"):
        ObjectClaim(store, digest="d2", overwrite=False, beat_s=BEAT_S)


def test_what_a_driver_left_is_taken_up_at_once(store: ObjectStore) -> None:
    with claimed(store, beat_s=60):
        pass
    began = time.monotonic()
    with claimed(store, beat_s=60):
        assert time.monotonic() - began < 1


def test_a_driver_of_this_process_that_left_unheard_is_succeeded_at_once(
    store: ObjectStore,
) -> None:
    leave(store)
    began = time.monotonic()
    with claimed(store, beat_s=60):
        assert time.monotonic() - began < 1


def test_a_dead_driver_of_this_machine_is_known_to_be_dead(store: ObjectStore) -> None:
    leave(store, pid=1, started="1")
    began = time.monotonic()
    with claimed(store, beat_s=60):
        assert time.monotonic() - began < 1


def test_a_silent_driver_of_another_machine_is_watched_and_then_succeeded(
    store: ObjectStore,
) -> None:
    leave(store, machine="elsewhere")
    began = time.monotonic()
    with claimed(store):
        assert 3 * BEAT_S <= time.monotonic() - began < 40 * BEAT_S


def test_a_live_driver_of_another_machine_is_left_alone(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claimed(store):
        monkeypatch.setattr("raymerge.runtime.object_claim._machine", lambda: "another one")
        with pytest.raises(ConflictError, match="is being written by process"):
            ObjectClaim(store, digest="d1", overwrite=False, beat_s=2 * BEAT_S)


def test_overwriting_a_live_driver_stops_it_before_it_commits(store: ObjectStore) -> None:
    with claimed(store) as old:
        began = time.monotonic()
        with claimed(store, "d2", overwrite=True) as new:
            # So long that the old one has noticed.
            assert time.monotonic() - began >= 1.5 * BEAT_S
            with pytest.raises(ConflictError, match="was taken over by process"):
                old.check()
            with pytest.raises(ConflictError, match="was taken over by process"):
                old.begin_commit()
            new.check()
        assert content(store)["digest"] == "d2"
    assert content(store)["digest"] == "d2"


def test_who_overwrites_waits_for_a_commit_under_way(store: ObjectStore) -> None:
    with claimed(store) as old:
        old.begin_commit()
        with ThreadPoolExecutor(1) as pool:
            new = pool.submit(ObjectClaim, store, digest="d2", overwrite=True, beat_s=BEAT_S)
            time.sleep(1.5 * BEAT_S)
            assert not new.done()
            old.remove()
            new.result().release()


def test_a_claim_that_cannot_be_read_counts_as_another_s(store: ObjectStore) -> None:
    store.put(CLAIM_NAME, b"{")
    with pytest.raises(ConflictError, match="plan None"):
        ObjectClaim(store, digest="d1", overwrite=False, beat_s=BEAT_S)
    with claimed(store, overwrite=True):
        pass
